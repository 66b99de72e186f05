"""Statistics of images, and issues: of pictures that plainly have one, and of one that has none."""

import numpy as np
import pytest
from PIL import Image

from headstart.dataset.image_statistics import (
    FLAG_MEANINGS,
    STATISTICS,
    inspect,
    quality_flags,
    sample,
    sample_and_input,
    statistics_of,
)
from headstart.dataset.manifest import FLAGS
from headstart.params.image import ImageParams
from tests.images.pictures import encode

RNG = np.random.default_rng(0)


def textured(size: tuple[int, int] = (200, 150), low: int = 0, high: int = 256) -> Image.Image:
    """A picture full of edges, with grey levels from `low` to `high`."""
    noise = RNG.integers(low, high, (size[1] // 10 + 1, size[0] // 10 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)


def smooth() -> Image.Image:
    """All grey levels and no edge: what the worst of focus makes of a scene."""
    ramp = np.tile(np.linspace(0, 255, 200), (150, 1)).astype(np.uint8)
    return Image.fromarray(ramp).convert("RGB")


def test_statistics_do_not_depend_on_the_other_images_of_a_call() -> None:
    sizes = [(500, 375), (375, 500), (192, 20), (100, 60), (28, 28), (2, 9), (1, 1), (4000, 3)]
    images = [textured(size) for size in sizes] + [textured((300, 200)).convert("L")]
    samples = [sample(encode(i), bytes([n]) * 32, max_pixels=10**8) for n, i in enumerate(images)]
    at_once = statistics_of(samples)
    for row, one in enumerate(samples):
        assert statistics_of([one]).tobytes() == at_once[row : row + 1].tobytes()
    assert at_once["width"].tolist() == [*(width for width, _ in sizes), 300]


def flags_of(image: Image.Image) -> set[str]:
    statistics = inspect(encode(image), b"\0" * 32, max_pixels=10**8)
    flags = quality_flags(statistics, np.zeros(1, np.int64))
    return {name for name, values in flags.items() if values[0]}


def test_a_good_picture_has_no_flag() -> None:
    assert flags_of(textured()) == set()


@pytest.mark.parametrize(
    ("image", "flag"),
    [
        (textured(high=60), "dark"),
        (textured(low=246), "light"),
        (Image.new("RGB", (200, 150), (120, 130, 140)), "low_information"),
        (smooth(), "blurry"),
        (textured((400, 100)), "odd_aspect_ratio"),
        (textured((100, 400)), "odd_aspect_ratio"),
    ],
)
def test_pictures_that_deserve_a_flag(image: Image.Image, flag: str) -> None:
    assert flag in flags_of(image)


def large(image: Image.Image) -> bytes:
    side = 8 * max(image.size)
    size = tuple(side * own // max(image.size) for own in image.size)
    return encode(image.resize((size[0], size[1]), Image.Resampling.BICUBIC), "JPEG", quality=92)


@pytest.mark.parametrize("size_px", [100, 224, 384, 600, 1024])
def test_the_input_size_changes_no_issue(size_px: int) -> None:
    """Where the input needs more pixels than statistics do, they are of those, reduced."""
    images = (
        textured(), textured(high=60), textured(low=246), smooth(), textured((400, 100)),
        Image.new("RGB", (200, 150), (120, 130, 140)),
    )  # fmt: skip
    for image in images:
        data = large(image)
        alone = inspect(data, b"\0" * 32, max_pixels=10**8)
        found, pixels = sample_and_input(
            data, b"\0" * 32, ImageParams(size=size_px), max_pixels=10**8
        )
        row = statistics_of([found])
        assert pixels.shape == (size_px, size_px, 3)
        assert (row["width"], row["height"]) == (alone["width"], alone["height"])
        flags, expected = (quality_flags(own, np.zeros(1, np.int64)) for own in (row, alone))
        assert {k: v.tolist() for k, v in flags.items()} == {
            k: v.tolist() for k, v in expected.items()
        }
        difference = row["thumbnail"].astype(int) - alone["thumbnail"].astype(int)
        assert np.abs(difference).max() <= 2


def test_sizes_are_odd_within_their_class() -> None:
    sizes = np.array([100, 101, 99, 100, 1000, 1000, 1010, 990, 1000, 100], float)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], np.int64)
    statistics = np.zeros(len(sizes), STATISTICS)
    statistics["width"] = statistics["height"] = sizes
    flags = quality_flags(statistics, labels)
    assert np.flatnonzero(flags["odd_size"]).tolist() == [4, 9]


def test_every_flag_is_explained_and_no_pictures_have_none() -> None:
    assert set(FLAG_MEANINGS) == set(FLAGS)
    flags = quality_flags(np.zeros(0, STATISTICS), np.zeros(0, np.int64))
    assert all(len(values) == 0 for values in flags.values())
