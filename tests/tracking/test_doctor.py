"""What `headstart doctor` says of the model, the metrics, offline runs and the store."""

import pytest

from headstart.common import files
from headstart.common.paths import Project
from headstart.tracking.doctor import examine
from headstart.tracking.offline_runs import OfflineRun, Operation, offline_folder
from tests.tracking.conftest import new_model_run, record_run


def _wrong(project: Project) -> list[str]:
    return [check.sentence for check in examine(project) if not check.is_well]


def test_a_sound_project_has_nothing_wrong(workspace: Project) -> None:
    with new_model_run(workspace, {}) as run:
        pass
    record_run(workspace, run.run_id)
    files.write_json(workspace.metrics, {"run_id": run.run_id})
    assert _wrong(workspace) == []
    said = "\n".join(map(str, examine(workspace)))
    assert f"well   run {run.run_id} of the model here is in sqlite" in said
    assert "metrics.json is of that run" in said


def test_what_lacks_or_differs_is_said_with_the_remedy(workspace: Project) -> None:
    (before,) = _wrong(workspace)
    assert before == "there is no models/run.json yet: run `dvc repro`"
    record_run(workspace, "0" * 32)
    files.write_json(workspace.metrics, {"run_id": "1" * 32})
    folder = offline_folder(workspace.root) / "r"
    OfflineRun(folder, "sqlite:///x", "r").keep(Operation("tags", {"a": "1"}))
    no_run, other_run, offline = _wrong(workspace)
    assert "has no run " + "0" * 32 in no_run
    assert "`dvc repro --force --single-item train" in no_run
    assert "`mlflow models serve -m models/serving` works without it" in no_run
    assert other_run.startswith(f"reports/metrics.json is of run {'1' * 32}, not {'0' * 32}")
    assert offline == "1 offline runs are not sent yet: run `headstart sync`"


def test_a_store_that_is_away_is_wrong(workspace: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    record_run(workspace, "0" * 32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "the tracking store must answer" in _wrong(workspace)[0]
