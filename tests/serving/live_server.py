"""A live `headstart serve` in a process of its own, and clients of it."""

import http.client
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.serving.fuzzed_requests import FuzzedRequest

MIB = 2**20


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    process: psutil.Process
    log: Path

    def post(
        self,
        body: bytes,
        content_type: str | None = "application/json",
        path: str = "/invocations",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """The status and the body of the answer; the connection is closed."""
        typed = {} if content_type is None else {"Content-Type": content_type}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", path, body, {**typed, **(headers or {})})
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

    def exchange(self, request: FuzzedRequest) -> tuple[int | None, bytes, float]:
        """The status, the answer (with its headers) and the seconds it took.

        What is no HTTP may be answered by an end of the connection alone: then there is no status.
        """
        started = time.perf_counter()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=120) as client:
                client.sendall(request.bytes_on_the_wire())
                if not request.is_http:
                    client.shutdown(socket.SHUT_WR)
                response = http.client.HTTPResponse(client, method=request.method)
                response.begin()
                answer = str(response.headers).encode() + response.read()
                return response.status, answer, time.perf_counter() - started
        except (OSError, http.client.HTTPException):
            if request.is_http:
                raise
            return None, b"", time.perf_counter() - started

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        (value,) = re.findall(rf"^{name} (.*)$", text, re.MULTILINE)
        return float(value)

    def hang_up(self, body: bytes, after_s: float) -> None:
        """Send a whole request and go away without waiting for the answer."""
        with socket.create_connection(("127.0.0.1", self.port)) as client:
            head = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(after_s)

    def memory_mib(self) -> float:
        """Resident memory."""
        return self.process.memory_info().rss / MIB


@contextmanager
def running_server(
    serving: Path, folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start `headstart serve`, and end it by SIGTERM; its log is `folder`/log."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "headstart", "serve", "--model", str(serving)]
    log_path = folder / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=log,
            stderr=log,
        )
    server = Server(port, psutil.Process(process.pid), log_path)
    try:
        for _ in range(600):
            assert process.poll() is None, log_path.read_text()
            try:
                server.ping()
                break
            except OSError:
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(30)
