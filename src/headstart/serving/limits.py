"""A thin ASGI layer before MLflow's scoring app: bounded bodies, bounded nesting, silent errors.

MLflow's stock server takes a body of any size, answers deeply nested JSON with 500, and repeats
in its errors what was sent. This layer refuses those before a model or a parser is asked.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 64 * 2**20
MAX_DEPTH = 16
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)
# Our own messages name the row or the rule, and never what was sent.
_OURS = re.compile(r"^(row \d+: |a request must |`image` must )")
_GENERAL = (
    'the body must be JSON like {"dataframe_records": [{"image": "<base64>"}]}, with the header '
    "Content-Type: application/json"
)


class Limits:
    """Wraps an ASGI app."""

    def __init__(self, app: App, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT"):
            await self._app(scope, receive, send)
            return
        body = await self._body(scope, receive)
        if body is None:
            limit = f"{self._max_body_bytes // 2**20} MiB"
            await _refuse(send, 413, f"a request may have {limit}: send fewer or smaller images")
        elif depth(body) > MAX_DEPTH:
            await _refuse(send, 400, f"JSON may be nested {MAX_DEPTH} levels deep: {_GENERAL}")
        else:
            await self._app(scope, _replay(body, receive), _quiet(send))

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body, or None as soon as it is known to be too large."""
        for name, value in scope["headers"]:
            if name == b"content-length" and not (
                value.isdigit() and int(value) <= self._max_body_bytes
            ):
                return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"".join(parts)
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body_bytes:
                return None
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)


def depth(body: bytes) -> int:
    """Deepest nesting of arrays and objects in JSON, without parsing it."""
    deepest = level = 0
    for match in _STRING_OR_BRACKET.finditer(body):
        first = body[match.start()]
        if first in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif first in b"]}":
            level -= 1
    return deepest


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _quiet(send: Send) -> Send:
    """Hold back an error's body, and send it without what the request held."""
    status = 200
    held: list[bytes] = []

    async def quiet(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        if status < 400:
            await send(message)
        elif message["type"] == "http.response.body":
            held.append(message.get("body", b""))
            if not message.get("more_body"):
                await _refuse(send, status, _harmless(b"".join(held)))

    return quiet


def _harmless(body: bytes) -> str:
    try:
        text = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return _GENERAL
    # MLflow puts what was sent before what our model said.
    text = text.rpartition("\nError: ")[2]
    return text if _OURS.match(text) else _GENERAL


async def _refuse(send: Send, status: int, message: str) -> None:
    code = "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR"
    body = json.dumps({"error_code": code, "message": message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
