"""The verdict on a run that was made again."""

import contextlib
import sys
from typing import Any

import pytest

from headstart.common.errors import TrackingError
from headstart.common.interrupts import run_command
from headstart.common.paths import Project
from headstart.tracking import reproduce_run as module
from headstart.tracking.reproduce_run import Item, Verdict, reproduce_run
from headstart.tracking.store import open_store
from tests.tracking.conftest import new_model_run

SAME = Item("metric", "test_accuracy", "0.5", "0.5")


def test_identical_holds() -> None:
    verdict = Verdict("r", "c" * 40, (SAME,))
    assert verdict.holds
    assert "identical: 1 of 1" in verdict.as_text()
    assert verdict.as_json()["items"][0]["same"]


def test_a_changed_metric_is_told_with_its_difference() -> None:
    verdict = Verdict("r", "c" * 40, (SAME, Item("metric", "test_ece", "0.10", "0.12")))
    assert not verdict.holds
    assert "DIFFERENT in 1 of 2" in verdict.as_text()
    assert "0.10 then, 0.12 now (+0.02)" in verdict.as_text()


def test_causes_are_named_in_the_order_of_the_pipeline() -> None:
    items = (
        Item("metric", "test_accuracy", "0.5", "0.6"),
        Item("version", "version.keras", "3.15.1", "3.14.0"),
        Item("input", "dvc.data/fetched.md5", "a", "b"),
    )
    verdict = Verdict("r", "c" * 40, items)
    assert [cause.name for cause in verdict.causes] == ["version.keras", "dvc.data/fetched.md5"]
    assert "first cause: version version.keras" in verdict.as_text()


def test_another_library_alone_does_not_decide() -> None:
    verdict = Verdict("r", "c" * 40, (SAME, Item("version", "version.dvc", "3.67.1", "3.68.0")))
    assert verdict.holds


def test_the_pipeline_is_shown_while_it_runs(
    workspace: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_model_run(workspace, {"headstart.kind": "model"}) as run:
        run.log_text("seed: 1\n", "params.yaml", "provenance")
    called: list[tuple[list[str], bool]] = []

    def stop(command: list[str], *_: Any, shown: bool = False) -> None:
        called.append((command[-3:], shown))
        raise TrackingError("stop")

    monkeypatch.setattr(module, "_worktree", lambda *_: contextlib.nullcontext(workspace))
    monkeypatch.setattr(module, "_run", stop)
    with pytest.raises(TrackingError, match="stop"):
        reproduce_run(workspace, run.run_id)
    assert called == [(["repro", "--force", "--no-run-cache"], True)]


def test_what_is_shown_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    run_command([sys.executable, "-c", "print('Running stage')"], shown=True)
    assert "Running stage" in capfd.readouterr().err


def test_a_verdict_is_not_written_into_a_run_that_has_ended(
    workspace: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_model_run(workspace, {"headstart.kind": "model"}) as run:
        run.log_text("seed: 1\n", "params.yaml", "provenance")
    client = open_store(workspace.root).client
    before = client.get_run(run.run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    with pytest.raises(TrackingError, match=r"MLFLOW_RUN_ID must name a run that is open.*unset"):
        reproduce_run(workspace, run.run_id)
    assert client.get_run(run.run_id).to_dictionary() == before
