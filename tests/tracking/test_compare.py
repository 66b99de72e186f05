"""What differs between runs, from their manifests and predictions."""

import pandas as pd

from headstart.common.paths import Project
from headstart.tracking.compare import (
    as_text,
    changed_predictions,
    compare_runs,
    data_change,
    data_in_words,
)
from headstart.tracking.lineage import gather
from headstart.tracking.runs import training_run
from headstart.tracking.store import open_store


def _manifest(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "sha256", "label", "split"])


def test_data_changes_are_found_by_content() -> None:
    before = _manifest(
        ("a/1.png", "s1", "a", "train"), ("a/2.png", "s2", "a", "test"),
        ("b/3.png", "s3", "b", "train"), ("b/4.png", "s4", "b", "validation"),
    )  # fmt: skip
    after = _manifest(
        ("a/renamed.png", "s1", "a", "train"), ("b/2.png", "s2", "b", "test"),
        ("b/4.png", "s4", "b", "train"), ("b/5.png", "s5", "b", "train"),
    )  # fmt: skip
    change = data_change(before, after)
    assert change.added == ["b/5.png"]
    assert change.removed == ["b/3.png"]
    assert change.relabelled == ["b/2.png"]
    assert change.moved == ["b/4.png"]
    assert "1 images were added" in data_in_words(change)


def test_the_same_data_are_called_so() -> None:
    table = _manifest(("a/1.png", "s1", "a", "train"))
    assert data_in_words(data_change(table, table)) == "The data are the same."


def test_changed_predictions_are_those_of_common_images() -> None:
    columns = ["path", "sha256", "label", "split", "predicted_label"]
    before = pd.DataFrame(
        [
            ["a/1", "s1", "a", "test", "a"],
            ["a/2", "s2", "a", "test", "b"],
            ["x", "s9", "a", "test", "a"],
        ],
        columns=columns,
    )
    after = pd.DataFrame(
        [["a/1", "s1", "a", "test", "b"], ["a/2", "s2", "a", "test", "b"]], columns=columns
    )
    (change,) = changed_predictions(before, after)
    assert (change.path, change.before, change.after, change.label) == ("a/1", "a", "b", "a")


def test_the_models_figures_are_compared_not_its_curves(workspace: Project) -> None:
    """A run of version 0.1.0 has curve and final figure under one name."""
    store = open_store(workspace.root)
    old = store.client.create_run(store.experiment_id).info.run_id
    for step, value in enumerate((0.944, 0.7, 0.9065)):
        store.client.log_metric(old, "val_accuracy", value, step=step)
    with training_run(workspace, "new", gather(workspace, "train", {})) as run:
        run.log_epochs([{"accuracy": 0.8}, {"accuracy": 0.5}])
        run.log_metrics({"val_accuracy": 0.963, "test_accuracy": 0.9})
    compared = compare_runs(workspace, [old, run.run_id], seed=0)
    text = as_text(compared)
    assert text.splitlines()[1] == f"{run.run_id[:8]}  new"
    assert max(map(len, text.splitlines())) <= 80
    assert compared.metrics == {"test_accuracy": [None, 0.9], "val_accuracy": [0.944, 0.963]}
