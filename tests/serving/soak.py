"""A server under mixed load for minutes: memory, errors, and whether slow clients delay others.

    python -m tests.serving.soak [--minutes 20] [--model FOLDER]

Clients send good requests and some hostile ones. In the middle third 200 connections of a
slow-loris send a byte a second: half of them headers, half of them bodies.
"""

import argparse
import contextlib
import random
import socket
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import linregress

from tests.serving.conftest import make_serving
from tests.serving.fuzzed_requests import good_request, hostile_request
from tests.serving.live_server import Server, running_server
from tests.serving.test_fuzz import IMAGES

N_CLIENTS, N_LORIS = 2, 200
HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


def main() -> None:
    """Run, print, and end with status 1 where a request went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--model", type=Path, help="a pyfunc folder; a small one is made without")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headstart-soak-") as name:
        model = arguments.model or make_serving(Path(name))
        with running_server(model.resolve(), Path(name)) as server:
            raise SystemExit(soak(server, 60 * arguments.minutes))


def soak(server: Server, seconds: float) -> int:
    """Return how many requests went wrong."""
    began = time.perf_counter()
    # Seconds of good requests, while there are slow connections and while there are none.
    taken: dict[bool, list[float]] = {False: [], True: []}
    wrong: Counter[str] = Counter()
    sent = Counter[str]()

    def elapsed() -> float:
        return (time.perf_counter() - began) / seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        while (part := elapsed()) < 1:
            is_good = chance.random() < 0.8
            request = (
                good_request(chance, IMAGES) if is_good else hostile_request(chance, IMAGES, [])
            )
            try:
                status, _, took = server.exchange(request)
            except OSError as error:
                wrong[f"{type(error).__name__}"] += 1
                continue
            sent["good" if is_good else "hostile"] += 1
            if is_good:
                taken[1 / 3 <= part < 2 / 3].append(took)
            if (is_good and status != 200) or (status or 0) >= 500:
                wrong[f"status {status}, {'good' if is_good else 'hostile'}"] += 1

    def loris() -> None:
        held: list[socket.socket | None] = [None] * N_LORIS
        while elapsed() < 1 / 3:
            time.sleep(0.1)
        while elapsed() < 2 / 3:
            for index, one in enumerate(held):
                try:
                    if one is None:
                        one = held[index] = socket.create_connection(("127.0.0.1", server.port))
                        one.sendall(HEAD if index % 2 else HEAD + b"Content-Length: 9999\r\n\r\n")
                        sent["slow connections"] += 1
                    one.sendall(b"x")
                except OSError:  # the server has closed it
                    held[index] = None
            time.sleep(1)
        for one in filter(None, held):
            with contextlib.suppress(OSError):
                one.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(N_CLIENTS)]
    threads.append(threading.Thread(target=loris))
    for thread in threads:
        thread.start()
    memory: list[tuple[float, float]] = []
    while elapsed() < 1:
        memory.append(((time.perf_counter() - began) / 60, server.memory_mib()))
        if len(memory) % 30 == 1:
            print(f"{memory[-1][0]:5.1f} min  {memory[-1][1]:6.1f} MiB  {dict(sent)}", flush=True)
        time.sleep(1)
    for thread in threads:
        thread.join()
    minutes, mib = np.array(memory[len(memory) // 4 :]).T
    fit = linregress(minutes, mib)
    print(f"memory: {fit.slope:+.3f} ± {fit.stderr:.3f} MiB a minute after the first quarter")
    for is_slow, what in ((False, "without"), (True, f"with {N_LORIS}")):
        p95 = statistics.quantiles(taken[is_slow], n=20)[-1]
        n = len(taken[is_slow])
        print(f"{n} good requests {what} slow connections: p95 {1e3 * p95:.1f} ms")
    print(f"errors: {dict(wrong) or 'none'}")
    return sum(wrong.values())


if __name__ == "__main__":
    main()
