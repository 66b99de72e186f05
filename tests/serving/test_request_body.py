"""Bodies are read by their media type, in linear time."""

import contextlib
import time
from functools import partial
from typing import Any

import pytest

from headstart.common.errors import ServingError
from headstart.serving.request_body import (
    numbers,
    read_csv_body,
    read_form_body,
    read_image_body,
    read_json_body,
    reader_of,
)


@pytest.mark.parametrize(
    ("content_type", "reader"),
    [
        ("application/json", read_json_body),
        ('Application/JSON; charset="UTF-8"; profile=x', read_json_body),
        ("text/csv; charset=us-ascii", read_csv_body),
        ("IMAGE/*", read_image_body),
        ("application/octet-stream", read_image_body),
        ("multipart/form-data", None),
        ("application/json; charset=utf-16", None),
        ("image/png; charset=latin-1", None),
        ("text/plain", None),
        ("", None),
        (None, None),
    ],
)
def test_a_media_type_has_one_reader_or_is_not_read(content_type: str | None, reader: Any) -> None:
    assert reader_of(content_type) is reader


def test_a_form_is_read_by_its_boundary() -> None:
    found = reader_of("multipart/form-data; boundary=a-b")
    assert isinstance(found, partial)
    assert (found.func, found.keywords) == (read_form_body, {"boundary": "a-b"})


def test_parameters_of_an_address_are_numbers_where_they_can_be() -> None:
    deep = "[" * 5000
    given = {"top_k": "3", "threshold": "0.5", "on_error": "row", "deep": deep, "long": "9" * 5000}
    expected = {**given, "top_k": 3, "threshold": 0.5}
    assert numbers(given) == expected


@pytest.mark.parametrize("read", [read_json_body, read_csv_body])
@pytest.mark.parametrize(
    ("start", "again"),
    [
        (b'{"dataframe_records":[{"image":"', b'\\"'), (b'{"inputs":{"image":"', b"\\u0041"),
        (b'{"inputs":{"image":', b"1"), (b'{"inputs":{"image":0.', b"1"), (b"", b"["),
        (b"[", b"{},"), (b"", b"\\"), (b"", b'"'), (b"", b" "), (b"image", b"\n"),
        (b"image\n", b"x\n"), (b'image\n"', b'""\n'), (b"image", b",image"),
        (b"", "\U0001f600".encode()),
    ],
)  # fmt: skip
def test_reading_takes_linear_time(read: Any, start: bytes, again: bytes) -> None:
    """Four megabytes in less than two seconds; by quadratic time they take hours."""
    started = time.perf_counter()
    with contextlib.suppress(ServingError):
        read(start + again * (4_000_000 // len(again)))
    assert time.perf_counter() - started < 2
