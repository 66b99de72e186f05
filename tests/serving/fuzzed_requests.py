"""Requests as hostile, broken and odd clients send them: mutations of good ones, by a seed.

`good_request` makes one of those that the documents show; `hostile_request` damages one, in its
body, its headers or its address.
"""

import base64
import json
import random
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

SECRET = "pAyLoAd"
_ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 10**18, 10**400, 1e308, 0.5, float("nan"), float("inf"), "", SECRET,
    "3", "NaN", [], [1], {}, {"a": 1}, "\ud800", "\0", [[[[SECRET]]]], {"image": SECRET},
    "row", "\u202e",
)  # fmt: skip
_CONTENT_TYPES = (
    "application/json", "APPLICATION/JSON", 'application/json; charset="utf-8"',
    "application/json; charset=utf-16", "application/json; charset=" + SECRET, "text/csv",
    "text/csv; charset=latin-1", "image/png", "image/*", "image/svg+xml", "image/",
    "application/octet-stream", "application/vnd.apache.parquet", "multipart/form-data",
    "multipart/form-data; boundary=xYz", "multipart/form-data; boundary=" + "b" * 300,
    'multipart/form-data; boundary=""', "multipart/form-data; boundary*=x''%ff", "text/plain", "",
    "application/x-www-form-urlencoded", "application/pickle", "x" * 500, "application/json;;;=;",
    "application/json, text/csv", "multipart/mixed; boundary=xYz",
)  # fmt: skip
_SPLINTERS = (
    b'"', b"\\", b"\xff", b"\0", b"\r\n", b"{", b"[", b",", b"--xYz", SECRET.encode(), b"NaN",
)  # fmt: skip
# A start, what comes again and again, and an end.
_REPEATED = (
    (b"", b"[", b"]"), (b"", b'{"a":', b"}"), (b'{"instances":[', b'{"image":"eA=="},', b"{}]}"),
    (b'{"inputs":{"image":[', b'"eA==",', b'""]}}'), (b"image\n", b"eA==\n", b""),
    (b'{"inputs":"', b"\\", b""), (b"image\n", b'"', b""), (b"image", b",x", b""),
    (b"", b"--xYz\r\n", b""), (b'{"inputs":', b"9", b""),
    (b'{"inputs":{"image":"', b"\\u0000", b'"}}'),
)  # fmt: skip
_PATHS = ("/invocations", "/explain")
_OTHER_PATHS = ("/", "/ping", "/model", "/metrics", "/version", "/nowhere", "//", "/../etc/passwd",
                "/%00", "/%ff", "/invocations/", "/" + "a" * 3000, "*", "/%2e%2e/")  # fmt: skip
_METHODS = ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW")
_PARAMETERS = ("top_k", "threshold", "max_novelty", "on_error", "x", SECRET, "")


@dataclass(frozen=True)
class FuzzedRequest:
    """One request; of a good one also its images."""

    method: str
    path: str
    content_type: str | None
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    images: tuple[bytes, ...] = ()

    @property
    def is_http(self) -> bool:
        """Whether it names its host and its length once, and its headers are short."""
        names = {name for name, _ in self.headers}
        return not names & {"Host", "Content-Length", "Transfer-Encoding", "A" * 200}

    def bytes_on_the_wire(self) -> bytes:
        """The whole request, as HTTP/1.1 sends it."""
        headers = [("Host", "x"), ("Connection", "close"), ("Content-Length", str(len(self.body)))]
        if self.content_type is not None:
            headers.append(("Content-Type", self.content_type))
        lines = [f"{name}: {value}" for name, value in (*headers, *self.headers)]
        head = "\r\n".join([f"{self.method} {self.path} HTTP/1.1", *lines, "", ""])
        return head.encode() + self.body


def form_body(*parts: tuple[str, bytes, bool], boundary: str = "xYz") -> bytes:
    """A body of multipart/form-data: name, content, whether it is a file."""
    body = b""
    for name, content, is_file in parts:
        file = '; filename="a; \\"b.jpg"' if is_file else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode()


def good_request(chance: random.Random, images: Sequence[bytes]) -> FuzzedRequest:
    """A request that the documents show, with one to three images."""
    some = tuple(chance.choice(images) for _ in range(chance.randint(1, 3)))
    kind = chance.randrange(7)
    if kind == 0:
        return FuzzedRequest("POST", "/invocations", "image/png", some[0], images=some[:1])
    if kind == 1:
        body = form_body(*[("image", data, True) for data in some])
        content_type = "multipart/form-data; boundary=xYz"
        return FuzzedRequest("POST", "/invocations", content_type, body, images=some)
    texts = [_encoded(chance, data) for data in some]
    if kind == 2:
        csv = "\n".join(["image", *(f'"{text}"' for text in texts), ""]).encode()
        return FuzzedRequest("POST", "/invocations", "text/csv", csv, images=some)
    value = _json_forms(chance, texts)
    if chance.random() < 0.5:
        value["params"] = {"top_k": chance.randint(0, 3), "threshold": chance.random()}
    body = json.dumps(value).encode()
    return FuzzedRequest("POST", "/invocations", "application/json", body, images=some)


def hostile_request(
    chance: random.Random, images: Sequence[bytes], hostile_files: Sequence[bytes]
) -> FuzzedRequest:
    """A good request, damaged in one to three ways; it may still be one that can be answered."""
    request = replace(good_request(chance, images), images=())
    for _ in range(chance.randint(1, 3)):
        request = chance.choice(_DAMAGES)(chance, request, hostile_files)
    return request


def _encoded(chance: random.Random, data: bytes) -> str:
    text = base64.b64encode(data).decode()
    how = chance.randrange(4)
    if how == 1:
        text = text.rstrip("=")
    if how == 2:
        text = base64.urlsafe_b64encode(data).decode()
    return f"data:image/png;base64,{text}" if how == 3 else text


def _json_forms(chance: random.Random, texts: Sequence[Any]) -> dict[str, Any]:
    rows = [{"image": text} for text in texts]
    forms: list[dict[str, Any]] = [
        {"dataframe_records": rows},
        {"instances": rows},
        {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
        {"inputs": {"image": list(texts)}},
    ]
    return chance.choice(forms)


def _bytes_changed(
    chance: random.Random, request: FuzzedRequest, _files: Sequence[bytes]
) -> FuzzedRequest:
    body = bytearray(request.body)
    for _ in range(chance.randint(1, 8)):
        if body:
            start = chance.randrange(len(body))
            change = chance.randrange(4)
            if change == 0:
                body[start] = chance.randrange(256)
            elif change == 1:
                del body[start : start + chance.randint(1, 40)]
            elif change == 2:
                body[start:start] = chance.choice(_SPLINTERS)
            else:
                body[start:start] = body[start : start + chance.randint(1, 200)]
    return replace(request, body=bytes(body))


def _cut(chance: random.Random, request: FuzzedRequest, _files: Sequence[bytes]) -> FuzzedRequest:
    return replace(request, body=request.body[: chance.randint(0, len(request.body))])


def _another_type(
    chance: random.Random, request: FuzzedRequest, _files: Sequence[bytes]
) -> FuzzedRequest:
    return replace(request, content_type=chance.choice((None, *_CONTENT_TYPES)))


def _a_hostile_file(
    chance: random.Random, request: FuzzedRequest, files: Sequence[bytes]
) -> FuzzedRequest:
    data = chance.choice(files) if files else chance.randbytes(300)
    how = chance.randrange(3)
    if how == 0:
        return replace(request, content_type="image/jpeg", body=data)
    if how == 1:
        body = form_body(("image", data, True), ("on_error", b"row", False))
        return replace(request, content_type="multipart/form-data; boundary=xYz", body=body)
    value = _json_forms(chance, [_encoded(chance, data), base64.b64encode(data[:500]).decode()])
    value["params"] = {"on_error": chance.choice(("row", "refuse"))}
    return replace(request, content_type="application/json", body=json.dumps(value).encode())


def _odd_json(
    chance: random.Random, request: FuzzedRequest, _files: Sequence[bytes]
) -> FuzzedRequest:
    images = [chance.choice(_ODD_VALUES) for _ in range(chance.randint(0, 3))]
    value: Any = _json_forms(chance, images)
    if chance.random() < 0.6:
        names = [chance.choice(_PARAMETERS) for _ in range(chance.randint(0, 3))]
        value["params"] = {name: chance.choice(_ODD_VALUES) for name in names}
    if chance.random() < 0.3:
        value[chance.choice(("inputs", "instances", "params", SECRET))] = chance.choice(_ODD_VALUES)
    if chance.random() < 0.1:
        value = chance.choice(_ODD_VALUES)
    return replace(request, content_type="application/json", body=json.dumps(value).encode())


def _many(chance: random.Random, request: FuzzedRequest, _files: Sequence[bytes]) -> FuzzedRequest:
    start, again, end = chance.choice(_REPEATED)
    n = chance.choice((250, 257, 1000, 5000))
    types = ("application/json", "text/csv", "multipart/form-data; boundary=xYz")
    return replace(request, content_type=chance.choice(types), body=start + again * n + end)


def _odd_form(
    chance: random.Random, request: FuzzedRequest, _files: Sequence[bytes]
) -> FuzzedRequest:
    parts = [
        (
            chance.choice(("image", "", "x" * 300, SECRET, *_PARAMETERS)),
            chance.choice((b"", b"1", SECRET.encode(), b"[" * 3000, b"\xff\xfe", b"9" * 5000)),
            chance.random() < 0.5,
        )
        for _ in range(chance.choice((0, 1, 2, 17, 300)))
    ]
    boundary = chance.choice(("xYz", "other", "xY"))
    body = form_body(*parts, boundary=boundary)
    return replace(request, content_type="multipart/form-data; boundary=xYz", body=body)


def _odd_address(
    chance: random.Random, request: FuzzedRequest, _files: Sequence[bytes]
) -> FuzzedRequest:
    if chance.random() < 0.3:
        method = chance.choice(("GET", "POST", *_METHODS))
        return replace(request, method=method, path=chance.choice((*_OTHER_PATHS, *_PATHS)))
    values = ("-1", "x", "9" * 3000, "[" * 3000, "NaN", "1e999", "", SECRET, "null", "{}", "row")
    some = [
        (chance.choice(_PARAMETERS), chance.choice(values)) for _ in range(chance.randint(1, 4))
    ]
    return replace(request, path=f"{chance.choice(_PATHS)}?{urllib.parse.urlencode(some)}")


def _odd_headers(
    chance: random.Random, request: FuzzedRequest, _files: Sequence[bytes]
) -> FuzzedRequest:
    some = (
        ("X-Request-ID", SECRET * 20), ("X-Request-ID", "a b"), ("Accept", "text/" + SECRET),
        ("Authorization", SECRET), ("Content-Encoding", "gzip"), ("Cookie", SECRET * 100),
        ("Expect", SECRET), ("Upgrade", "websocket"), ("X-Forwarded-For", SECRET),
        ("Accept-Encoding", "gzip;q=x"), ("Range", "bytes=0-1"), ("Content-Length", "-1"),
        ("Content-Length", "9" * 30), ("Transfer-Encoding", "chunked"), ("Host", SECRET),
        ("A" * 200, "b" * 20_000), ("Connection", "upgrade, close"),
    )  # fmt: skip
    return replace(request, headers=(*request.headers, chance.choice(some)))


Damage = Callable[[random.Random, FuzzedRequest, Sequence[bytes]], FuzzedRequest]
_DAMAGES: tuple[Damage, ...] = (
    _bytes_changed, _bytes_changed, _cut, _another_type, _a_hostile_file, _a_hostile_file,
    _odd_json, _odd_json, _many, _odd_form, _odd_address, _odd_headers,
)  # fmt: skip
