"""Model files by path and by MLflow model URI, from a real registry."""

from pathlib import Path

import pytest
from mlflow.tracking._tracking_service import utils

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.tracking.model_uri import model_file
from headstart.tracking.registry import Registry
from tests.tracking.conftest import new_model_run


@pytest.fixture
def champion(workspace: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A workspace whose registry has a champion in the layout of `serving.package`."""
    folder = tmp_path / "serving"
    (folder / "artifacts").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n")
    (folder / "artifacts" / "model.h5").write_bytes(b"the model")
    with new_model_run(workspace, {}) as run:
        run.log_model(folder)
    registry = Registry(run.store, "headstart")
    registry.add(run.run_id, "aa", "a description", {})
    registry.promote("1", "first")
    # set, so that they are as before when MLflow has written them
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.store.uri)
    monkeypatch.setattr(utils, "_tracking_uri", run.store.uri)
    return workspace


@pytest.mark.parametrize("name", ["models:/headstart@champion", "models:/headstart/1"])
def test_a_registered_model_is_there_as_long_as_it_is_used(champion: Project, name: str) -> None:
    with model_file(name, champion.root) as path:
        assert path.name == "model.h5"
        assert path.read_bytes() == b"the model"
    assert not path.exists()


def test_a_uri_that_names_nothing_says_so(champion: Project) -> None:
    with (
        pytest.raises(TrackingError, match=r"models:/headstart@nobody gave no artifacts/model\.h5"),
        model_file("models:/headstart@nobody", champion.root),
    ):
        pass


def test_a_path_is_itself(tmp_path: Path) -> None:
    for name in ("models/model.h5", str(tmp_path / "no such.h5"), r"C:\models\model.h5"):
        with model_file(name, tmp_path) as path:
            assert path == Path(name)
