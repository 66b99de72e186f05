"""The search stage: from features.h5 to best_head.json and trials.csv, the same bytes twice."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from headstart.common.errors import SearchError
from headstart.common.paths import Project
from headstart.heads.config import read_head
from headstart.params.search import SearchParams
from headstart.params.search_space import DEFAULT_SPACE
from headstart.stages.search import Sections, run
from headstart.tracking.store import open_store
from tests.heads.made_features import write_made_features
from tests.stages.tracked import hold_run

SEARCH = SearchParams.model_validate(
    {
        "n_trials": 6,
        "metric": "log_loss",
        "population": 4,
        "batch_size": 32,
        "space": {
            **DEFAULT_SPACE.model_dump(),
            "kind": {"choices": ["network", "logistic_regression", "ridge"]},
            "layers": "all",
            "width": {"choices": [8, 16]},
            "epochs": 5,
        },
        "default_head": {"kind": "network", "width": 16, "epochs": 5},
    }
)


def test_writes_the_best_head_and_every_trial_the_same_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    outputs = []
    for name in ("first", "second"):
        workspace = Project(tmp_path / name)
        write_made_features(workspace.features)
        workspace.params.write_text("seed: 3\n")
        line = run(workspace, Sections(seed=3, search=SEARCH))
        assert line.startswith("6 trials, best log_loss")
        trials = pd.read_csv(workspace.search_report / "trials.csv")
        head = read_head(workspace.best_head)
        assert trials["number"].tolist() == list(range(6))
        assert head.value == trials["value"].min()
        assert head.trial == int(trials["value"].argmin())
        assert (trials.loc[0, "width"], trials.loc[0, "kind"]) == (16, "network")
        assert trials.loc[1, "kind"] == "ridge"
        assert {"network", "ridge", "logistic_regression"} >= set(trials["kind"])
        report = sorted(workspace.search_report.iterdir())
        assert {path.name for path in report} == {"index.html", "trials.csv"}
        outputs.append([path.read_bytes() for path in (workspace.best_head, *report)])
    assert outputs[0] == outputs[1]
    _hold_study_to_reports(workspace)


def _hold_study_to_reports(workspace: Project) -> None:
    """The parent's and each trial's metrics, in MLflow's table, charts and filter."""
    table = pd.read_csv(workspace.search_report / "trials.csv").set_index("number")
    trials: dict[int, dict[str, Any]] = table.to_dict("index")  # type: ignore[assignment]
    head = read_head(workspace.best_head)
    store = open_store(workspace.root)
    (study,) = store.client.search_runs([store.experiment_id], "tags.`headstart.kind` = 'study'")
    hold_run(store.client, study, {"best_log_loss": head.value, "n_trials": 6.0}, {})
    assert study.info.run_name == "seed=3 · animal-silhouettes · search"
    assert head.study in study.data.tags["mlflow.note.content"]
    runs = store.client.search_runs([store.experiment_id], "tags.`headstart.kind` = 'trial'")
    assert len(runs) == 6
    for made in runs:
        row = trials[int(made.data.tags["optuna.trial"])]
        finals = {
            "value": row["value"],
            "val_log_loss": row["validation_log_loss"],
            "val_accuracy": row["validation_accuracy"],
        }
        history = {
            name: [m.value for m in store.client.get_metric_history(made.info.run_id, name)]
            for name in ("while_training/val_log_loss", "while_training/val_accuracy")
        }
        hold_run(store.client, made, finals, history)
        at_best = history["while_training/val_log_loss"][int(row["best_epoch"]) - 1]
        assert at_best == pytest.approx(row["value"])
        assert f"log_loss {row['value']:.4f}" in made.data.tags["mlflow.note.content"]


def test_a_search_that_fails_leaves_a_failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = Project(tmp_path)
    write_made_features(workspace.features)
    hasty = SEARCH.model_copy(update={"timeout_s": 1e-9})
    with pytest.raises(SearchError, match="needs a completed trial"):
        run(workspace, Sections(seed=3, search=hasty))
    store = open_store(workspace.root)
    (failed,) = store.client.search_runs([store.experiment_id])
    assert failed.info.status == "FAILED"
    assert failed.data.tags["headstart.kind"] == "study"
    assert "needs a completed trial" in failed.data.tags["error"]
    assert "needs a completed trial" in failed.data.tags["mlflow.note.content"]
