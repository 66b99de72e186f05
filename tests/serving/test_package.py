"""The pyfunc folder that leaves the machine."""

import logging
import re
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.models import Model

from headstart.serving.package import save_pyfunc
from tests.conftest import REPOSITORY


def test_nothing_in_it_names_a_path_of_this_machine(tmp_path: Path) -> None:
    root = tmp_path / "my café #1 50%20?x"
    root.mkdir()
    (root / "model.h5").write_bytes(b"model")
    folder = root / "serving"
    save_pyfunc(folder, root / "model.h5", ["a", "b"], b"image")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert folder / "artifacts" / "model.h5" in paths
    for path in paths:
        content = path.read_bytes()
        for here in (tmp_path, REPOSITORY):
            assert f"{here}/".encode() not in content, path
    moved = folder.rename(tmp_path / "serving")
    model = Model.load(str(moved))
    assert model.flavors["python_function"]["artifacts"]["model"]["path"] == "artifacts/model.h5"
    assert model.signature is not None
    assert model.signature.inputs.input_names() == ["image"]


def test_another_pillow_than_in_training_is_told(
    serving: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(serving, tmp_path / "serving")
    requirements = folder / "requirements.txt"
    text = re.sub(r"pillow==.*", "pillow==12.0.0.dev1", requirements.read_text(encoding="utf-8"))
    requirements.write_text(text, encoding="utf-8")
    # MLflow's logger does not hand on what it is told.
    with caplog.at_level("WARNING"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("mlflow"), "propagate", True)
        mlflow.pyfunc.load_model(str(folder))
    assert "required: pillow==12.0.0.dev1" in caplog.text
