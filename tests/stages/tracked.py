"""What MLflow shows of a run, held to the reports that the stages wrote."""

import csv
from pathlib import Path

import keras
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from headstart.common import files
from headstart.common.cost import graph_cost
from headstart.common.paths import Project
from headstart.tracking.runs import read_run_id
from headstart.tracking.store import open_store


def hold_model_to_reports(project: Project) -> None:
    """Hold every metric of the recorded run to reports/*.json and the curves to reports/train."""
    summary = files.read_json(project.training_report / "summary.json")
    finals = {f"val_{name}": value for name, value in summary["validation"].items()}
    model = keras.models.load_model(project.model, compile=False)
    finals["mflops"] = graph_cost(model.layers).mflops
    finals["model_mb"] = project.model.stat().st_size / 1e6
    if project.metrics.is_file():
        tested = files.read_json(project.metrics)
        finals |= {f"test_{name}": value for name, value in tested.items() if name != "run_id"}
    curves = {
        **_curves(project.training_report / "curve.csv", "while_training"),
        **_curves(project.training_report / "fine_tune.csv", "while_fine_tuning"),
    }
    store = open_store(project.root)
    run_id = read_run_id(project.run)
    (run,) = [
        run for run in store.client.search_runs([store.experiment_id]) if run.info.run_id == run_id
    ]
    hold_run(store.client, run, finals, curves)


def hold_run(
    client: MlflowClient, run: Run, finals: dict[str, float], curves: dict[str, list[float]]
) -> None:
    """Hold a run as MLflow's table, charts and filter show it to its figures and curves."""
    shown = run.data.metrics
    assert shown == pytest.approx({**finals, **{name: c[-1] for name, c in curves.items()}})
    assert not [name for name in finals if "/" in name]
    assert all("/" in name for name in curves)
    for name, values in {**{name: [value] for name, value in finals.items()}, **curves}.items():
        history = client.get_metric_history(run.info.run_id, name)
        steps = range(1, len(values) + 1) if name in curves else [0]
        assert [metric.step for metric in history] == list(steps), name
        assert [metric.value for metric in history] == pytest.approx(values), name
        assert _is_found(client, run, f"metrics.`{name}` >= {values[-1] - 1e-6:.9f}"), name
        assert not _is_found(client, run, f"metrics.`{name}` > {values[-1] + 1e-6:.9f}"), name


def _is_found(client: MlflowClient, run: Run, query: str) -> bool:
    found = client.search_runs([run.info.experiment_id], query)
    return run.info.run_id in [other.info.run_id for other in found]


def _curves(path: Path, curve: str) -> dict[str, list[float]]:
    if not path.is_file():
        return {}
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    return {
        f"{curve}/{'train_loss' if name == 'loss' else f'val_{name}'}": [
            float(row[name]) for row in rows
        ]
        for name in rows[0]
        if name != "epoch"
    }
