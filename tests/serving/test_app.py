"""The server's app: what is refused, why, and that nothing that was sent comes back."""

import asyncio
import io
import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import mlflow
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from headstart.evaluation.explain import GradCam, overlay
from headstart.images.decode import decode_input
from headstart.serving.app import make_app
from headstart.serving.package import MAX_IMAGES
from tests.serving.conftest import base64_of, png
from tests.serving.fuzzed_requests import form_body

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


FORM = [(b"content-type", b"multipart/form-data; boundary=xYz")]


def test_forms_have_files_and_parameters(app: Any) -> None:
    _, alone = _ask(app, GOOD)
    assert _ask(app, form_body(("image", png(1), True)), FORM) == (200, alone)
    both = form_body(("top_k", b"2", False), ("image", png(1), True), ("other", png(2), True))
    status, answer = _ask(app, both, FORM)
    assert status == 200
    assert [len(row["top_labels"]) for row in answer["predictions"]] == [2, 2]
    many = [("image", b"x", True)] * 300
    bodies = [b"", b"--xYz", form_body()[:-6], form_body(*many),
              form_body(("field", b"x" * 70_000, False)),
              form_body(*[("field", b"1", False)] * 300)]  # fmt: skip
    for body in bodies:
        status, refused = _ask(app, body, FORM)
        assert status == 400
        assert "curl -F" in refused["message"] or "1 to 256 images" in refused["message"]
    assert _ask(app, form_body(("image", png(1), False)), FORM)[0] == 400  # no file: text
    assert _ask(app, form_body(("image", SECRET.encode(), True)), FORM)[0] == 400
    # Without its boundary it is not read at all.
    assert _ask(app, b"", [(b"content-type", b"multipart/form-data")])[0] == 415


def _exchange(
    app: Any, method: str, path: str, body: bytes = b"", headers: Sequence[tuple[bytes, bytes]] = ()
) -> tuple[int, dict[str, str], bytes]:
    """The status, headers and bytes of an answer."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not parts:
            await asyncio.sleep(60)
        return parts.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers),
             "query_string": b"", "http_version": "1.1"}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message["body"] for message in sent[1:])


PNG = [(b"content-type", b"image/png")]


def test_a_request_has_an_id_and_one_line_in_the_log(
    app: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    _, headers, _ = _exchange(
        app, "POST", "/invocations", png(1), [*PNG, (b"x-request-id", b"a.1-B_")]
    )
    assert headers["x-request-id"] == "a.1-B_"
    made = set()
    for unfit in (b"", b"a b", b"x" * 65, b'"}\n{"', SECRET.encode() + b"\xff"):
        status, headers, text = _exchange(
            app, "POST", f"/nowhere-{'x' * 999}", b"", [(b"x-request-id", unfit)]
        )
        assert status == 404
        made.add(headers["x-request-id"])
        assert json.loads(text)["request_id"] == headers["x-request-id"]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert len(made) == 5
    query = f"top_k={SECRET}".encode()
    _ask(app, png(1), [*PNG, (b"authorization", SECRET.encode())], query=query)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    assert len(lines) == 7
    first = lines[0]
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first.pop("ms") > 0
    assert first == {
        "id": "a.1-B_", "method": "POST", "path": "/invocations", "status": 200,
        "bytes": len(png(1)), "images": 1,
    }  # fmt: skip
    assert len(lines[1]["path"]) == 200
    assert SECRET not in json.dumps(lines)


def test_metrics_count_requests_errors_images_and_answers(model: Any) -> None:
    app = make_app(model)
    two = json.dumps({"inputs": {"image": [IMAGE, "eA=="]}, "params": {"on_error": "row"}}).encode()
    for body, sent in ((GOOD, JSON), (two, JSON), (b"{", JSON), (b"no image", PNG), (b"", [])):
        _exchange(app, "POST", "/invocations", body, sent)
    _exchange(app, "GET", f"/{SECRET}")
    status, headers, text = _exchange(app, "GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert found["headstart_requests_total", "/invocations", "200"] == 2
    assert found["headstart_requests_total", "/invocations", "400"] == 2
    assert found["headstart_requests_total", "other", "404"] == 1
    assert found["headstart_request_duration_seconds_count", "/invocations"] == 5
    kinds = ("body", "content", "media_type", "not_found", "image")
    assert {kind: found["headstart_errors_total", kind] for kind in kinds} == dict.fromkeys(
        kinds, 1
    )
    assert found[("headstart_images_per_request_sum",)] == 3
    assert found[("headstart_best_probability_count",)] == 2
    assert found[("headstart_novelty_count",)] == 2
    assert found[("headstart_waiting_requests",)] == found[("headstart_held_bytes",)] == 0
    assert SECRET.encode() not in text
    # Another app counts for itself.
    assert b"/invocations" not in _exchange(make_app(model), "GET", "/metrics")[2]


def test_the_model_says_its_name_version_classes_and_recipe(model: Any) -> None:
    _, _, text = _exchange(make_app(model), "GET", "/model")
    alone = json.loads(text)
    assert (alone["name"], alone["version"], alone["classes"]) == (None, None, ["a", "b", "c"])
    assert alone["recipe"]["image"]["size"] == 16
    named = make_app(model, registered={"name": "headstart", "version": "7"})
    assert json.loads(_exchange(named, "GET", "/model")[2])["version"] == "7"
    # MLflow's clients take this for MLflow's.
    assert _exchange(named, "GET", "/version")[2].decode() == mlflow.__version__


def test_with_a_key_only_the_page_and_health_are_open(model: Any) -> None:
    app = make_app(model, api_key="open-sesame")
    for path in ("/", "/ping", "/health", "/ready"):
        assert _exchange(app, "GET", path)[0] == 200
    for path in ("/model", "/metrics", "/version", "/nowhere"):
        status, headers, text = _exchange(app, "GET", path)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert json.loads(text)["error_code"] == "UNAUTHENTICATED"
    for shown, status in ((b"Bearer open-sesame", 200), (b"bearer  open-sesame", 200),
                          (b"Basic open-sesame", 401), (b"Bearer ", 401), (b"Bearer open", 401),
                          (b"open-sesame", 401), (b"Bearer \xff", 401), (b"", 401)):  # fmt: skip
        sent = [*PNG, (b"authorization", shown)]
        assert _exchange(app, "POST", "/invocations", png(1), sent)[0] == status
        assert _exchange(app, "POST", "/explain", png(1), sent)[0] == status


def test_the_page_may_run_its_own_script_and_reach_its_server_alone(app: Any) -> None:
    status, headers, text = _exchange(app, "GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert "unsafe" not in headers["content-security-policy"]
    assert not re.search(r"https?://| on[a-z]+=|style=|innerHTML", text.decode())


def test_an_explanation_is_the_heat_of_one_image(app: Any, model: Any) -> None:
    status, headers, content = _exchange(app, "POST", "/explain", png(1), PNG)
    assert (status, headers["content-type"]) == (200, "image/png")
    loaded = model.unwrap_python_model().loaded
    pixels = decode_input(png(1), loaded.image)
    best = loaded.inference.outputs(pixels)[1].argmax()
    expected = overlay(pixels, GradCam(loaded).heat(pixels[None], np.array([best]))[0])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), expected)
    two = json.dumps({"inputs": {"image": [IMAGE, IMAGE]}}).encode()
    for body, sent, says in (
        (two, JSON, "one image"),
        (b"x", PNG, "not an image"),
        (b"", PNG, "is empty"),
        (b"[]", JSON, "must be JSON"),
    ):
        status, _, text = _exchange(app, "POST", "/explain", body, sent)
        assert status == 400
        assert says in json.loads(text)["message"]
    assert _ask(app, png(1), PNG, path="/explain", query=b"top_k=1")[0] == 400


def test_a_body_that_does_not_arrive_in_time_is_refused(model: Any) -> None:
    app = make_app(model, send_s=0.2)
    stalled = asyncio.Event()

    async def ask() -> list[Any]:
        parts = [{"type": "http.request", "body": b"x", "more_body": True}]
        sent = []

        async def receive() -> Any:
            if not parts:
                await stalled.wait()
            return parts.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": PNG,
                 "query_string": b"", "http_version": "1.1"}  # fmt: skip
        await app(scope, receive, send)
        return sent

    start, *rest = asyncio.run(ask())
    assert (start["status"], (b"connection", b"close") in start["headers"]) == (408, True)
    assert b"within 0 seconds" in rest[0]["body"]


def test_bodies_of_all_requests_together_are_bounded(model: Any) -> None:
    """While one is half sent, another that would go over is told to come again."""
    app = make_app(model, max_held_bytes=2000)
    whole = png(1)

    async def both() -> tuple[list[Any], list[Any], list[Any]]:
        arrived = asyncio.Event()
        first: list[Any] = []
        second: list[Any] = []
        third: list[Any] = []
        halves = [whole[:400], whole[400:]]

        async def receive_slowly() -> Any:
            if len(halves) < 2:
                await arrived.wait()
            if not halves:
                await asyncio.sleep(60)  # for a disconnect
            return {"type": "http.request", "body": halves.pop(0), "more_body": bool(halves)}

        async def receive_all() -> Any:
            return {"type": "http.request", "body": bytes(1700), "more_body": False}

        def sender(into: list[Any]) -> Any:
            async def send(message: Any) -> None:
                into.append(message)

            return send

        scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": PNG,
                 "query_string": b"", "http_version": "1.1"}  # fmt: skip
        slow = asyncio.ensure_future(app(dict(scope), receive_slowly, sender(first)))
        while len(halves) > 1:
            await asyncio.sleep(0)
        await app(dict(scope), receive_all, sender(second))
        arrived.set()
        await slow
        await app(dict(scope), receive_all, sender(third))
        return first, second, third

    first, second, third = asyncio.run(both())
    assert first[0]["status"] == 200
    assert second[0]["status"] == 503
    assert (b"retry-after", b"1") in second[0]["headers"]
    assert third[0]["status"] == 400  # there is room again: it is read, and is no image


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_forms_are_refused_or_answered(app: Any, data: st.DataObject) -> None:
    whole = form_body(("image", png(1), True), ("top_k", b"1", False))
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
    assert _ask(app, png(1), image, query=b"threshold=1")[0] == 200
    for query in (b"top_k=-1", b"top_k=x", b"threshold=2", b"on_error=never", b"top_k=[1]",
                  b"threshold=pAyLoAd", b"top_k=9e99", b"top_k=" + b"9" * 99,
                  b"max_novelty={}", b"threshold=null"):  # fmt: skip
        status, refused = _ask(app, png(1), image, query=query)
        assert status == 400
        name, _, value = query.decode().partition("=")
        assert name in refused["message"]
        assert len(value) < 3 or value not in refused["message"]
    status, refused = _ask(app, png(1), image, query=f"{SECRET}=1".encode())
    assert (status, SECRET in refused["message"]) == (400, False)
    assert "but got another" in refused["message"]
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
    assert _ask(app, GOOD, path="/invocations/")[0] == 404
    status, answer = _ask(app, GOOD, method="PUT")
    assert (status, answer["message"]) == (405, "Method Not Allowed")


def test_a_client_that_hung_up_costs_no_forward_pass(
    app: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    inference = model.unwrap_python_model().loaded.inference
    whole = inference.answer

    def counted(pixels: Any) -> Any:
        passes.append(1)
        return whole(pixels)

    monkeypatch.setattr(inference, "answer", counted)
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
