"""Serving: latency, throughput, start and memory, beside the model called in the same process.

    python -m bench.serve [--quick]

The model is the default encoder with all its blocks, a linear head of 12 classes and novelty, on
the 600 photographs of the test assets. *In process* decodes image files and computes them as the
server does, on all cores, without HTTP. *headstart* is `headstart serve`, given image files;
*mlflow* is `mlflow models serve` with the same folder, given base64 in JSON; *flavor* is `mlflow
models serve` with the same network logged by `mlflow.tensorflow`, given decoded pixels as JSON, as
its users do. Clients are threads of this process, which share the cores with the server.
"""

import argparse
import base64
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import psutil

from bench.common import Target, print_table, write_results
from bench.extract_data import photos
from headstart.encoders.builders import build
from headstart.heads.config import HeadConfig
from headstart.heads.fitted import DenseWeights, FittedHead, feature_statistics
from headstart.images.decode import decode_input
from headstart.models.assemble import assemble
from headstart.models.model_file import LoadedModel, load_model, save_model
from headstart.models.novelty import fit_novelty
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from headstart.serving.package import save_pyfunc

IMAGE = ImageParams()
CLASSES = [f"class {number}" for number in range(12)]
_BATCH = 32


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run that writes no results")
    quick = parser.parse_args().quick
    source = photos()
    if source is None:
        raise SystemExit("bench.serve needs the photographs of the test assets")
    pictures = [path.read_bytes() for path in sorted(source.rglob("*.jpg"))]
    seconds = 3.0 if quick else 20.0
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory(prefix="headstart-serve-") as name:
        folder = Path(name)
        loaded = _models(folder, pictures[: 60 if quick else None])

        def decoded(data: bytes) -> np.ndarray:
            return decode_input(data, IMAGE)

        def alone(number: int) -> None:
            loaded.inference.answer(decoded(pictures[number % len(pictures)]))

        def many(number: int) -> None:
            some = [pictures[(number + i) % len(pictures)] for i in range(_BATCH)]
            assert len(list(loaded.inference.answers(some, decoded))) == _BATCH

        alone(0)
        found = {("in process", 1, 1): _load(alone, 1, seconds)}
        found["in process", 1, _BATCH] = _load(many, 1, seconds)
        ready, memory = {}, {}
        for server in ("headstart", "mlflow", "flavor"):
            with _running(server, folder) as (port, ready_s, process):
                ready[server] = ready_s
                single, batch = _senders(server, port, pictures)
                single(0)
                for clients in (1, 8, 32):
                    if server == "flavor" and clients > 1:
                        continue  # minutes of JSON
                    found[server, clients, 1] = _load(single, clients, seconds)
                found[server, 1, _BATCH] = _load(batch, 1, seconds)
                tree = [process, *process.children(recursive=True)]
                memory[server] = max(one.memory_info().rss for one in tree) / 1e6
    for (server, clients, size), times in found.items():
        rate = size * len(times) / seconds
        ordered = sorted(times)
        p95 = ordered[int(0.95 * (len(ordered) - 1))]
        rows.append(
            [server, clients, size, round(1e3 * statistics.median(times), 1), round(1e3 * p95, 1),
             round(rate, 1), round(ready[server], 1) if server in ready else "",
             round(memory[server]) if server in memory else ""]
        )  # fmt: skip
    headers = ["server", "clients", "images a request", "p50 ms", "p95 ms", "images/s", "ready s",
               "memory MB"]  # fmt: skip
    print_table(headers, rows)
    rates = {key: key[2] * len(times) / seconds for key, times in found.items()}
    ms = {key: 1e3 * statistics.median(times) for key, times in found.items()}
    here = rates["in process", 1, _BATCH]
    own, one = rates["headstart", 1, _BATCH], ("in process", 1, 1)
    if not quick:
        write_results(
            "serve",
            [
                Target("batches of 32 over in process", round(own / here, 3), "", 0.85, ">="),
                Target(
                    "batches of 32 over the tensorflow flavor",
                    round(own / rates["flavor", 1, _BATCH], 2), "times", 5.0, ">=",
                ),
                Target(
                    "32 clients over in process",
                    round(rates["headstart", 32, 1] / here, 3), "", 0.6, ">=",
                ),
                Target(
                    "single image, median beyond in process",
                    round(ms["headstart", 1, 1] - ms[one], 1), "ms", 10.0, "<=",
                ),
                Target("ready", round(ready["headstart"], 1), "s", 5.0, "<="),
                Target("memory of the server", round(memory["headstart"]), "MB", 500.0, "<="),
            ],
            headers,
            rows,
        )  # fmt: skip


def _models(folder: Path, pictures: Sequence[bytes]) -> LoadedModel:
    """Write the model with and without this project's flavor; return it."""
    encoder = build(ExtractParams(), IMAGE)
    width = encoder.output.shape[-1]
    chance = np.random.default_rng(0)
    head = FittedHead(
        config=HeadConfig(kind="ridge"),
        n_classes=len(CLASSES),
        layers=(
            DenseWeights(
                chance.normal(0, 0.05, (width, len(CLASSES))).astype(np.float32),
                np.zeros(len(CLASSES), np.float32),
            ),
        ),
        mean=None,
        variance=None,
    )
    model = assemble(encoder, [head], 1.0)
    metadata = {"classes": CLASSES, "image": IMAGE.model_dump(mode="json"), "fine_tuned": None}
    save_model(folder / "plain.h5", model, metadata)
    plain = load_model(folder / "plain.h5").inference
    features = np.stack([plain.outputs(decode_input(data, IMAGE))[0] for data in pictures])
    groups = [str(number) for number in range(len(features))]
    mean, variance = feature_statistics(features)
    labels = np.arange(len(features)) % len(CLASSES)
    novelty = fit_novelty(features, labels, groups, mean, variance, seed=0)
    save_model(folder / "model.h5", model, metadata, novelty)
    save_pyfunc(folder / "serving", folder / "model.h5", CLASSES, pictures[0])
    example = decode_input(pictures[0], IMAGE)[None]
    mlflow.tensorflow.save_model(
        model,
        folder / "flavor",
        signature=mlflow.models.infer_signature(example, model(example).numpy()),
    )
    return load_model(folder / "model.h5")


@contextmanager
def _running(server: str, folder: Path) -> Iterator[tuple[int, float, psutil.Process]]:
    """Yield its port, seconds until it answered a ping, and its process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mlflow_serve = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "--env-manager",
        "local",
        "-m",
    ]
    command = {
        "headstart": [
            sys.executable,
            "-m",
            "headstart",
            "serve",
            "--model",
            str(folder / "serving"),
        ],
        "mlflow": [*mlflow_serve, str(folder / "serving")],
        "flavor": [*mlflow_serve, str(folder / "flavor")],
    }[server]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder,
        env=os.environ | {"PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    watched = psutil.Process(process.pid)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{server} ended with {process.returncode}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
                connection.request("GET", "/ping")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.05)
        yield port, time.perf_counter() - started, watched
    finally:
        for child in [*watched.children(recursive=True), watched]:
            child.terminate()
        process.wait(60)


def _senders(
    server: str, port: int, pictures: Sequence[bytes]
) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """What sends a single image, and a batch, and waits for the answer; a connection a thread."""
    own = threading.local()

    def send(body: bytes, content_type: str, n: int) -> None:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        own.connection.request("POST", "/invocations", body, {"Content-Type": content_type})
        response = own.connection.getresponse()
        answer = response.read()
        assert response.status == 200, answer[:300]
        assert len(json.loads(answer)["predictions"]) == n

    def body_of(numbers: Sequence[int]) -> bytes:
        some = [pictures[number % len(pictures)] for number in numbers]
        if server == "flavor":
            pixels = [decode_input(data, IMAGE).tolist() for data in some]
            return json.dumps({"instances": pixels}).encode()
        records = [{"image": base64.b64encode(data).decode()} for data in some]
        return json.dumps({"dataframe_records": records}).encode()

    # Made before the clock starts; the flavor's are 0.6 MB an image.
    batches = [body_of(range(start, start + _BATCH)) for start in range(0, 3 * _BATCH, _BATCH)]
    singles = [body_of([number]) for number in range(8)] if server != "headstart" else []

    def single(number: int) -> None:
        if server == "headstart":
            send(pictures[number % len(pictures)], "image/jpeg", 1)
        else:
            send(singles[number % len(singles)], "application/json", 1)

    def batch(number: int) -> None:
        send(batches[number % len(batches)], "application/json", _BATCH)

    return single, batch


def _load(work: Callable[[int], None], clients: int, seconds: float) -> list[float]:
    """Seconds of each call that ended, of so many clients that call again and again."""
    times: list[float] = []
    errors: list[BaseException] = []
    until = time.perf_counter() + seconds

    def client(first: int) -> None:
        number = first
        try:
            while (began := time.perf_counter()) < until:
                work(number)
                times.append(time.perf_counter() - began)
                number += clients
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return times


if __name__ == "__main__":
    main()
