"""The server's process: what it refuses to start on, whom it waits for, and how it ends."""

import asyncio
import base64
import contextlib
import json
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import uvicorn
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.utils import pyfunc

from headstart import cli
from headstart.common.errors import HeadstartError, ServingError
from headstart.serving import server as server_module
from headstart.serving.server import KEY_VARIABLE, TimedProtocol, run_server
from tests.serving.conftest import base64_of, png
from tests.serving.live_server import running_server

PASSWORD = "hunter2-of-the-store"


def _unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking store that is away, with a password in its address."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://me:{PASSWORD}@127.0.0.1:{_unused_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pyfunc  # type: ignore[untyped-decorator]
def echo(model_input: list[str]) -> list[str]:
    """A model of somebody else."""
    return model_input


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no YAML": lambda folder: (folder / "MLmodel").write_text("{"),
    "empty": lambda folder: (folder / "MLmodel").write_text(""),
    "binary": lambda folder: (folder / "MLmodel").write_bytes(b"\xff\0"),
    "no flavour": lambda folder: (folder / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n"),
    "no model": lambda folder: (folder / "artifacts" / "model.h5").unlink(),
    "a damaged model": lambda folder: (folder / "artifacts" / "model.h5").write_bytes(b"x"),
    "no code": lambda folder: (folder / "pyfunc_model.py").unlink(),
    "broken code": lambda folder: (folder / "pyfunc_model.py").write_text("raise KeyError('x')"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_told_in_one_sentence(
    serving: Path, tmp_path: Path, store: str, damage: str
) -> None:
    folder = shutil.copytree(serving, tmp_path / "serving")
    DAMAGES[damage](folder)
    with pytest.raises(HeadstartError, match=r"must .*, but .*: ") as caught:
        run_server(str(folder), "127.0.0.1", 0, store)
    assert "\n" not in str(caught.value)


def test_a_folder_of_any_name_is_loaded(
    serving: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(serving, tmp_path / "my café #1: 50%20?x" / "serving")
    image = base64.b64encode(png(0)).decode()
    n_answers: list[int] = []

    def keep(model: PyFuncModel, **_named: object) -> None:
        n_answers.append(len(model.predict(pd.DataFrame({"image": [image]}))))

    monkeypatch.setattr("headstart.serving.server.make_app", keep)
    monkeypatch.setattr("uvicorn.Server.run", lambda *_arguments, **_named: None)
    run_server(str(folder), "127.0.0.1", 0, store)
    assert n_answers == [1]


def test_a_registered_model_is_served_under_its_name_and_version(
    serving: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = mlflow.MlflowClient(uri)
    client.create_registered_model("pictures")
    version = client.create_model_version("pictures", serving.as_uri()).version
    client.set_registered_model_alias("pictures", "champion", version)
    found: list[object] = []

    def keep(_model: PyFuncModel, *, registered: object, **_named: object) -> None:
        found.append(registered)

    monkeypatch.setattr("headstart.serving.server.make_app", keep)
    monkeypatch.setattr("uvicorn.Server.run", lambda *_arguments, **_named: None)
    run_server("models:/pictures@champion", "127.0.0.1", 0, uri)
    assert found == [{"name": "pictures", "version": "1"}]


def test_a_model_that_another_version_packaged_is_not_served(
    serving: Path, tmp_path: Path, store: str
) -> None:
    folder = shutil.copytree(serving, tmp_path / "serving")
    code = folder / "pyfunc_model.py"
    code.write_text(code.read_text().replace("self.loaded", "self._loaded"))
    with pytest.raises(ServingError, match=r"this version packaged.*`dvc repro package`"):
        run_server(str(folder), "127.0.0.1", 0, store)


def test_a_model_of_others_is_not_served(tmp_path: Path, store: str) -> None:
    mlflow.pyfunc.save_model(tmp_path / "echo", python_model=echo, pip_requirements=["mlflow"])
    with pytest.raises(HeadstartError, match="must take one column 'image', but"):
        run_server(str(tmp_path / "echo"), "127.0.0.1", 0, store)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--model", "models:/headstart@champion"],
        ["serve", "--model", "runs:/0123/model"],
        ["predict", __file__, "--model", "models:/headstart@champion"],
    ],
)
def test_a_store_that_is_away_is_told_without_its_password(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["headstart", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    printed = "".join(capfd.readouterr())
    assert "headstart: a " in printed
    assert "127.0.0.1" in printed
    assert PASSWORD not in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("uri", ["nonsense://me:PASSWORD@host/x", "postgresql://me:PASSWORD@[x/y"])
def test_an_address_that_is_none_is_told_without_its_password(
    uri: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("PASSWORD", PASSWORD))
    for command in (["serve"], ["predict", __file__]):
        monkeypatch.setattr("sys.argv", ["headstart", *command, "--model", "models:/m@champion"])
        with pytest.raises(SystemExit):
            cli.main()
    printed = "".join(capfd.readouterr())
    assert printed.count("headstart: ") == 2
    assert PASSWORD not in printed
    assert "Traceback" not in printed


def test_a_taken_port_is_told_before_the_model_is_loaded(serving: Path, store: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ServingError, match=f"a free port, but 127.0.0.1 port {port} is not"
        ) as told:
            run_server("no model is looked for", "127.0.0.1", port, store)
    assert "choose another with --port" in str(told.value)
    for host in ("nowhere.invalid", "192.0.2.1", "a..b"):
        with pytest.raises(ServingError, match="a server needs an address of this machine"):
            run_server(str(serving), host, 0, store)


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "line\n"])
def test_a_key_that_no_client_can_show_is_refused(
    key: str, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ServingError, match=f"{KEY_VARIABLE} must be letters") as told:
        run_server("no model is looked for", "127.0.0.1", 0, store)
    assert not key.strip() or key.strip() not in str(told.value)


def test_others_are_let_in_without_a_key_only_with_a_warning(
    serving: Path, store: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda *_arguments, **_named: None)
    warned = []
    for host, key in (("127.0.0.1", None), ("0.0.0.0", None), ("0.0.0.0", "open-sesame")):
        if key:
            monkeypatch.setenv(KEY_VARIABLE, key)
        run_server(str(serving), host, 0, store)
        warned.append("without a key" in capfd.readouterr().err)
    assert warned == [False, True, False]


def _half_sent(port: int, text: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(text.encode())
    return client


HEADERS = "POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


def test_an_end_answers_what_is_under_way_and_waits_for_nobody_else(
    serving: Path, tmp_path: Path
) -> None:
    """By SIGTERM, with a request at work, one half sent, one without all its headers."""
    heavy = json.dumps({"inputs": {"image": [base64_of(png(1, 100))] * 30}}).encode()
    with running_server(serving, tmp_path) as server, ThreadPoolExecutor(1) as client:
        half = [_half_sent(server.port, text) for text in (HEADERS, HEADERS[:30], "")]
        half.append(_half_sent(server.port, f"{HEADERS}Content-Length: 1000\r\n\r\nabc"))
        answer = client.submit(server.post, heavy)
        while server.metric("headstart_held_bytes") < len(heavy):
            time.sleep(0.02)
        server.process.terminate()
        server.process.wait(10)
        status, body = answer.result()
        assert (status, len(json.loads(body)["predictions"])) == (200, 30)
        assert [one.recv(12) for one in half[:3]] == [b""] * 3
        assert half[3].recv(12) == b"HTTP/1.1 503"
        for one in half:
            one.close()
    assert "Traceback" not in server.log.read_text()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of a fraction of a second."""
    monkeypatch.setattr(server_module, "_HEADERS_S", 0.3)
    monkeypatch.setattr(server_module, "SEND_S", 0.3)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """Answers `/read` when it has the whole body, `/ask` when it is told to, others at once."""
    if scope["path"] == "/read":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/ask":
        await scope["state"]["answer"].wait()
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


class _Protocols:
    """A server of that app in this loop, and clients of it."""

    async def __aenter__(self) -> "_Protocols":
        config = uvicorn.Config(
            _app, http=TimedProtocol, ws="none", lifespan="off", access_log=False
        )
        config.load()
        self.state = uvicorn.server.ServerState()
        self.answer = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []
        loop = asyncio.get_running_loop()

        def protocol() -> TimedProtocol:
            given = {"answer": self.answer}
            return TimedProtocol(config, self.state, given, _loop=loop)

        self.server = await loop.create_server(protocol, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        for one in list(self.state.connections):
            one.transport.abort()

    async def client(self, text: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self.server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address)
        writer.write(text.encode())
        await writer.drain()
        await asyncio.sleep(0.01)
        self.writers.append(writer)
        return reader, writer


POST = "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
GET = "GET {} HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.usefixtures("hasty")
def test_what_a_client_must_send_has_a_deadline() -> None:
    async def check() -> None:
        async with _Protocols() as server:
            # Nothing; half of the headers; then, byte by byte, the headers of a second request, and
            # the rest of a body that was answered without it.
            silent, _ = await server.client()
            half, _ = await server.client(GET.format("/now")[:10])
            assert await asyncio.wait_for(silent.read(), 5) == b""
            assert await asyncio.wait_for(half.read(), 5) == b""
            again, writer = await server.client(GET.format("/now"))
            assert (await again.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            rest, rest_writer = await server.client(POST.format("/now"))
            assert (await rest.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            ended = asyncio.gather(again.read(), rest.read())
            while not ended.done():
                writer.write(b"G")
                rest_writer.write(b"x")
                await asyncio.sleep(0.05)
            assert list(await ended) == [b"", b""]

    asyncio.run(check())


@pytest.mark.usefixtures("hasty")
def test_a_request_under_way_has_no_deadline_of_the_connection() -> None:
    async def check() -> None:
        async with _Protocols() as server:
            asking, _ = await server.client(GET.format("/ask"))
            await asyncio.sleep(0.6)
            server.answer.set()
            assert (await asyncio.wait_for(asking.readuntil(b"ok"), 5)).endswith(b"ok")

    asyncio.run(check())


def test_a_body_that_turns_out_to_be_none_after_its_answer_ends_the_connection() -> None:
    async def check() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, given: failures.append(given))
        async with _Protocols() as server:
            chunked = POST.replace("Content-Length: 1000", "Transfer-Encoding: chunked")
            reader, writer = await server.client(chunked.format("/now"))
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            writer.write(b"this is no chunk\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
        assert failures == []

    asyncio.run(check())


def test_a_new_connection_takes_the_place_of_the_one_that_waits_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 4)

    async def check() -> None:
        async with _Protocols() as server:
            asking = [await server.client(GET.format("/ask")) for _ in range(2)]
            half, _ = await server.client(POST.format("/read"))
            silent, _ = await server.client()
            served, _ = await server.client(GET.format("/now"))
            assert await asyncio.wait_for(served.readuntil(b"ok"), 5)
            assert await half.read() == b""  # the oldest that keeps the server waiting
            assert not silent.at_eof()
            more = [await server.client(GET.format("/ask")) for _ in range(2)]
            assert await silent.read() == b""
            assert await served.read() == b""
            # All are being answered: a new one finds no room.
            late, _ = await server.client(GET.format("/now"))
            with contextlib.suppress(ConnectionError):
                assert await late.read() == b""
            server.answer.set()
            for reader, _ in (*asking, *more):
                assert (await asyncio.wait_for(reader.readuntil(b"ok"), 5)).endswith(b"ok")

    asyncio.run(check())
