"""A live `headstart serve`: hostile bodies and clients that hang up cost it next to nothing."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.conftest import base64_of, png
from tests.serving.live_server import MIB, Server, running_server

BOUND_S = 2.0
GOOD = json.dumps({"inputs": {"image": base64_of(png(1))}}).encode()
# Few bytes and many pixels: work for half a second or more.
HEAVY = json.dumps({"inputs": {"image": [base64_of(png(1, 100))] * 30}}).encode()


@pytest.fixture(scope="module")
def server(serving: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`headstart serve` on the small model."""
    with running_server(serving, tmp_path_factory.mktemp("live")) as server:
        assert server.post(GOOD)[0] == 200
        yield server
    assert "Traceback" not in server.log.read_text()


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
