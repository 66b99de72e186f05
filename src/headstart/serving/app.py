"""The server: images in, classes out, behind limits on what a request may be.

It speaks MLflow's scoring protocol (`/invocations`, `/ping`, `/health`, `/version`), but is not
MLflow's own app: that reads a body of any size, parses whatever its Content-Type says, answers
nested JSON with 500, repeats in its errors what was sent, and computes for clients that are gone.
"""

import asyncio
import email.message
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
import uvicorn
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, load_model
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from headstart.common.errors import HeadstartError, ServingError, one_line
from headstart.common.machine import usable_cores
from headstart.serving.requests import IMAGE_COLUMN, read_csv, read_json
from headstart.tracking.store import prepare_mlflow

MAX_BODY_BYTES = 64 * 2**20
Reader = Callable[[bytearray], list[object]]
_READERS: dict[str, Reader] = {"application/json": read_json, "text/csv": read_csv}


def serve(model: str, host: str, port: int, tracking_uri: str) -> None:
    """Serve a pyfunc model (a folder, or an MLflow model URI) until interrupted.

    Raises:
        ServingError: there is no such model, or it cannot be loaded.
    """
    prepare_mlflow()
    mlflow.set_tracking_uri(tracking_uri)
    with served_model(model) as loaded:
        app = make_app(loaded)
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_keep_alive=10)


@contextmanager
def served_model(model: str) -> Iterator[PyFuncModel]:
    """Load a model of this project, from a folder of any name or from an MLflow model URI.

    Raises:
        ServingError: there is no such model, or it cannot be loaded, or it is none of ours.
    """
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
        yield loaded


def make_app(model: PyFuncModel, max_body_bytes: int = MAX_BODY_BYTES) -> Starlette:
    """Return the ASGI app that serves a loaded model.

    Requests are parsed and answered in threads, at most one per core at a time; the others wait
    with their bodies in memory, and those whose clients hang up meanwhile are dropped. The event
    loop only moves bytes, so `/ping` answers at once whatever is being computed.
    """
    turns = asyncio.Semaphore(usable_cores())

    async def invocations(request: Request) -> Response:
        read = _READERS[_media_type(request)]
        body = bytearray()
        if int(request.headers.get("content-length", 0)) > max_body_bytes:
            raise _too_large(max_body_bytes)
        try:
            async for part in request.stream():
                body += part
                if len(body) > max_body_bytes:
                    raise _too_large(max_body_bytes)
            # uvicorn stops listening to a client whose body lies unread; asking resumes that.
            await request.is_disconnected()
            async with turns:
                if await request.is_disconnected():
                    raise ClientDisconnect
                content = await asyncio.to_thread(_answer, model, read, body)
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
            Route("/version", version),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )


def _media_type(request: Request) -> str:
    """Return application/json or text/csv; nothing else is read, no Content-Type included.

    Without the header a body is of unknown type (RFC 9110, section 8.3), and guessing what
    somebody sent is how parsers of hostile formats get called.
    """
    header = email.message.Message()
    header["content-type"] = request.headers.get("content-type", "application/octet-stream")
    media_type, charset = header.get_content_type(), header.get_content_charset("utf-8")
    if media_type not in _READERS or charset not in ("utf-8", "us-ascii"):
        raise HTTPException(
            415,
            "a request must be JSON or CSV in UTF-8 and say so: send it with the header "
            "Content-Type: application/json or text/csv",
        )
    return media_type


def _too_large(max_body_bytes: int) -> HTTPException:
    limit = f"{max_body_bytes // 2**20} MiB"
    return HTTPException(413, f"a request may have {limit}: send fewer or smaller images")


def _answer(model: PyFuncModel, read: Reader, body: bytearray) -> str:
    images = pd.DataFrame({IMAGE_COLUMN: pd.Series(read(body), dtype=object)})
    try:
        predictions = pd.DataFrame(model.predict(images))
    except MlflowException as error:
        raise ServingError(error.message) from None
    return json.dumps({"predictions": predictions.to_dict("records")})


def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    content = {"error_code": "BAD_REQUEST", "message": error.detail}
    return JSONResponse(content, error.status_code, error.headers)


def _fail(_request: Request, _error: Exception) -> Response:
    # The traceback goes to the server's own log.
    return JSONResponse({"error_code": "INTERNAL_ERROR", "message": "the server failed"}, 500)
