"""Near-identical pictures are found, and pictures that are not are left apart."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from headstart.images import duplicates
from headstart.images.duplicates import MIN_CORRELATION, Forest, near_duplicate_clusters
from headstart.images.inspect import inspect, perceptual_hashes
from tests.images.pictures import encode, picture

Hashes = NDArray[np.uint64]
Thumbnails = NDArray[np.uint8]


def all_pairs(hashes: Hashes, thumbnails: Thumbnails, max_bits: int) -> list[int]:
    """Clusters by comparing all pairs, one by one."""
    n = len(hashes)
    parents = list(range(n))

    def root(row: int) -> int:
        return row if parents[row] == row else root(parents[row])

    for i, j in itertools.combinations(range(n), 2):
        if int(hashes[i] ^ hashes[j]).bit_count() > max_bits:
            continue
        one, other = thumbnails[i].astype(float), thumbnails[j].astype(float)
        centred = one - one.mean(), other - other.mean()
        norm = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
        correlated = norm > 0 and (centred[0] * centred[1]).sum() >= MIN_CORRELATION * norm
        if correlated or ((one - other) ** 2).mean() <= 1:
            low, high = sorted((root(i), root(j)))
            parents[high] = low
    return [root(row) for row in range(n)]


def scene(rng: np.random.Generator, n: int, n_motifs: int) -> tuple[Hashes, Thumbnails]:
    """n pictures of few motifs, with some bits and some grey levels changed in each."""
    motifs = rng.integers(0, 256, (n_motifs, 256))
    base = rng.integers(0, 2**64, n_motifs, dtype=np.uint64)
    which = rng.integers(0, n_motifs, n)
    hashes = base[which]
    for row in range(n):
        for bit in rng.integers(0, 64, rng.integers(0, 6)):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    noise = rng.integers(-30, 31, (n, 256)) * rng.integers(0, 2, (n, 1))
    return hashes, np.clip(motifs[which] + noise, 0, 255).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 8), st.sampled_from([0, 1, 4, 8]))
@pytest.mark.parametrize("small_bucket", [0, 3, 2048])
def test_clusters_are_those_of_all_pairs(
    small_bucket: int, seed: int, n: int, n_motifs: int, max_bits: int
) -> None:
    hashes, thumbnails = scene(np.random.default_rng(seed), n, n_motifs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_SMALL_BUCKET", small_bucket)
        patch.setattr(duplicates, "_BLOCK_ROWS", 5)
        patch.setattr(duplicates, "_PAIRS_AT_ONCE", 7)
        found = near_duplicate_clusters(hashes, thumbnails, max_bits=max_bits)
    assert found.tolist() == all_pairs(hashes, thumbnails, max_bits)


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


def looks(images: list[Image.Image]) -> list[int]:
    facts = np.concatenate([inspect(encode(i), b"\0" * 32, max_pixels=10**8) for i in images])
    found: list[int] = near_duplicate_clusters(
        facts["phash"], facts["thumbnail"], max_bits=4
    ).tolist()
    return found


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


def test_passed_on_photographs_are_near_duplicates_and_others_are_not() -> None:
    originals = [picture(seed, (320, 240)) for seed in range(12)]
    images = [variant for original in originals for variant in variants(original)]
    found = looks(images)
    each = len(variants(originals[0]))
    assert found == [row // each * each for row in range(len(images))]


def test_flat_pictures_are_alike_if_they_have_the_same_grey() -> None:
    greys = [
        Image.new("RGB", (50 + i, 40), (level,) * 3) for i, level in enumerate([0, 0, 90, 255])
    ]
    assert looks(greys) == [0, 0, 2, 3]


def test_hashes_are_pinned() -> None:
    # The groups, and so the splits, of every user hang on these bits.
    hashes = perceptual_hashes([picture(seed).convert("L") for seed in range(2)])
    assert hashes.tolist() == [0xFC9848E313C4AE3B, 0x8CE3D8B83ACBC534]
