"""The app: images in, classes out, behind limits on what a request may be.

It speaks MLflow's scoring protocol (`/invocations`, `/ping`, `/health`, `/version`), but is not
MLflow's own app: that reads a body of any size, parses whatever its Content-Type says, answers
nested JSON with 500, repeats in its errors what was sent, and computes for clients that are gone.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import io
import json
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PyFuncModel
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.common.errors import HeadstartError, ServingError
from headstart.common.machine import usable_cores
from headstart.common.terminal import say
from headstart.evaluation.explain import GradCam, overlay
from headstart.models.answers import answers_as_rows
from headstart.models.model_file import LoadedModel
from headstart.serving.metrics import ServingMetrics
from headstart.serving.package import DEFAULTS
from headstart.serving.pyfunc_model import answer_request, check_options, read_image
from headstart.serving.request_body import Params, Reader, numbers, reader_of

MAX_BODY_BYTES = 64 * 2**20
MAX_HELD_BYTES = 256 * 2**20
SEND_S = 60.0
_LAST_WORDS_S = 0.3
_PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
# A page that must ask for the key cannot need it, nor do those who ask whether the server lives.
_OPEN = {"/", "/ping", "/health", "/ready"}
# As MLflow calls these.
_CODES = {401: "UNAUTHENTICATED", 503: "TEMPORARILY_UNAVAILABLE"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
Compute = Callable[[list[object], Params, dict[str, Any]], tuple[bytes, str]]


def make_app(
    model: PyFuncModel,
    *,
    registered: Mapping[str, str] | None = None,
    api_key: str = "",
    max_body_bytes: int = MAX_BODY_BYTES,
    max_held_bytes: int = MAX_HELD_BYTES,
    send_s: float = SEND_S,
) -> ASGIApp:
    """Return the ASGI app that serves a loaded model.

    Args:
        registered: the model's `name` and `version` in a registry, where it has one.
        api_key: what requests must show as `Authorization: Bearer …`; empty: nothing.
        max_body_bytes, max_held_bytes: of one request's body; of all bodies in memory together.
        send_s: seconds in which a body must have arrived.
    """
    loaded: LoadedModel = model.unwrap_python_model().loaded  # type: ignore[no-untyped-call]
    metrics = ServingMetrics()
    turns = _Turns(metrics, max_body_bytes, max_held_bytes, send_s)
    cam = _LazyGradCam(loaded)

    def predict(values: list[object], params: Params, state: dict[str, Any]) -> tuple[bytes, str]:
        # As the pyfunc model, without MLflow's wrapper and its tables, which cost an image alone a
        # quarter more.
        if params.keys() - DEFAULTS.keys():
            raise ServingError(
                f"the parameters of a request are {', '.join(DEFAULTS)}, but got another: correct "
                "its name or leave it out"
            )
        options = {**DEFAULTS, **params}
        check_options(options)
        by_row = options.pop("on_error") == "row"
        answers = answer_request(loaded, values, refuse=not by_row)
        told = {"has_novelty": loaded.novelty is not None, "with_reasons": by_row, **options}
        rows = answers_as_rows(answers, loaded.classes, **told)
        state["n_images"] = len(rows)
        metrics.count_answers(answers)
        return json.dumps({"predictions": rows}).encode(), "application/json"

    def explain(values: list[object], params: Params, state: dict[str, Any]) -> tuple[bytes, str]:
        if len(values) != 1 or params:
            raise ServingError(
                f"/explain takes one image and no parameters, but got {len(values)} and "
                f"{len(params)}: send each alone"
            )
        pixels = read_image(values[0], loaded.image)
        state["n_images"] = 1
        _, probabilities = loaded.inference.outputs(pixels)
        heat = cam.get().heat(pixels[None], np.array([probabilities.argmax()]))[0]
        picture = io.BytesIO()
        Image.fromarray(overlay(pixels, heat)).save(picture, format="PNG")
        return picture.getvalue(), "image/png"

    async def ping(_request: Request) -> Response:
        return Response("\n", media_type="application/json")

    async def version(_request: Request) -> Response:
        # MLflow's own clients ask for this, and mean MLflow's.
        return Response(mlflow.__version__, media_type="application/json")

    async def about(_request: Request) -> Response:
        recipe = {key: value for key, value in loaded.metadata.items() if key != "classes"}
        named = {"name": None, "version": None, **(registered or {})}
        return JSONResponse({**named, "classes": loaded.classes, "recipe": recipe})

    async def counted(_request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def page(_request: Request) -> Response:
        return Response(_PAGE, media_type="text/html", headers=_PAGE_HEADERS)

    routes = [
        Route("/", page),
        Route("/invocations", turns.answering(predict), methods=["POST"]),
        Route("/explain", turns.answering(explain), methods=["POST"]),
        *(Route(path, ping) for path in ("/ping", "/health", "/ready")),  # it listens when it is
        Route("/version", version),
        Route("/model", about),
        Route("/metrics", counted),
    ]
    handlers: Any = {HTTPException: _failure, Exception: _failure}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=_lifespan)
    # To an address with the client's own Host in it.
    app.router.redirect_slashes = False
    return _Observed(app, {route.path for route in routes}, metrics, api_key)


@contextlib.asynccontextmanager
async def _lifespan(_app: Starlette) -> AsyncIterator[None]:
    yield
    await asyncio.sleep(_LAST_WORDS_S)  # in which requests that the end cuts short are told so


class _Turns:
    """Reads bodies within limits, and computes answers in threads, at most one per core at a time.

    The others wait with their bodies in memory, and those whose clients hang up meanwhile are
    dropped. The event loop only moves bytes, so `/ping` answers at once whatever is computed.
    """

    def __init__(
        self, metrics: ServingMetrics, max_body_bytes: int, max_held_bytes: int, send_s: float
    ) -> None:
        self._cores = asyncio.Semaphore(usable_cores())
        self._metrics = metrics
        self._max_body_bytes, self._max_held_bytes = max_body_bytes, max_held_bytes
        self._held_bytes = 0
        self._send_s = send_s

    def answering(self, compute: Compute) -> Callable[[Request], Any]:
        """Return an endpoint that answers with what `compute` makes of images and parameters."""

        async def endpoint(request: Request) -> Response:
            read = reader_of(request.headers.get("content-type"))
            if read is None:
                raise HTTPException(
                    415,
                    "a request must be an image, a form with images, or JSON or CSV in UTF-8, and "
                    "say so: send it with the header Content-Type: image/jpeg, "
                    "multipart/form-data, application/json or text/csv",
                )
            state = request.scope["state"]
            body = bytearray()
            try:
                await self._receive(request, body)
                # uvicorn stops listening to a client whose body lies unread; asking resumes that.
                await request.is_disconnected()
                with self._metrics.waiting.track_inprogress():
                    await self._cores.acquire()
                try:
                    if await request.is_disconnected():
                        raise ClientDisconnect
                    content, media_type = await asyncio.to_thread(
                        _answer, read, body, request.query_params, compute, state
                    )
                finally:
                    self._cores.release()
            except ClientDisconnect:
                return Response(status_code=499)  # nginx's number; nobody reads it
            except HeadstartError as error:
                raise HTTPException(400, str(error)) from None
            except asyncio.CancelledError:
                # Only an end of the server cancels a request.
                raise _busy("the server is ending") from None
            finally:
                self._hold(-len(body))
                # An exception's traceback holds it, until the garbage collector comes by.
                body.clear()
            return Response(content, media_type=media_type)

        return endpoint

    async def _receive(self, request: Request, body: bytearray) -> None:
        """Add what the client sends to `body`, as long as it is within the limits."""
        limit = f"{self._max_body_bytes // 2**20} MiB"
        too_large = f"a request may have {limit}: send fewer or smaller images"
        if int(request.headers.get("content-length", 0)) > self._max_body_bytes:
            raise HTTPException(413, too_large)
        try:
            async with asyncio.timeout(self._send_s):
                async for part in request.stream():
                    if len(body) + len(part) > self._max_body_bytes:
                        raise HTTPException(413, too_large)
                    # Nobody waits for room: each would hold what the others wait for.
                    if self._held_bytes + len(part) > self._max_held_bytes:
                        raise _busy("the server holds as many bytes of requests as it may")
                    body += part
                    self._hold(len(part))
        except TimeoutError:
            raise HTTPException(
                408,
                f"a request must arrive within {self._send_s:.0f} seconds: send smaller images, or "
                "fewer in one request",
                {"Connection": "close"},
            ) from None

    def _hold(self, n_bytes: int) -> None:
        self._held_bytes += n_bytes
        self._metrics.held_bytes.set(self._held_bytes)


def _answer(
    read: Reader,
    body: bytearray,
    query: Mapping[str, str],
    compute: Compute,
    state: dict[str, Any],
) -> tuple[bytes, str]:
    state["kind"] = "body"
    values, params = read(body)
    state["kind"] = "content"
    return compute(values, {**numbers(query), **params}, state)


def _busy(why: str) -> HTTPException:
    headers = {"Retry-After": "1", "Connection": "close"}
    return HTTPException(503, f"{why}: send the request again in a second", headers)


def _failure(request: Request, error: Exception) -> Response:
    # The traceback of what is no HTTPException goes to the server's own log.
    status, code, message, headers = 500, "INTERNAL_ERROR", "the server failed", None
    if isinstance(error, HTTPException):
        status, message, headers = error.status_code, error.detail, error.headers
        code = _CODES.get(status, "BAD_REQUEST")
    content = {"error_code": code, "message": message, "request_id": request.state.request_id}
    return JSONResponse(content, status, headers)


class _LazyGradCam:
    """Heat maps need the model once more, with other outputs: made when one is asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._made: GradCam | None = None
        self._lock = threading.Lock()

    def get(self) -> GradCam:
        with self._lock:
            self._made = self._made or GradCam(self._loaded)
        return self._made


class _Observed:
    """Around the app: a request gets an id, needs the key, is counted, and logged in one line."""

    def __init__(
        self, app: ASGIApp, paths: set[str], metrics: ServingMetrics, api_key: str
    ) -> None:
        self._app = app
        self._paths = paths
        self._metrics = metrics
        self._api_key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state: dict[str, Any] = {"request_id": request_id, "kind": "", "n_images": 0}
        scope["state"] = state
        status, n_bytes = 499, 0

        async def count_and_receive() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        app, path = self._app, scope["path"]
        if self._api_key and path not in _OPEN:
            scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
            is_right = hmac.compare_digest(shown.strip(), self._api_key)
            app = app if is_right and scheme.lower() == b"bearer" else _refuse_without_key
        try:
            await app(scope, count_and_receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            route = path if path in self._paths else "other"
            self._metrics.count_request(route, status, seconds, state["kind"])
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": request_id,
                "method": scope["method"][:20],
                "path": path[:200],
                "status": status,
                "ms": round(1e3 * seconds, 1),
                "bytes": n_bytes,
                "images": state["n_images"],
            }
            # Answers do not depend on somebody reading the log.
            with contextlib.suppress(OSError):
                say(json.dumps(line), error=True)


async def _refuse_without_key(scope: Scope, receive: Receive, send: Send) -> None:
    message = "a request must show the server's key: send it as Authorization: Bearer <key>"
    error = HTTPException(401, message, {"WWW-Authenticate": "Bearer"})
    await _failure(Request(scope), error)(scope, receive, send)


def _hash_of(tag: str) -> str:
    """The page's script or style, as its Content-Security-Policy names it."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; "
        "img-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
