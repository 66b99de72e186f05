"""Views: the plain one is the one decode, the others are drawn by content, seed and number."""

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from headstart.features.pipeline import Decoder, Task
from headstart.features.views import ViewPlan
from headstart.images.decode import decode, decode_input
from headstart.images.input_pixels import InputPixels
from headstart.params.image import ImageParams
from tests.features.samples import pixels

IMAGE = ImageParams(size=32)
SHA = "ab" * 32


def encoded(height: int = 40, width: int = 60) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(1, height, width)).save(stream, "PNG")
    return stream.getvalue()


def drawn(
    plan: ViewPlan, views: Iterable[int], sha256: str = SHA, image: bytes | None = None
) -> NDArray[np.uint8]:
    whole = decode(encoded() if image is None else image)
    return np.stack([plan.augmented(whole, sha256, view, IMAGE) for view in views])


def squares(plan: ViewPlan, views: tuple[int, ...], sha256: str = SHA) -> list[bytes]:
    found = drawn(plan, views, sha256)
    assert (found.shape, found.dtype.name) == ((len(views), 32, 32, 3), "uint8")
    return [square.tobytes() for square in found]


def test_view_0_is_the_plain_square(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    sha256 = hashlib.sha256(encoded()).hexdigest()
    files = InputPixels(tmp_path / "cache", tmp_path, IMAGE, max_pixels=10_000)
    found = Decoder(files, ViewPlan(4, 7))(Task("a.png", sha256, (0, 2)))
    np.testing.assert_array_equal(found[0], decode_input(encoded(), IMAGE))
    np.testing.assert_array_equal(found[1:], drawn(ViewPlan(4, 7), (2,), sha256))


def test_a_view_depends_on_content_seed_and_number_alone() -> None:
    plan = ViewPlan(6, 7)
    together = squares(plan, (1, 2, 3, 4, 5))
    assert len(set(together)) == 5
    assert squares(plan, (4,)) == [together[3]]
    assert squares(ViewPlan(3, 7), (1, 2)) == together[:2]
    assert squares(ViewPlan(6, 8), (1,)) != together[:1]
    assert squares(plan, (1,), "cd" * 32) != together[:1]


def test_views_look_like_the_image() -> None:
    plain = decode_input(encoded(), IMAGE).astype(float)
    found = drawn(ViewPlan(16, 0), range(1, 16))
    mirrored = 0
    for square in found.astype(float):
        straight, flipped = (
            np.corrcoef(plain.ravel(), view.ravel())[0, 1] for view in (square, square[:, ::-1])
        )
        mirrored += int(flipped > straight)
        assert max(straight, flipped) > 0.5
    assert 0 < mirrored < 15


def test_keys_of_views_differ_by_seed_and_number() -> None:
    keys = {ViewPlan(4, seed).key(view) for seed in range(3) for view in range(1, 4)}
    assert len(keys) == 9
    assert {ViewPlan(4, seed).key(0) for seed in range(3)} == {bytes(8)}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1)])
def test_the_smallest_images_have_views(height: int, width: int) -> None:
    found = drawn(ViewPlan(3, 0), (1, 2), image=encoded(height, width))
    assert found.shape == (2, 32, 32, 3)
