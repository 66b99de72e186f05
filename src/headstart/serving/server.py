"""The server's process: where it listens, what it loads, how long clients may take, how it ends."""

import asyncio
import errno
import io
import ipaddress
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import h11
import mlflow
import pandas as pd
import uvicorn
from mlflow.pyfunc import PyFuncModel, load_model
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.common import files
from headstart.common.errors import HeadstartError, ServingError, one_line
from headstart.common.terminal import say
from headstart.serving.app import SEND_S, make_app
from headstart.serving.package import IMAGE_COLUMN
from headstart.tracking.store import prepare_mlflow

KEY_VARIABLE = "HEADSTART_SERVE_API_KEY"
MAX_CONNECTIONS = 512
_HEADERS_S = 10.0
_KEEP_ALIVE_S = 10
_END_S = 8


def run_server(model: str, host: str, port: int, tracking_uri: str) -> None:
    """Serve a model of this project (a folder, or an MLflow model URI) until interrupted.

    Raises:
        ServingError: the port is taken; or the key is none; or there is no such model, or it
            cannot be loaded, or it is none of ours.
    """
    api_key = os.environ.get(KEY_VARIABLE)
    if api_key is not None and not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", api_key):
        raise ServingError(
            f"{KEY_VARIABLE} must be letters, digits and -._~+/= of ASCII, but is empty or has "
            "others: set it to what `openssl rand -hex 32` prints, or unset it to serve without"
        )
    with ExitStack() as until_end:
        # Before the model is loaded, which takes seconds.
        sockets = _bound(host, port, until_end)
        scratch = until_end.enter_context(tempfile.TemporaryDirectory(prefix="headstart-serving-"))
        until_end.enter_context(_ending_with(until_end))
        loaded, registered = _loaded(model, Path(scratch), tracking_uri)
        # Before it listens: the first pass of a session takes longer than the others.
        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, format="PNG")
        loaded.predict(pd.DataFrame({IMAGE_COLUMN: [picture.getvalue()]}))
        app = make_app(loaded, registered=registered, api_key=api_key or "")
        if not api_key and not all(_is_loopback(listener) for listener in sockets):
            say(
                f"headstart: others can reach this server without a key: set {KEY_VARIABLE}, or "
                "put a proxy with a login in front",
                error=True,
            )
        config = uvicorn.Config(
            app,
            http=TimedProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_END_S,
        )
        shown = f"[{host}]" if ":" in host else host
        say(f"{model} is served on http://{shown}:{sockets[0].getsockname()[1]}/")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets)


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP with what it lacks: deadlines for what a client sends, and room for others.

    Headers must arrive within ten seconds of their first byte, or of the connection; so must what
    is left of a body after its answer, in the time that a body has. (The app limits bodies.) When
    there are as many connections as there may be, a new one takes the place of the one that has
    kept the server waiting since longest; uvicorn's own limit would refuse everybody meanwhile.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._since = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [one for one in self.connections if isinstance(one, TimedProtocol)]
            waiting = [one for one in waiting if one is self or one._waits_for_client()]
            # This one is the youngest: it goes where all others are being answered.
            min(waiting, key=lambda one: one._since).transport.abort()
        self._deadline = self.loop.call_later(_HEADERS_S, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            # uvicorn would answer 400 to what is no HTTP, also after the answer to its beginning.
            self.transport.abort()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_deadline()
        elif self._deadline is None:
            rest_of_a_body = self.conn.their_state is h11.SEND_BODY
            self._deadline = self.loop.call_later(
                SEND_S if rest_of_a_body else _HEADERS_S, self.transport.abort
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _waits_for_client(self) -> bool:
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body or self.flow.write_paused


def _bound(host: str, port: int, until_end: ExitStack) -> list[socket.socket]:
    """Return sockets of the host's addresses, bound and not listening yet."""
    sockets = []
    failure: Exception = OSError("it has none")
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            try:
                one = until_end.enter_context(socket.socket(family, kind, protocol))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind(address)
                sockets.append(one)
            except OSError as error:
                # `localhost` has an address of IPv6 where the machine may have no IPv6.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                failure = error
    except (OSError, UnicodeError) as error:
        failure, sockets = error, []
    if not sockets:
        raise ServingError(
            f"a server needs an address of this machine and a free port, but {host} port {port} "
            f"is not ({one_line(failure)}): stop what listens there, or choose another with --port"
        )
    return sockets


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


@contextmanager
def _ending_with(cleanup: ExitStack) -> Iterator[None]:
    """SIGTERM, which uvicorn passes on when it has answered, ends the process and its threads.

    A thread that computes cannot be stopped, and Python would wait for it.
    """

    def end(_number: int, _frame: object) -> None:
        cleanup.close()
        os._exit(0)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _loaded(
    model: str, scratch: Path, tracking_uri: str
) -> tuple[PyFuncModel, dict[str, str] | None]:
    """Return the model, and its name and version where it is of a registry."""
    prepare_mlflow()
    mlflow.set_tracking_uri(tracking_uri)
    is_folder = (Path(model) / "MLmodel").is_file()
    if not is_folder and ":" not in model:
        raise ServingError(
            f"a pyfunc model folder must hold an MLmodel file, but {model} does not: run "
            "`dvc repro package` or `dvc pull models/serving`"
        )
    try:
        if not is_folder:
            folder = mlflow.artifacts.download_artifacts(model, dst_path=str(scratch))
        elif "%" in str(Path(model).resolve()):
            # MLflow would read it as an address, and follows no link out of a folder.
            folder = str(shutil.copytree(model, scratch / "model"))
        else:
            folder = model
        loaded = load_model(folder)
        schema = loaded.metadata.get_input_schema()  # type: ignore[no-untyped-call]
    except HeadstartError:
        raise
    except Exception as error:
        # Stores, YAML, MLflow and whatever code the folder carries: each has errors of its own.
        raise ServingError(
            f"a served model must load, but {model} does not ({type(error).__name__}: "
            f"{one_line(error)}): correct the address, start the tracking server, or make the "
            "model again with `dvc repro --force train`"
        ) from None
    columns = schema.input_names() if schema else None
    if columns != [IMAGE_COLUMN]:
        raise ServingError(
            f"a served model must take one column {IMAGE_COLUMN!r}, but {model} takes "
            f"{columns}: name a model of this project"
        )
    if not hasattr(loaded.unwrap_python_model(), "loaded"):  # type: ignore[no-untyped-call]
        raise ServingError(
            f"`headstart serve` serves models that this version packaged, but {model} is of "
            "another: run `dvc repro package`, or use `mlflow models serve`"
        )
    # MLflow's note beside a model that it fetched from a registry.
    note = Path(folder) / "registered_model_meta"
    if not note.is_file():
        return loaded, None
    meta = files.read_yaml(note)
    return loaded, {"name": str(meta["model_name"]), "version": str(meta["model_version"])}
