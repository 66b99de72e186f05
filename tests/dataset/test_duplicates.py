"""Near-identical pictures are found, and pictures that are not are left apart."""

import colorsys
import io
import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance
from scipy.fft import dctn

from headstart.dataset import duplicates
from headstart.dataset.duplicates import Forest, NearDuplicates, find_groups, find_near_duplicates
from headstart.dataset.image_statistics import NO_COLOUR, STATISTICS, inspect
from tests.images.pictures import encode, picture

Levels = NDArray[np.uint8]
EIGHT: tuple[Image.Transpose | None, ...] = (None, *Image.Transpose)


def turned(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return image if transpose is None else image.transpose(transpose)


def statistics_of(encoded: list[bytes]) -> NDArray[Any]:
    rows = [
        inspect(data, index.to_bytes(32, "big"), max_pixels=10**8)
        for index, data in enumerate(encoded)
    ]
    return np.concatenate(rows)


def near_duplicates(encoded: list[bytes]) -> NearDuplicates:
    return find_near_duplicates(statistics_of(encoded), max_bits=4)


def all_pairs(statistics: NDArray[Any], max_bits: int, *, turned: bool) -> list[int]:
    """Groups by comparing all pairs of views, one by one, on turned pixels."""
    thumbnails, colours, sides = statistics["thumbnail"], statistics["colours"], statistics["width"]
    views = duplicates._views(thumbnails, turned=turned)

    def seen(levels: Levels, orientation: int) -> NDArray[np.float64]:
        side = int(np.sqrt(levels.shape[-1]))
        grids = levels.reshape(-1, side, side).astype(float)
        grids = grids.swapaxes(1, 2) if orientation & 4 else grids
        grids = grids[:, ::-1] if orientation & 2 else grids
        return (grids[:, :, ::-1] if orientation & 1 else grids).reshape(len(grids), -1)

    greys = [
        seen(thumbnails[row], orientation)[0]
        for row, orientation in zip(views.rows, views.orientations, strict=True)
    ]
    tints = [
        seen(colours[row].reshape(2, 16), orientation).ravel() - NO_COLOUR
        for row, orientation in zip(views.rows, views.orientations, strict=True)
    ]
    parents = list(range(len(statistics)))

    def root(row: int) -> int:
        return row if parents[row] == row else root(parents[row])

    near = np.bitwise_count(views.hashes[:, None] ^ views.hashes) <= max_bits
    for i, j in zip(*np.nonzero(np.triu(near, 1)), strict=True):
        weak, strong = sorted((tints[i], tints[j]), key=np.linalg.norm)
        along = weak / max(np.linalg.norm(weak), 1) * max(0.0, weak @ strong)
        apart = strong - along / max(np.linalg.norm(weak), 1)
        leeway = max(1, 64 / min(sides[views.rows[i]], sides[views.rows[j]]))
        pale = np.sqrt(32) * 1.5 * leeway
        same_colour = np.linalg.norm(apart) <= max(pale, 0.08 * leeway * np.linalg.norm(strong))
        distance = np.sqrt(np.square(greys[i] - greys[j]).mean())
        varied = greys[i].std() > 0 and greys[j].std() > 0
        correlated = varied and np.corrcoef(greys[i], greys[j])[0, 1] >= 0.985
        same_but_grey = np.linalg.norm(weak) <= pale and distance <= 3
        if (correlated and (same_colour or same_but_grey)) or (same_colour and distance <= 1):
            low, high = sorted((root(int(views.rows[i])), root(int(views.rows[j]))))
            parents[high] = low
    return [root(row) for row in range(len(statistics))]


def scene(rng: np.random.Generator, n: int, n_motifs: int) -> NDArray[Any]:
    """n pictures of few motifs, some turned, some noisy, some in other colours, some without."""
    motifs = rng.integers(0, 256, (n_motifs, 16, 16))
    motifs[::4] = motifs[::4] // 2 + motifs[::4, :, ::-1] // 2  # symmetric
    motifs[1::4] = motifs[1::4, :1, :1]  # flat
    tints = rng.integers(-60, 61, (n_motifs, 2, 4, 4))
    tints[::4] = tints[::4, :, :, ::-1]
    statistics = np.zeros(n, STATISTICS)
    statistics["width"] = statistics["height"] = rng.choice([28, 300], n)
    for row in range(n):
        motif, orientation = rng.integers(n_motifs), int(rng.integers(8))
        noise = rng.integers(-30, 31, (16, 16)) * rng.integers(2)
        grey = np.clip(motifs[motif] + noise, 0, 255)
        tint = tints[motif] * rng.choice([-1, 0, 0.5, 1, 1])
        if orientation & 1:
            grey, tint = grey[:, ::-1], tint[:, :, ::-1]
        if orientation & 2:
            grey, tint = grey[::-1], tint[:, ::-1]
        if orientation & 4:
            grey, tint = grey.T, tint.swapaxes(1, 2)
        statistics["thumbnail"][row] = grey.ravel()
        statistics["colours"][row] = (NO_COLOUR + tint).astype(np.uint8).ravel()
    return statistics


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(1, 8), st.sampled_from([0, 1, 4, 8]))
@pytest.mark.parametrize("small_bucket", [0, 3, 2048])
def test_groups_are_those_of_all_pairs(
    small_bucket: int, seed: int, n: int, n_motifs: int, max_bits: int
) -> None:
    statistics = scene(np.random.default_rng(seed), n, n_motifs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_SMALL_BUCKET", small_bucket)
        patch.setattr(duplicates, "_BLOCK_ROWS", 5)
        patch.setattr(duplicates, "_PAIRS_AT_ONCE", 7)
        found = find_near_duplicates(statistics, max_bits=max_bits)
    assert found.upright.tolist() == all_pairs(statistics, max_bits, turned=False)
    forest = Forest(n)
    for groups in (found.upright, all_pairs(statistics, max_bits, turned=True)):
        forest.join(np.arange(n, dtype=np.int64), np.asarray(groups, np.int64))
    assert found.turned.tolist() == forest.roots(np.arange(n, dtype=np.int64)).tolist()


@given(st.integers(0, 2**32))
def test_spectra_turn_as_pixels_do(seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 16, 16)).astype(np.float32)
    spectra = dctn(pixels, axes=(1, 2), norm="ortho")[:, :8, :8]
    for orientation, turn in enumerate(duplicates._turns(16)):
        seen = pixels.reshape(3, 256)[:, turn].reshape(3, 16, 16)
        np.testing.assert_allclose(
            duplicates._turn_spectra(spectra, orientation),
            dctn(seen, axes=(1, 2), norm="ortho")[:, :8, :8],
            atol=1e-3,
        )


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29))))
def test_a_set_is_named_by_its_first_member(n: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(a % n, b % n) for a, b in pairs]
    forest = Forest(n)
    for first, second in pairs:
        forest.join(np.array([first]), np.array([second]))
    roots = forest.roots(np.arange(n, dtype=np.int64)).tolist()
    neighbours = {row: {row} for row in range(n)}
    for _ in range(n):
        for a, b in pairs:
            neighbours[a] |= neighbours[b]
            neighbours[b] |= neighbours[a]
    assert roots == [min(neighbours[row]) for row in range(n)]


def variants(image: Image.Image) -> list[Image.Image]:
    """What becomes of a photograph that is passed on."""
    width, height = image.size
    saved_again = Image.open(io.BytesIO(encode(image, "JPEG", quality=40)))
    return [
        image,
        saved_again.convert("RGB"),
        image.resize((width // 2, height // 2)),
        image.convert("L").convert("RGB"),
        ImageEnhance.Brightness(image).enhance(0.9),
        ImageEnhance.Contrast(image).enhance(1.1),
        image.crop((1, 1, width - 1, height - 1)),
    ]


def symmetric(seed: int, size: tuple[int, int]) -> Image.Image:
    """Its left is its right, mirrored."""
    half = picture(seed, (size[0] // 2, size[1]))
    whole = Image.new("RGB", (2 * half.width, half.height))
    whole.paste(half, (0, 0))
    whole.paste(half.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (half.width, 0))
    return whole


def disc(seed: int, size: tuple[int, int]) -> Image.Image:
    """An ellipse in the middle of white: nearly all of it is symmetric in every way."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    radii = np.array(size) * rng.uniform(0.1, 0.4, 2)
    box = np.concatenate([np.array(size) / 2 - radii, np.array(size) / 2 + radii]).tolist()
    ImageDraw.Draw(image).ellipse(tuple(box), fill=tuple(rng.integers(0, 200, 3).tolist()))
    return image


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([picture, symmetric, disc]),
    st.sampled_from([(64, 48), (24, 18), (32, 32), (320, 240), (101, 99)]),
    st.randoms(use_true_random=False),
)
def test_a_picture_and_its_eight_orientations_are_one_group_in_any_order(
    seed: int, kind: Any, size: tuple[int, int], shuffle: random.Random
) -> None:
    original = kind(seed, size)
    encoded = [encode(turned(original, way)) for way in EIGHT]
    if min(size) > 64:  # of a smaller one, strong compression may leave another picture
        encoded += [encode(turned(original, way), "JPEG", quality=60) for way in EIGHT]
    statistics = statistics_of([*encoded, encode(picture(seed + 1, size))])
    order = list(range(len(statistics)))
    shuffle.shuffle(order)
    groups = find_groups(
        statistics, np.zeros(len(statistics), np.int64), [None] * len(statistics), max_bits=4
    )
    mixed = find_groups(
        statistics[order], np.zeros(len(statistics), np.int64), [None] * len(statistics), max_bits=4
    )
    assert len(set(groups.keys[:-1])) == 1
    assert groups.keys[-1] != groups.keys[0]
    assert mixed.keys == [groups.keys[row] for row in order]


def test_mirrored_photographs_saved_again_or_smaller_are_near_duplicates() -> None:
    originals = [picture(seed, (320, 240)) for seed in range(12)]
    images = [
        changed
        for original in originals
        for changed in (
            original,
            original.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((160, 120)),
            original.transpose(Image.Transpose.ROTATE_90),
        )
    ]
    found = near_duplicates([encode(image, "JPEG", quality=60) for image in images])
    assert found.turned.tolist() == [row // 3 * 3 for row in range(len(images))]
    assert found.upright.tolist() == list(range(len(images)))


def polygon(n_corners: int, hue: float, centre: tuple[int, int], radius: int) -> Image.Image:
    colour = tuple(round(255 * level) for level in colorsys.hsv_to_rgb(hue, 0.85, 0.85))
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).regular_polygon((*centre, radius), n_corners, fill=colour)
    return image


@settings(max_examples=10, deadline=None)
@given(
    st.integers(3, 9),
    st.tuples(st.integers(40, 56), st.integers(40, 56)),
    st.integers(12, 38),
    st.sampled_from([{"kind": "PNG"}, {"kind": "JPEG", "quality": 60}]),
)
def test_polygons_that_differ_in_hue_alone_are_not_near_duplicates(
    n_corners: int, centre: tuple[int, int], radius: int, options: dict[str, Any]
) -> None:
    images = [polygon(n_corners, hue / 12, centre, radius) for hue in range(12)]
    found = near_duplicates([encode(image, **options) for image in images])
    assert found.turned.tolist() == list(range(12))


def test_classes_of_polygons_that_differ_in_hue_have_no_conflicting_labels() -> None:
    rng = np.random.default_rng(0)
    hues = np.repeat(np.arange(24), 12)
    images = [
        polygon(int(rng.integers(3, 8)), hue / 24, (48, 48), int(rng.integers(20, 40)))
        for hue in hues
    ]
    groups = find_groups(
        statistics_of([encode(image) for image in images]), hues, [None] * len(hues), max_bits=4
    )
    assert not groups.label_conflict.any()
    of_group: dict[str, set[int]] = defaultdict(set)
    for key, hue in zip(groups.keys, hues.tolist(), strict=True):
        of_group[key].add(hue)
    assert all(len(found) == 1 for found in of_group.values())


@pytest.mark.parametrize("degrees", [30, 60, 120, 180])
def test_a_picture_in_other_hues_is_not_a_near_duplicate(degrees: int) -> None:
    encoded = []
    for seed in range(8):
        original = picture(seed, (320, 240))
        hsv = np.array(original.convert("HSV"))
        hsv[..., 0] += np.uint8(degrees * 256 // 360)  # wraps
        encoded += [encode(original), encode(Image.fromarray(hsv, "HSV").convert("RGB"))]
    assert near_duplicates(encoded).turned.tolist() == list(range(16))


def test_a_picture_without_its_colours_is_a_near_duplicate_of_that_picture_alone() -> None:
    red, green = polygon(5, 0, (48, 48), 30), polygon(5, 1 / 3, (48, 48), 30)
    encoded = [encode(image) for image in (red, green, red.convert("L"))]
    assert near_duplicates(encoded).turned.tolist() == [0, 1, 0]


def test_passed_on_photographs_are_near_duplicates_and_others_are_not() -> None:
    originals = [picture(seed, (320, 240)) for seed in range(12)]
    images = [variant for original in originals for variant in variants(original)]
    found = near_duplicates([encode(image) for image in images]).upright
    each = len(variants(originals[0]))
    assert found.tolist() == [row // each * each for row in range(len(images))]


def test_flat_pictures_are_alike_if_they_have_the_same_grey() -> None:
    greys = [
        Image.new("RGB", (50 + i, 40), (level,) * 3) for i, level in enumerate([0, 0, 90, 255])
    ]
    assert near_duplicates([encode(grey) for grey in greys]).turned.tolist() == [0, 0, 2, 3]


def test_hashes_are_pinned() -> None:
    # The groups, and so the splits, of every user hang on these bits.
    statistics = statistics_of([encode(picture(seed)) for seed in range(2)])
    views = duplicates._views(statistics["thumbnail"], turned=False)
    assert views.hashes.tolist() == [0x7C9848E313C4203B, 0x0CE2D8B83ACB4034]
