"""Runs by what they are worth, beside the best of them."""

from pathlib import Path

import pytest

from headstart.common.errors import TrackingError
from headstart.common.files import write_csv
from headstart.common.paths import Project
from headstart.tracking.leaderboard import rank_runs
from headstart.tracking.runs import new_run
from tests.tracking.conftest import git, record_run

N = 400


def logged(
    project: Project, folder: Path, name: str, n_right: int, params: dict[str, str], **tags: str
) -> str:
    """A run of a model that gets so many of 400 development images right, and its id."""
    said = {True: ("a", "0.9", "0.1"), False: ("b", "0.2", "0.8")}
    rows = [(f"a/{i}", f"s{i}", "a", "validation", *said[i < n_right]) for i in range(N)]
    columns = ["path", "sha256", "label", "split", "predicted_label", "p(a)", "p(b)"]
    write_csv(folder / "predictions.csv", columns, rows)
    with new_run(project, name, {"headstart.kind": "model", **tags}) as run:
        run.log_params(params)
        run.log_artifact(folder / "predictions.csv")
        run.log_results({"val_accuracy": n_right / N, "val_log_loss": 0.3}, "", [])
        test = {
            "test_accuracy": 0.9,
            "test_accuracy_ci95_low": 0.8,
            "test_accuracy_ci95_high": 0.95,
        }
        run.log_results(test, "", [])
    return run.run_id


def test_the_best_is_first_and_the_others_stand_beside_it(
    workspace: Project, tmp_path: Path
) -> None:
    plain = {"extract.encoders": "lite0", "seed": "0", "search.workers": "1"}
    first = logged(workspace, tmp_path, "first", 350, plain)
    best = logged(
        workspace, tmp_path, "second", 392, {**plain, "extract.encoders": "vgg16"},
        **{"dvc.exp_name": "wide-moth"},
    )  # fmt: skip
    near = logged(
        workspace, tmp_path, "third", 391, {**plain, "seed": "1", "search.workers": "2"},
        **{"registered.version": "3"},
    )  # fmt: skip
    with new_run(workspace, "a search", {"headstart.kind": "search"}) as other:
        other.log_results({"val_accuracy": 1.0}, "", [])
    found = rank_runs(workspace)
    assert [run.run_id for run in found.standings] == [best, near, first]
    assert found.baseline.run_id == first
    assert found.as_json()["baseline"] == first
    assert [run.differs for run in found.standings] == [
        {"extract.encoders": "vgg16"}, {"seed": "1"}, {}
    ]  # fmt: skip
    winner, second, last = found.standings
    assert winner.beside_best is None
    assert second.beside_best is not None
    assert second.beside_best[3] == "undecided"
    assert last.beside_best is not None
    assert last.beside_best[3] == "worse"
    assert last.beside_best[0] == pytest.approx(-42 / N)
    # No experiment of this name is in git.
    assert (winner.adopt, second.adopt, last.adopt) == ("", "headstart promote 3", "")
    head = git(workspace.root, "rev-parse", "HEAD").strip()
    git(workspace.root, "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/wide-moth", "HEAD")
    record_run(workspace, first)
    found = rank_runs(workspace)
    assert found.standings[0].adopt == found.adopting.removeprefix("To adopt the best: ")
    assert found.adopting.endswith("dvc exp apply wide-moth")
    assert found.standings[2].is_here
    text = found.as_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "worse than the best: -10.5 points (" in text
    assert "What made it: extract.encoders=vgg16, in place of the baseline's" in text
    assert "1 other run is not clearly worse." in text
    assert "90.0 % (80.0 to 95.0)" in text
    assert "the baseline" in text
    told = rank_runs(workspace, baseline=near[:8], most=1)
    (only,) = told.standings
    assert only.differs == {"extract.encoders": "vgg16", "seed": "0"}


def test_no_run_and_no_such_run(workspace: Project, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"needs runs of trained models.*run `dvc repro`"):
        rank_runs(workspace)
    run_id = logged(workspace, tmp_path, "one", 300, {})
    with pytest.raises(TrackingError, match=rf"but zzz is of 0 runs: .*{run_id[:8]}"):
        rank_runs(workspace, baseline="zzz")
