"""The layer before MLflow's app: what never reaches it, and what errors do not repeat."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.serving.limits import MAX_DEPTH, Limits, Message, Receive, Send, depth


def _ask(
    body: Sequence[bytes], *, headers: Sequence[tuple[bytes, bytes]] = (), reply: bytes, status: int
) -> tuple[int, Any, bytes]:
    """Send a body in parts through the layer; returns status, answer and what the app received."""
    received: list[bytes] = []
    sent: list[Message] = []
    parts = list(body)

    async def app(_scope: Message, receive: Receive, send: Send) -> None:
        message = await receive()
        received.append(message["body"])
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": reply})

    async def receive() -> Message:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "headers": list(headers)}
    asyncio.run(Limits(app, max_body_bytes=1000)(scope, receive, send))
    text = b"".join(m.get("body", b"") for m in sent[1:])
    return sent[0]["status"], json.loads(text), b"".join(received)


def test_a_good_request_passes_whole() -> None:
    status, answer, received = _ask([b'{"a": ', b"[1]}"], reply=b'{"ok": 1}', status=200)
    assert (status, answer, received) == (200, {"ok": 1}, b'{"a": [1]}')


def test_a_large_body_is_refused_by_its_header() -> None:
    headers = [(b"content-length", b"1001")]
    status, answer, received = _ask([b"{}"], headers=headers, reply=b"{}", status=200)
    assert status == 413
    assert "send fewer or smaller images" in answer["message"]
    assert received == b""


def test_a_large_body_is_refused_without_a_header() -> None:
    status, _, received = _ask([b"x" * 600, b"x" * 600], reply=b"{}", status=200)
    assert (status, received) == (413, b"")


def test_deep_nesting_is_refused() -> None:
    status, answer, received = _ask([b"[" * 200], reply=b"{}", status=200)
    assert status == 400
    assert f"nested {MAX_DEPTH} levels" in answer["message"]
    assert received == b""


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Failed to predict data 'SECRET'. \nError: row 0: it is empty", "row 0: it is empty"),
        ("Failed to parse SECRET", "the body must be JSON like"),
    ],
)
def test_errors_do_not_repeat_the_request(theirs: str, ours: str) -> None:
    reply = json.dumps({"error_code": "BAD", "message": theirs}).encode()
    status, answer, _ = _ask([b"{}"], reply=reply, status=400)
    assert status == 400
    assert answer["message"].startswith(ours)
    assert "SECRET" not in answer["message"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def _true_depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_true_depth(v) for v in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_true_depth(v) for v in value), default=0)
    return 0


@given(_JSON)
def test_depth_is_that_of_the_parsed_value(value: Any) -> None:
    assert depth(json.dumps(value).encode()) == _true_depth(value)
