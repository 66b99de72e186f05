"""The server: images in, classes out, behind limits on what a request may be.

It speaks MLflow's scoring protocol (`/invocations`, `/ping`, `/health`, `/version`), but is not
MLflow's own app: that reads a body of any size, parses whatever its Content-Type says, answers
nested JSON with 500, repeats in its errors what was sent, and computes for clients that are gone.
"""

import asyncio
import email.message
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import uvicorn
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, load_model
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser

from headstart.common.errors import HeadstartError, ServingError, one_line
from headstart.common.machine import usable_cores
from headstart.serving.package import IMAGE_COLUMN, MAX_IMAGES
from headstart.tracking.store import prepare_mlflow

MAX_BODY_BYTES = 64 * 2**20
# Commas and opening brackets of a body: it can hold no more values and columns than these. Base64
# has neither, so this is room for 256 rows of a dozen fields.
_MAX_SEPARATORS = 4096
_BYTES = "application/octet-stream"
_FORM, _MAX_FIELDS = "multipart/form-data", 16
Params = dict[str, Any]
Reader = Callable[[bytearray], tuple[list[object], Params]]
_FORMS = {"dataframe_records", "dataframe_split", "inputs", "instances"}


def run_server(model: str, host: str, port: int, tracking_uri: str) -> None:
    """Serve a model of this project (a folder, or an MLflow model URI) until interrupted.

    Raises:
        ServingError: there is no such model, or it cannot be loaded, or it is none of ours.
    """
    prepare_mlflow()
    mlflow.set_tracking_uri(tracking_uri)
    is_folder = (Path(model) / "MLmodel").is_file()
    if not is_folder and ":" not in model:
        raise ServingError(
            f"a pyfunc model folder must hold an MLmodel file, but {model} does not: run "
            "`dvc repro package` or `dvc pull models/serving`"
        )
    with tempfile.TemporaryDirectory(prefix="headstart-serving-") as scratch:
        try:
            if not is_folder:
                folder = mlflow.artifacts.download_artifacts(model, dst_path=scratch)
            elif "%" in str(Path(model).resolve()):
                # MLflow would read it as an address, and follows no link out of a folder.
                folder = str(shutil.copytree(model, Path(scratch) / "model"))
            else:
                folder = model
            loaded = load_model(folder)
            schema = loaded.metadata.get_input_schema()  # type: ignore[no-untyped-call]
        except HeadstartError:
            raise
        except Exception as error:
            # Stores, YAML, MLflow and whatever code the folder carries: each has errors of its own.
            raise ServingError(
                f"a served model must load, but {model} does not ({type(error).__name__}: "
                f"{one_line(error)}): correct the address, start the tracking server, or make the "
                "model again with `dvc repro --force train`"
            ) from None
        columns = schema.input_names() if schema else None
        if columns != [IMAGE_COLUMN]:
            raise ServingError(
                f"a served model must take one column {IMAGE_COLUMN!r}, but {model} takes "
                f"{columns}: name a model of this project"
            )
        # Before it listens: the first pass of a session takes longer than the others.
        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, format="PNG")
        loaded.predict(pd.DataFrame({IMAGE_COLUMN: [picture.getvalue()]}))
        app = make_app(loaded)
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=10)


def make_app(model: PyFuncModel, max_body_bytes: int = MAX_BODY_BYTES) -> Starlette:
    """Return the ASGI app that serves a loaded model.

    Requests are parsed and answered in threads, at most one per core at a time; the others wait
    with their bodies in memory, and those whose clients hang up meanwhile are dropped. The event
    loop only moves bytes, so `/ping` answers at once whatever is being computed.
    """
    turns = asyncio.Semaphore(usable_cores())

    async def invocations(request: Request) -> Response:
        # Without the header a body is of unknown type (RFC 9110, section 8.3), and guessing what
        # somebody sent is how parsers of hostile formats get called.
        header = email.message.Message()
        header["content-type"] = request.headers.get("content-type", "unknown/unknown")
        media_type, charset = header.get_content_type(), header.get_content_charset("utf-8")
        is_image = header.get_content_maintype() == "image" or media_type == _BYTES
        read = read_image_body if is_image else _READERS.get(media_type)
        if media_type == _FORM and (boundary := header.get_boundary()):
            read = partial(read_form_body, boundary=boundary)
        if read is None or charset not in ("utf-8", "us-ascii"):
            raise HTTPException(
                415,
                "a request must be an image, a form with images, or JSON or CSV in UTF-8, and say "
                "so: send it with the header Content-Type: image/jpeg, multipart/form-data, "
                "application/json or text/csv",
            )
        limit = f"{max_body_bytes // 2**20} MiB"
        too_large = f"a request may have {limit}: send fewer or smaller images"
        body = bytearray()
        if int(request.headers.get("content-length", 0)) > max_body_bytes:
            raise HTTPException(413, too_large)
        try:
            async for part in request.stream():
                body += part
                if len(body) > max_body_bytes:
                    raise HTTPException(413, too_large)
            # uvicorn stops listening to a client whose body lies unread; asking resumes that.
            await request.is_disconnected()
            async with turns:
                if await request.is_disconnected():
                    raise ClientDisconnect
                content = await asyncio.to_thread(_answer, model, read, body, request.query_params)
        except ClientDisconnect:
            return Response(status_code=499)  # nginx's number; nobody reads it
        except ServingError as error:
            raise HTTPException(400, str(error)) from None
        finally:
            # An exception's traceback holds it, until the garbage collector comes by.
            body.clear()
        return Response(content, media_type="application/json")

    async def ping(_request: Request) -> Response:
        return Response("\n", media_type="application/json")

    async def version(_request: Request) -> Response:
        return Response(mlflow.__version__, media_type="application/json")

    return Starlette(
        routes=[
            Route("/invocations", invocations, methods=["POST"]),
            Route("/ping", ping),
            Route("/health", ping),
            Route("/ready", ping),  # it listens when it is
            Route("/version", version),
        ],
        exception_handlers={HTTPException: _failure, Exception: _failure},
    )


def _answer(model: PyFuncModel, read: Reader, body: bytearray, query: Mapping[str, str]) -> str:
    values, params = read(body)
    images = pd.DataFrame({IMAGE_COLUMN: pd.Series(values, dtype=object)})
    try:
        predictions = pd.DataFrame(model.predict(images, {**_numbers(query), **params}))
    except MlflowException as error:
        raise ServingError(error.message) from None
    return json.dumps({"predictions": predictions.to_dict("records")})


def _failure(_request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        content = {"error_code": "BAD_REQUEST", "message": error.detail}
        return JSONResponse(content, error.status_code, error.headers)
    # The traceback goes to the server's own log.
    return JSONResponse({"error_code": "INTERNAL_ERROR", "message": "the server failed"}, 500)


def _numbers(query: Mapping[str, str]) -> Params:
    """The parameters of an address or a form: numbers where they are."""
    found: Params = {}
    for name, text in query.items():
        try:
            found[name] = json.loads(text)
        except ValueError:
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
        return images, _numbers(form.to_dict())
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


# Beside images no other media type is read.
_READERS: dict[str, Reader] = {"application/json": read_json_body, "text/csv": read_csv_body}
