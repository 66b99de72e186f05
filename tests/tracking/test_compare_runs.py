"""What differs between runs, from their manifests and predictions."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from headstart.common.errors import TrackingError
from headstart.common.files import write_csv
from headstart.common.paths import Project
from headstart.tracking.compare_runs import RunPair, compare_runs
from headstart.tracking.runs import new_run
from headstart.tracking.store import open_store

Rows = Sequence[tuple[str, ...]]


def _compared(
    project: Project, folder: Path, manifests: Sequence[Rows], predictions: Sequence[Rows]
) -> RunPair:
    """Log two runs with tables of these rows, and compare the second with the first."""
    run_ids = []
    for manifest, predicted in zip(manifests, predictions, strict=True):
        write_csv(folder / "manifest.csv", ["path", "sha256", "label", "split", "group"], manifest)
        columns = ["path", "sha256", "label", "split", "predicted_label", "p(a)", "p(b)"]
        write_csv(folder / "predictions.csv", columns, predicted)
        with new_run(project, "n", {}) as run:
            run.log_artifact(folder / "manifest.csv", "provenance")
            run.log_artifact(folder / "predictions.csv")
        run_ids.append(run.run_id)
    compared = compare_runs(project, run_ids, seed=0)
    (pair,) = compared.pairs
    assert pair.run_id == run_ids[1]
    assert pair.data is not None
    assert f"  {pair.data.sentence}\n" in compared.as_text()
    assert f"  {len(pair.changed)} images are predicted differently" in compared.as_text()
    return pair


def test_data_changes_are_found_by_content(workspace: Project, tmp_path: Path) -> None:
    before = [
        ("a/1.png", "s1", "a", "train", "g"), ("a/2.png", "s2", "a", "test", "g"),
        ("b/3.png", "s3", "b", "train", "g"), ("b/4.png", "s4", "b", "validation", "g"),
    ]  # fmt: skip
    after = [
        ("a/renamed.png", "s1", "a", "train", "g"), ("b/2.png", "s2", "b", "test", "g"),
        ("b/4.png", "s4", "b", "train", "g"), ("b/5.png", "s5", "b", "train", "g"),
    ]  # fmt: skip
    change = _compared(workspace, tmp_path, [before, after], [[], []]).data
    assert change is not None
    assert change.added == ["b/5.png"]
    assert change.removed == ["b/3.png"]
    assert change.relabelled == ["b/2.png"]
    assert change.moved == ["b/4.png"]
    assert "1 images were added" in change.sentence


def test_the_same_data_are_called_so(workspace: Project, tmp_path: Path) -> None:
    # Classes may be called as numbers and nothing are written.
    rows = [("01/1.png", "s1", "01", "train", "NA"), ("NA/2.png", "s2", "NA", "train", "")]
    pair = _compared(workspace, tmp_path, [rows, rows], [[], []])
    assert pair.data is not None
    assert pair.data.sentence == "The data are the same."


def test_changed_predictions_are_those_of_common_images(workspace: Project, tmp_path: Path) -> None:
    right, wrong = ("0.9", "0.1"), ("0.1", "0.9")
    before = [
        ("a/1", "s1", "a", "test", "a", *right),
        ("a/2", "s2", "a", "test", "b", *wrong),
        ("a/3", "s3", "a", "test", "a", *right),
        ("x", "s9", "a", "test", "a", *right),
    ]
    after = [
        ("a/1", "s1", "a", "test", "b", *wrong),
        ("a/2", "s2", "a", "test", "b", *wrong),
        ("a/3", "s3", "a", "validation", "b", *wrong),
    ]
    pair = _compared(workspace, tmp_path, [[], []], [before, after])
    assert pair.test is None, "too few images are common"
    (change,) = pair.changed
    assert (change.path, change.before, change.after, change.label) == ("a/1", "a", "b", "a")
    assert (change.sha256, change.split) == ("s1", "test")


def test_one_run_is_no_comparison(workspace: Project) -> None:
    with new_run(workspace, "n", {}) as run:
        pass
    with pytest.raises(TrackingError, match="at least two runs"):
        compare_runs(workspace, [run.run_id, run.run_id], seed=0)


def test_the_models_figures_are_compared_not_its_curves(workspace: Project) -> None:
    """A run of version 0.1.0 has curve and final figure under one name."""
    store = open_store(workspace.root)
    old = store.client.create_run(store.experiment_id).info.run_id
    for step, value in enumerate((0.944, 0.7, 0.9065)):
        store.client.log_metric(old, "val_accuracy", value, step=step)
    with new_run(workspace, "new", {}) as run:
        run.log_epochs([{"accuracy": 0.8}, {"accuracy": 0.5}])
        run.log_results({"val_accuracy": 0.963, "test_accuracy": 0.9}, "", [])
    compared = compare_runs(workspace, [old, run.run_id], seed=0)
    text = compared.as_text()
    assert text.splitlines()[1] == f"candidate  {run.run_id[:8]}  new"
    assert text.splitlines()[0].startswith(f"baseline   {old[:8]}")
    assert "\ncandidate against the baseline:\n" in text
    assert max(map(len, text.splitlines())) <= 80
    assert compared.metrics == {"test_accuracy": [None, 0.9], "val_accuracy": [0.944, 0.963]}
