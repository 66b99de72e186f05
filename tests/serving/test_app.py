"""The server's app: what is refused, why, and that nothing that was sent comes back."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.serving.app import make_app
from headstart.serving.package import MAX_IMAGES
from tests.serving.conftest import base64_of, png

JSON = [(b"content-type", b"application/json")]
CSV = [(b"content-type", b"text/csv")]
SECRET = "pAyLoAd"
IMAGE = base64_of(png(1))
GOOD = json.dumps({"inputs": {"image": IMAGE}}).encode()


def _ask(
    app: Any,
    body: bytes | Sequence[bytes],
    headers: Sequence[tuple[bytes, bytes]] = JSON,
    *,
    method: str = "POST",
    path: str = "/invocations",
    hangs_up: bool = False,
    query: bytes = b"",
) -> tuple[int, Any]:
    """Send one request, its body in parts, to the ASGI app; returns the status and the answer."""
    parts = [body] if isinstance(body, bytes) else list(body)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        if not hangs_up:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers),
             "query_string": query, "http_version": "1.1"}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    text = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(text) if text.strip() else None


@pytest.fixture
def app(model: Any) -> Any:
    """The app of the small model; bodies of 1 MB."""
    return make_app(model, max_body_bytes=2**20)


def test_a_good_request_is_answered(app: Any) -> None:
    status, answer = _ask(app, [GOOD[:10], GOOD[10:]])
    assert status == 200
    (row,) = answer["predictions"]
    assert list(row) == [
        "predicted_label", "predicted_label_id", "probability", "novelty", "p(a)", "p(b)", "p(c)"
    ]  # fmt: skip
    assert _ask(app, f"image\n{IMAGE}\n".encode(), CSV) == (200, answer)
    odd = [(b"content-type", b'Application/JSON; charset="UTF-8"; profile=x')]
    assert _ask(app, GOOD, odd) == (200, answer)
    for media_type in (b"image/png", b"image/jpeg", b"IMAGE/*", b"application/octet-stream"):
        assert _ask(app, png(1), [(b"content-type", media_type)]) == (200, answer)


def form(*parts: tuple[str, bytes, bool], boundary: str = "xYz") -> bytes:
    """A body of multipart/form-data: name, content, whether it is a file."""
    lines = b""
    for name, content, is_file in parts:
        file = '; filename="a; \\"b.jpg"' if is_file else ""
        lines += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n'.encode()
        lines += b"\r\n" + content + b"\r\n"
    return lines + f"--{boundary}--\r\n".encode()


FORM = [(b"content-type", b"multipart/form-data; boundary=xYz")]


def test_forms_have_files_and_parameters(app: Any) -> None:
    _, alone = _ask(app, GOOD)
    assert _ask(app, form(("image", png(1), True)), FORM) == (200, alone)
    both = form(("top_k", b"2", False), ("image", png(1), True), ("other", png(2), True))
    status, answer = _ask(app, both, FORM)
    assert status == 200
    assert [len(row["top_labels"]) for row in answer["predictions"]] == [2, 2]
    many = [("image", b"x", True)] * 300
    bodies = [b"", b"--xYz", form()[:-6], form(*many), form(("field", b"x" * 70_000, False)),
              form(*[("field", b"1", False)] * 300)]  # fmt: skip
    for body in bodies:
        status, refused = _ask(app, body, FORM)
        assert status == 400
        assert "curl -F" in refused["message"] or "1 to 256 images" in refused["message"]
    assert _ask(app, form(("image", png(1), False)), FORM)[0] == 400  # no file: text
    assert _ask(app, form(("image", SECRET.encode(), True)), FORM)[0] == 400
    # Without its boundary it is not read at all.
    assert _ask(app, b"", [(b"content-type", b"multipart/form-data")])[0] == 415


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_forms_are_refused_or_answered(app: Any, data: st.DataObject) -> None:
    whole = form(("image", png(1), True), ("top_k", b"1", False))
    cut = data.draw(st.integers(0, len(whole)))
    noise = data.draw(st.binary(max_size=20))
    status, answer = _ask(app, whole[:cut] + noise + whole[cut + len(noise) :], FORM)
    assert status in (200, 400)
    assert "predictions" in answer or "message" in answer


def test_parameters_come_with_the_address_or_the_body(app: Any) -> None:
    body = json.dumps({"inputs": {"image": IMAGE}, "params": {"top_k": 2}}).encode()
    status, in_body = _ask(app, body)
    assert status == 200
    assert len(in_body["predictions"][0]["top_labels"]) == 2
    image = [(b"content-type", b"image/png")]
    assert _ask(app, png(1), image, query=b"top_k=2") == (200, in_body)
    status, unsure = _ask(app, png(1), image, query=b"threshold=1.0")
    assert (status, unsure["predictions"][0]["predicted_label"]) == (200, "")
    status, row = _ask(app, b"no image", image, query=b"on_error=row")
    assert (status, row["predictions"][0]["probability"]) == (200, None)
    assert "not an image" in row["predictions"][0]["error"]
    for query in (b"top_k=-1", b"top_k=x", b"threshold=2", b"on_error=never", b"top_k=[1]"):
        status, refused = _ask(app, png(1), image, query=query)
        assert status == 400
        assert query.split(b"=")[0].decode() in refused["message"]
    status, _ = _ask(app, json.dumps({"inputs": {"image": IMAGE}, "params": [1]}).encode())
    assert status == 400
    assert _ask(app, b"no image", image)[0] == 400


@pytest.mark.parametrize("path", ["/ping", "/health", "/ready", "/version"])
def test_it_says_that_it_lives(app: Any, path: str) -> None:
    async def check() -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        await app(scope, None, send)
        return int(sent[0]["status"])

    assert asyncio.run(check()) == 200


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/vnd.apache.parquet",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "text/csv; charset=latin-1",
        "json",
        "application/json/x; charset*=x''%ff",
    ],
)
def test_what_is_not_said_to_be_json_or_csv_is_not_read(app: Any, content_type: str | None) -> None:
    headers = [] if content_type is None else [(b"content-type", content_type.encode())]
    status, answer = _ask(app, GOOD, headers)
    assert status == 415
    assert "application/json or text/csv" in answer["message"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        (b"{}", [*JSON, (b"content-length", b"1048577")], 413, "send fewer or smaller images"),
        ([b"x" * 600_000] * 2, JSON, 413, "send fewer or smaller images"),
        (b"", JSON, 400, "the body must be JSON"),
        (b"", CSV, 400, "the body must be CSV"),
        (b"[" * 4000 + b"]" * 4000, JSON, 400, "the body must be JSON"),
        (b'{"a":' * 2000 + b"1" + b"}" * 2000, JSON, 400, "the body must be JSON"),
        (b"[" * 5000, JSON, 400, "opening brackets, but got more"),
        (b"\xff\xfe{\x00", JSON, 400, "the body must be JSON"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", JSON, 400, "the body must be JSON"),
        (GOOD[:-1] + b', "instances": []}', JSON, 400, "the body must be JSON"),
        (b'{"inputs": {"image": []}}', JSON, 400, "1 to 256 images, but got 0"),
        (b'{"inputs": {"image": NaN}}', JSON, 400, "row 0: `image` must be a string"),
        (b'{"inputs": {"image": "\\ud800"}}', JSON, 400, "row 0: `image` must be base64"),
        (b"image\n" + b"x\n" * 1000, CSV, 400, f"1 to {MAX_IMAGES} images"),
        (b"image\n", CSV, 400, "but got 0"),
        (b"picture\nx\n", CSV, 400, "the body must be CSV"),
        (b'image\n"', CSV, 400, "the body must be CSV"),
        (b"image\n\xff\n", CSV, 400, "the body must be CSV"),
    ],
)
def test_what_cannot_be_answered_is_told(
    app: Any, body: Any, headers: Any, status: int, says: str
) -> None:
    got, answer = _ask(app, body, headers)
    assert (got, answer["error_code"]) == (status, "BAD_REQUEST")
    assert says in answer["message"]


def test_other_addresses_and_methods_answer_in_json_too(app: Any) -> None:
    assert _ask(app, GOOD, path="/nowhere")[0] == 404
    status, answer = _ask(app, GOOD, method="PUT")
    assert (status, answer["message"]) == (405, "Method Not Allowed")


def test_a_client_that_hung_up_costs_no_forward_pass(
    app: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    whole = model.predict

    def counted(images: Any, params: Any) -> Any:
        passes.append(1)
        return whole(images, params)

    monkeypatch.setattr(model, "predict", counted)
    for _ in range(5):
        assert _ask(app, GOOD, hangs_up=True)[1] is None
    assert passes == []
    assert _ask(app, GOOD)[0] == 200
    assert passes == [1]


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from([SECRET, IMAGE, f"data:{SECRET},x", f"\ud800{SECRET}", SECRET * 99]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["image", "columns", "data", "x", SECRET]), inner)
    ),
    max_leaves=12,
)
_FORMS = ["dataframe_records", "dataframe_split", "inputs", "instances", "params", SECRET]
_BODIES = (
    st.binary(max_size=200)
    | st.dictionaries(st.sampled_from(_FORMS), _VALUES, max_size=2).map(
        lambda value: json.dumps(value).encode()
    )
    | st.lists(
        st.sampled_from(
            [b'{"inputs":', b'{"image":', b"[", b"]", b"}", b'"', b"\\", b'\\"', b",", b"NaN", b"-",
             b"1e9999", b"\xed\xa0\x80", b"\n", b"image\n", b'"image",', SECRET.encode(), b"\0",
             b"\xef\xbb\xbf", IMAGE.encode(), b'{"inputs":{"image":1,"image":']
        )
    ).map(b"".join)
)  # fmt: skip


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    body=_BODIES,
    cut=st.integers(0, 400),
    content_type=st.sampled_from([b"application/json"] * 3 + [b"text/csv"] * 2 + [b"image/png"])
    | st.binary(max_size=30),
)
def test_any_body_gets_a_reason_and_never_comes_back(
    app: Any, body: bytes, cut: int, content_type: bytes
) -> None:
    for sent in (body, body[:cut]):
        status, answer = _ask(app, sent, [(b"content-type", content_type)])
        assert status in (200, 400, 415)
        if status != 200:
            assert set(answer) == {"error_code", "message", "request_id"}
            assert len(answer["message"]) < 300
        assert SECRET not in json.dumps(answer)
