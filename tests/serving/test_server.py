"""The server's process: what it refuses to start on, whom it waits for, and how it ends."""

import base64
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.pyfunc import PyFuncModel
from mlflow.pyfunc.utils import pyfunc

from headstart import cli
from headstart.common.errors import HeadstartError
from headstart.serving.server import run_server
from tests.serving.conftest import png

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
