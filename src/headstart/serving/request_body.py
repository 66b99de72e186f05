"""The bodies of requests: each media type has a reader, and nothing else is read.

A reader returns the column `image` and the parameters, in time that grows with the body's length.
"""

import email.message
import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser

from headstart.common.errors import ServingError
from headstart.serving.package import IMAGE_COLUMN, MAX_IMAGES

# Commas and opening brackets of a body: it can hold no more values and columns than these. Base64
# has neither, so this is room for 256 rows of a dozen fields.
_MAX_SEPARATORS = 4096
_BYTES = "application/octet-stream"
_FORM, _MAX_FIELDS = "multipart/form-data", 16
Params = dict[str, Any]
Reader = Callable[[bytearray], tuple[list[object], Params]]
_FORMS = {"dataframe_records", "dataframe_split", "inputs", "instances"}


def reader_of(content_type: str | None) -> Reader | None:
    """Return what reads a body with this Content-Type, or None: it is not read at all.

    Without the header a body is of unknown type (RFC 9110, section 8.3), and guessing what somebody
    sent is how parsers of hostile formats get called.
    """
    header = email.message.Message()
    header["content-type"] = content_type or "unknown/unknown"
    media_type = header.get_content_type()
    if header.get_content_charset("utf-8") not in ("utf-8", "us-ascii"):
        return None
    if header.get_content_maintype() == "image" or media_type == _BYTES:
        return read_image_body
    if media_type == _FORM and (boundary := header.get_boundary()):
        return partial(read_form_body, boundary=boundary)
    return {"application/json": read_json_body, "text/csv": read_csv_body}.get(media_type)


def numbers(query: Mapping[str, str]) -> Params:
    """Return the parameters of an address or a form: numbers where they are."""
    found: Params = {}
    for name, text in query.items():
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            found[name] = text
    return found


def read_image_body(body: bytes | bytearray) -> tuple[list[object], Params]:
    """Return the column `image` of a body that is an image file, and no parameters."""
    return [bytes(body)], {}


def read_form_body(body: bytes | bytearray, boundary: str) -> tuple[list[object], Params]:
    """Return the files of a form (multipart/form-data) as images, and its fields as parameters.

    Raises:
        ServingError: it is no such form, or has more than a request may have.
    """
    parser = MultiPartParser(
        # In memory, where the body is already, in place of temporary files.
        lambda *_, **__: io.BytesIO(),
        max_form_parts=MAX_IMAGES + _MAX_FIELDS,
        max_form_memory_size=2**16,
    )
    try:
        form, sent = parser.parse(io.BytesIO(body), boundary.encode(), len(body))
        images: list[object] = [file.read() for _, file in sent.items(multi=True)]
    except (ValueError, RequestEntityTooLarge):
        pass  # so that what is raised does not hold the parser's error, which may hold the body
    else:
        return images, numbers(form.to_dict())
    raise ServingError(
        f"the body must be a form of at most {MAX_IMAGES} files and {_MAX_FIELDS} short fields, as "
        "`curl -F image=@photo.jpg` sends it, but it is not: send it so, or JSON"
    )


def read_json_body(body: bytes | bytearray) -> tuple[list[object], Params]:
    """Return the column `image` of a body in any of MLflow's JSON forms, and its parameters.

    In linear time. MLflow's own reader is not used: it pads the strings of `inputs` to the longest
    one, so that one image of 32 MiB beside 200 small ones takes 30 GB.

    Raises:
        ServingError: it is no such body.
    """
    _check_size(body)
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        request = None
    # The forms as MLflow documents them; two in one body are none.
    forms = _FORMS & request.keys() if isinstance(request, dict) else ()
    params = request.get("params") or {} if isinstance(request, dict) else {}
    match request if len(forms) == 1 and isinstance(params, dict) else None:
        case {"dataframe_records": list(rows)} | {"instances": list(rows)}:
            if all(isinstance(row, dict) for row in rows):
                return [row.get(IMAGE_COLUMN) for row in rows], params
        case {"dataframe_split": {"columns": list(names), "data": list(rows)}}:
            if IMAGE_COLUMN in names and all(
                isinstance(row, list) and len(row) == len(names) for row in rows
            ):
                return [row[names.index(IMAGE_COLUMN)] for row in rows], params
        case {"inputs": {"image": list(values)}}:
            return values, params
        case {"inputs": {"image": value}}:
            return [value], params
    raise ServingError(
        f'the body must be JSON like {{"dataframe_records": [{{"{IMAGE_COLUMN}": "<base64>"}}]}}, '
        "but it is not: see docs/serving.md for the other forms"
    )


def read_csv_body(body: bytes | bytearray) -> tuple[list[object], Params]:
    """Return the column `image` of a CSV body, and no parameters.

    In linear time; rows beyond the limit are not read.

    Raises:
        ServingError: it is no CSV with that column.
    """
    _check_size(body)
    try:
        table = pd.read_csv(
            io.BytesIO(body),
            usecols=[IMAGE_COLUMN],
            dtype=str,
            keep_default_na=False,
            nrows=MAX_IMAGES + 1,
        )
        return list(table[IMAGE_COLUMN]), {}
    except ValueError:  # pandas' parser errors and UnicodeDecodeError are such
        pass  # so that what is raised does not hold pandas' error, which holds the body
    raise ServingError(
        f"the body must be CSV with a header and a column {IMAGE_COLUMN!r} of base64, but it "
        "is not: send JSON if in doubt"
    )


def _check_size(body: bytes | bytearray) -> None:
    if len(body) - len(body.translate(None, b",[{")) > _MAX_SEPARATORS:
        raise ServingError(
            f"a request may hold {MAX_IMAGES} images and {_MAX_SEPARATORS} commas and opening "
            "brackets, but got more: split it, or leave out columns that are not used"
        )
