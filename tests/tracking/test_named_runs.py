"""Every way in which somebody may name a run."""

import pytest

from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.tracking.named_runs import named_run, version_of_run
from headstart.tracking.registry import Registry
from headstart.tracking.runs import new_run
from headstart.tracking.store import open_store


def logged(project: Project, **tags: str) -> str:
    with new_run(project, "n", {"headstart.kind": "model", **tags}) as run:
        run.log_results({"val_accuracy": 0.9}, "", [])
    return run.run_id


def test_a_run_is_found_by_id_beginning_experiment_version_and_alias(workspace: Project) -> None:
    store = open_store(workspace.root)
    first = logged(workspace, **{"dvc.exp_name": "wide-moth", "registered.version": "1"})
    second = logged(workspace, **{"dvc.exp_name": "wide-moth"})
    store.client.create_registered_model("headstart")
    store.client.create_model_version("headstart", "file:///nowhere", first)
    registry = Registry(store, "headstart")
    registry.promote("1", "a test")

    def found(name: str) -> str:
        return str(named_run(workspace, store, name).info.run_id)

    assert found(first) == found(first[:8]) == first
    # The newest of an experiment that was run again.
    assert found("wide-moth") == second
    assert found("1") == found("champion") == first
    assert version_of_run(workspace, registry, first[:6]) == "1"
    assert version_of_run(workspace, registry, "7") == "7"
    with pytest.raises(TrackingError, match=r"has none: `dvc repro` registers"):
        version_of_run(workspace, registry, second)
    # Also of runs of other kinds, by their whole id.
    with new_run(workspace, "n", {}) as other:
        pass
    assert found(other.run_id) == other.run_id


@pytest.mark.parametrize("name", ["", "9", "dead", "no-such", "challenger", "\x1b[2J", "a" * 31])
def test_what_names_no_run_is_refused_with_those_there_are(workspace: Project, name: str) -> None:
    run_id = logged(workspace)
    store = open_store(workspace.root)
    with pytest.raises(TrackingError, match=rf"is of 0 runs: .*{run_id[:8]}"):
        named_run(workspace, store, name)


def test_a_beginning_of_several_is_refused(workspace: Project) -> None:
    store = open_store(workspace.root)
    made: dict[str, str] = {}
    for _ in range(40):
        run_id = logged(workspace)
        if run_id[0] in made:
            break
        made[run_id[0]] = run_id
    # One character is no name; every id begins with none.
    with pytest.raises(TrackingError, match=r"is of 0 runs"):
        named_run(workspace, store, run_id[0])
