"""A live `headstart serve`: hostile bodies and clients that hang up cost it next to nothing."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.serving.conftest import base64_of, png

MIB = 2**20
BOUND_S = 2.0
GOOD = json.dumps({"inputs": {"image": base64_of(png(1))}}).encode()
# Few bytes and many pixels: work for half a second or more.
HEAVY = json.dumps({"inputs": {"image": [base64_of(png(1, 100))] * 30}}).encode()


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    process: psutil.Process

    def post(self, body: bytes, content_type: str | None = "application/json") -> tuple[int, bytes]:
        """The status and the body of the answer; the connection is closed."""
        headers = {} if content_type is None else {"Content-Type": content_type}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", "/invocations", body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ping(self) -> float:
        """Seconds until `/ping` answers."""
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", "/ping")
        assert connection.getresponse().status == 200
        connection.close()
        return time.perf_counter() - started

    def hang_up(self, body: bytes, after_s: float) -> None:
        """Send a whole request and go away without waiting for the answer."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(after_s)

    def memory_mib(self) -> float:
        """Resident memory."""
        return self.process.memory_info().rss / MIB


@pytest.fixture(scope="module")
def server(serving: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`headstart serve` on the small model."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    folder = tmp_path_factory.mktemp("live")
    command = [sys.executable, "-m", "headstart", "serve", "--model", str(serving)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=folder, stderr=log)
    server = Server(port, psutil.Process(process.pid))
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                server.ping()
                break
            except OSError:
                time.sleep(0.2)
        assert server.post(GOOD)[0] == 200
        yield server
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture
def pings(server: Server) -> Iterator[list[float]]:
    """How long each `/ping` took, asked again and again while a test runs."""
    seconds: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.05):
            seconds.append(server.ping())

    thread = threading.Thread(target=ask)
    thread.start()
    yield seconds
    ended.set()
    thread.join()


ESCAPES = b'{"dataframe_records":[{"image":"' + b'\\"' * 16_000
PARQUET = b"PAR1" + bytes(283) + b"PAR1"
RECIPES = {
    "a string of escapes without an end": (ESCAPES, "application/json", 400),
    "the same, large": (ESCAPES * 500, "application/json", 400),
    "parquet": (PARQUET, "application/vnd.apache.parquet", 415),
    "no Content-Type": (GOOD, None, 415),
    "nested": (b"[" * 4000, "application/json", 400),
    "32 million objects": (b"[" + b"{}," * (20 * MIB), "application/json", 400),
    "one long string beside short ones": (
        b'{"inputs":{"image":["' + b"A" * (30 * MIB) + b'"' + b',"A"' * 200 + b"]}}",
        "application/json",
        400,
    ),
    "a table of a million columns": (b"image" + b",x" * MIB, "text/csv", 400),
}


def test_hostile_bodies_are_answered_at_once(server: Server, pings: list[float]) -> None:
    before = server.memory_mib()
    for name, (body, content_type, status) in RECIPES.items():
        started = time.perf_counter()
        assert server.post(body, content_type)[0] == status, name
        assert time.perf_counter() - started < BOUND_S, name
        if len(body) < MIB:
            # What the C library keeps of 64 MiB for the next such body is no leak.
            assert server.memory_mib() - before < 100, name
    assert max(pings) < BOUND_S
    assert server.memory_mib() - before < 300
    assert server.post(GOOD)[0] == 200


def test_work_for_clients_that_hung_up_is_dropped(server: Server, pings: list[float]) -> None:
    """Some leave at once, some while they wait; those before them may be at work already."""
    server.post(HEAVY)
    started = time.perf_counter()
    assert server.post(HEAVY)[0] == 200
    alone = time.perf_counter() - started
    before = server.memory_mib()
    n_clients = 10 * (os.cpu_count() or 1)
    leaving = [
        threading.Thread(target=server.hang_up, args=(HEAVY, 0.5 * (number % 2)))
        for number in range(n_clients)
    ]
    for client in leaving:
        client.start()
    for client in leaving:
        client.join()
    started = time.perf_counter()
    assert server.post(GOOD)[0] == 200
    # All of them would take ten times as long as one; what has begun ends.
    assert time.perf_counter() - started < max(BOUND_S, 4 * alone)
    assert max(pings) < BOUND_S
    assert server.memory_mib() - before < 100
