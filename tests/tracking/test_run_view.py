"""The view of MLflow's run table that comes with an experiment."""

import json

import pytest

from headstart.common.paths import Project
from headstart.common.terminal import say
from headstart.tracking.run_view import MODEL_VIEW, VIEW_TAG, view_path
from headstart.tracking.store import open_store, run_table_address


def test_it_is_stored_with_the_experiment_and_what_somebody_changed_stays(
    workspace: Project,
) -> None:
    store = open_store(workspace.root)

    def stored() -> str:
        tags = store.client.get_experiment(store.experiment_id).tags
        return str(tags[VIEW_TAG])

    assert stored() == MODEL_VIEW
    store.client.set_experiment_tag(store.experiment_id, VIEW_TAG, "{}")
    open_store(workspace.root)
    assert stored() == "{}"


def test_it_is_as_mlflow_reads_it() -> None:
    view = json.loads(MODEL_VIEW)
    state = json.loads(view["state"])
    assert isinstance(view["name"], str)
    assert isinstance(view["createdAt"], int)
    assert set(state["selectedColumns"]) <= set(state["columnOrder"])
    # MLflow's limit on a tag of an experiment.
    assert len(MODEL_VIEW) < 5000


def test_its_address_is_that_of_the_server_and_is_printed_whole(
    workspace: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    address = run_table_address(workspace.root)
    assert address.startswith("http://127.0.0.1:5000/#/experiments/")
    assert address.endswith("&viewStateShareKey=headstart-models")
    assert view_path("7").startswith("/#/experiments/7/runs?")
    say(address)
    assert capsys.readouterr().out.strip() == address
