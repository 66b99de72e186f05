"""Fuzzed requests against a live server; `make fuzz` sends 10,000 of them.

Every fourth is a good one, which must be answered as it is without the others around it.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving.conftest import png
from tests.serving.fuzzed_requests import SECRET, FuzzedRequest, good_request, hostile_request
from tests.serving.live_server import MIB, Server, running_server

IMAGES = [png(seed) for seed in range(1, 7)]
N_CLIENTS = 3


def best_probabilities(answer: bytes) -> list[float]:
    """Of an answer with its headers: the best probability of each image."""
    rows = json.loads(answer[answer.index(b'{"predictions"') :])["predictions"]
    return [row["probability"] for row in rows]


def fuzz(
    server: Server, n: int, seed: int, hostile_files: Sequence[bytes]
) -> tuple[Counter[int | None], list[str], float]:
    """Send so many; returns the number of each status, what went wrong, and the longest seconds."""
    alone: dict[bytes, float] = {}
    for image in IMAGES:
        request = FuzzedRequest("POST", "/invocations", "image/png", image)
        (alone[image],) = best_probabilities(server.exchange(request)[1])

    def send(number: int) -> tuple[int | None, str, float]:
        chance = random.Random(f"{seed} {number}")
        is_good = number % 4 == 0
        request = (
            good_request(chance, IMAGES)
            if is_good
            else hostile_request(chance, IMAGES, hostile_files)
        )
        status, answer, seconds = server.exchange(request)
        wrong = ""
        if status is None and request.is_http:
            wrong = "no answer"
        elif status is not None and status >= 500:
            wrong = f"status {status}: {answer[-200:]!r}"
        elif seconds > 5:
            wrong = f"{seconds:.1f} s"
        elif SECRET.encode() in answer:
            wrong = f"repeats what was sent: {answer[-200:]!r}"
        elif is_good:
            expected = [alone[image] for image in request.images]
            if status != 200 or best_probabilities(answer) != pytest.approx(expected, abs=1e-5):
                wrong = f"a good request was answered {status}: {answer[-200:]!r}"
        return status, wrong and f"request {number} of seed {seed}: {wrong}", seconds

    with ThreadPoolExecutor(N_CLIENTS) as clients:
        results = list(clients.map(send, range(n)))
    found = Counter(status for status, _, _ in results)
    wrongs = [wrong for _, wrong, _ in results if wrong]
    return found, wrongs, max(seconds for _, _, seconds in results)


@pytest.mark.parametrize("n", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzzed_requests_are_refused_and_good_ones_among_them_answered(
    serving: Path, tmp_path: Path, assets: Path, n: int
) -> None:
    files = sorted((assets / "hostile-images").iterdir())
    hostile_files = [path.read_bytes() for path in files if path.suffix != ".tsv"]
    with running_server(serving, tmp_path) as server:
        # What decoders, libraries and the allocator take once.
        fuzz(server, 100, 0, hostile_files)
        before = server.memory_mib()
        found, wrongs, longest = fuzz(server, n, 1, hostile_files)
        growth = server.memory_mib() - before
        print(f"{n} requests: {dict(found)}, at most {longest:.2f} s, {growth:+.0f} MiB")
        assert wrongs == []
        assert growth * MIB < 100e6
        assert found[200] > n / 4
        assert {400, 404, 405, 415} <= found.keys()
    log = server.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 300 :][:5000]
    assert SECRET not in log
