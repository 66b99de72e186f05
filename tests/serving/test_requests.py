"""What a request may be, and what is said of one that may not."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from headstart.common.errors import ServingError
from headstart.params.image import ImageParams
from headstart.serving.requests import MAX_IMAGES, answer, decode_request

IMAGE = ImageParams(size=32)


def _png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_base64_becomes_pixels() -> None:
    pixels = decode_request([_text(_png((255, 0, 0))), _text(_png((0, 0, 255)))], IMAGE)
    assert pixels.shape == (2, 32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels[0, 5, 5].tolist() == [255, 0, 0]
    assert pixels[1, 5, 5].tolist() == [0, 0, 255]


def test_data_uris_and_line_breaks_are_tolerated() -> None:
    plain = _text(_png((9, 9, 9)))
    wrapped = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    pixels = decode_request([f"data:image/png;base64,{plain}", wrapped], IMAGE)
    assert (pixels[0] == pixels[1]).all()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "row 1: `image` must be a string of base64, but got a NoneType"),
        (7, "row 1: `image` must be a string of base64, but got a int"),
        ("", "row 1: `image` must not be empty"),
        ("not base64 !!", "row 1: `image` must be base64 of an image file's bytes"),
        ("data:image/png,abc", "row 1: a data: URI must be of the form"),
        (_text(b"<html>no image</html>"), "row 1: .*"),
        (_text(_png((1, 2, 3))[:40]), "row 1: .*"),
    ],
)
def test_a_bad_row_is_named_and_not_repeated(value: object, says: str) -> None:
    with pytest.raises(ServingError, match=says) as caught:
        decode_request([_text(_png((0, 0, 0))), value], IMAGE)
    if isinstance(value, str) and value:
        assert value not in str(caught.value)


def test_too_many_and_none() -> None:
    with pytest.raises(ServingError, match=f"1 to {MAX_IMAGES} images, but got 0"):
        decode_request([], IMAGE)
    with pytest.raises(ServingError, match=f"but got {MAX_IMAGES + 1}: split it"):
        decode_request(["x"] * (MAX_IMAGES + 1), IMAGE)


def test_the_answer_has_a_column_a_class() -> None:
    table = answer(np.array([[0.2, 0.8], [0.9, 0.1]], np.float32), ["ant", "bee"])
    assert list(table.columns) == ["predicted_label", "predicted_label_id", "p(ant)", "p(bee)"]
    assert table["predicted_label"].tolist() == ["bee", "ant"]
    assert table["predicted_label_id"].tolist() == [1, 0]
