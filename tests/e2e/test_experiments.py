"""Runs made other ways than `dvc repro`: each lands once, in the right database."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from headstart.common.files import sha256_of_file
from headstart.features.cache_commands import entries
from tests.e2e.conftest import TRIALS, Workspace, make_workspace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of its own that has run once: these tests add runs to its database."""
    base = tmp_path_factory.mktemp("experiments")
    made = make_workspace(base / "headstart", base / "cache")
    made.run("dvc", "repro")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-q", "-m", "the lock")
    return made


def _models(workspace: Workspace, uri: str | None = None) -> list[Run]:
    client = MlflowClient(uri or workspace.tracking_uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = "tags.`headstart.kind` = 'model'"
    return list(client.search_runs(experiments, query, max_results=1000))


def _new(workspace: Workspace, before: list[Run], uri: str | None = None) -> Run:
    known = {run.info.run_id for run in before}
    (found,) = [run for run in _models(workspace, uri) if run.info.run_id not in known]
    assert found.info.status == "FINISHED"
    return found


def test_mlflow_run_train_is_one_run_with_its_params(workspace: Workspace) -> None:
    before = _models(workspace)
    params = (workspace.root / "params.yaml").read_bytes()
    model = (workspace.root / "models/model.h5").read_bytes()
    command = ["mlflow", "run", ".", "-e", "train", "--env-manager", "local"]
    # DVC writes the last one as 1e-05, which YAML 1.1 reads as text.
    given = ("learning_rate=0.005", "epochs=7", "weight_decay=0.00001")
    workspace.run(*command, *(word for text in given for word in ("-P", text)))
    run = _new(workspace, before)
    assert run.data.params["learning_rate"] == "0.005"
    assert run.data.params["train.learning_rate"] == "0.005"
    assert run.data.params["train.epochs"] == "7"
    assert float(run.data.params["train.weight_decay"]) == 1e-5
    assert run.data.params["seed"] == "0"
    assert (workspace.root / "params.yaml").read_bytes() == params
    assert (workspace.root / "models/model.h5").read_bytes() == model


def test_mlflow_run_with_nothing_changed_still_fills_its_run(workspace: Workspace) -> None:
    before = _models(workspace)
    command = ["mlflow", "run", ".", "-e", "main", "--env-manager", "local"]
    workspace.run(*command, "--experiment-name", "by hand")
    run = _new(workspace, before)
    # What is not given is params.yaml's, and not logged beside it.
    assert run.data.params["search.n_trials"] == str(TRIALS)
    assert [name for name in run.data.params if "." not in name] == ["seed"]
    assert "test_accuracy" in run.data.metrics
    recorded = json.loads((workspace.root / "models/run.json").read_text())
    assert recorded["run_id"] == run.info.run_id


def test_mlflow_run_from_another_folder_uses_its_database(
    workspace: Workspace, tmp_path: Path
) -> None:
    before = _models(workspace)
    command = ["mlflow", "run", str(workspace.root), "-e", "train", "--env-manager", "local"]
    workspace.run(*command, "-P", "seed=5", cwd=tmp_path)
    assert len(_models(workspace)) == len(before)
    (run,) = _models(workspace, f"sqlite:///{tmp_path}/mlflow.db")
    assert run.data.tags["seed"] == "5"


def test_temporary_and_queued_experiments_share_database_and_cache(
    workspace: Workspace,
) -> None:
    before = _models(workspace)
    shards = {p.name for p in workspace.cache.rglob("*.h5")}
    params = (workspace.root / "params.yaml").read_bytes()
    sets = ("seed=6", "train.weight_decay=0.00001")
    workspace.run("dvc", "exp", "run", "--temp", *(w for text in sets for w in ("-S", text)))
    assert (workspace.root / "params.yaml").read_bytes() == params
    temporary = _new(workspace, before)
    assert temporary.data.tags["seed"] == "6"
    assert float(temporary.data.params["train.weight_decay"]) == 1e-5
    assert temporary.data.tags["dvc.exp_name"]
    workspace.run("dvc", "exp", "run", "--queue", "-S", "train.epochs=3")
    workspace.run("dvc", "exp", "run", "--run-all", "-j", "1")
    queued = _new(workspace, [*before, temporary])
    assert queued.data.params["train.epochs"] == "3"
    assert queued.data.tags["git.dirty"] == "true"
    assert {p.name for p in workspace.cache.rglob("*.h5")} == shards
    client = MlflowClient(workspace.tracking_uri)
    champion = client.get_model_version_by_alias("headstart", "champion")
    assert champion.run_id not in (temporary.info.run_id, queued.info.run_id)
    shown = json.loads(workspace.run("dvc", "exp", "show", "--json"))
    assert len(shown) >= 2


def _feature_rows(workspace: Workspace) -> dict[str, int]:
    """How many rows the cache holds of each encoder."""
    found = [entry for entry in entries(workspace.cache) if "backbone" in entry.recipe]
    assert len({entry.recipe["backbone"] for entry in found}) == len(found)
    return {entry.recipe["backbone"]: entry.n_rows for entry in found}


def test_several_encoders_queued_share_one_cache(workspace: Workspace) -> None:
    before = _models(workspace)
    own = _feature_rows(workspace)
    encoders = ("mobilenetv2", "vgg16")
    for encoder in encoders:
        sets = [f"extract.encoders={encoder}", "extract.weights=random", "image.size_px=64"]
        assignments = [word for text in sets for word in ("-S", text)]
        workspace.run("dvc", "exp", "run", "--queue", *assignments)
    workspace.run("dvc", "exp", "run", "--queue", "-S", "seed=8")
    workspace.run("dvc", "exp", "run", "--run-all", "-j", "2")
    known = {run.info.run_id for run in before}
    runs = [run for run in _models(workspace) if run.info.run_id not in known]
    by_backbone = {run.data.params["extract.encoders"]: run for run in runs}
    assert sorted(by_backbone) == sorted(["efficientnet-lite0", *encoders])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all("test_accuracy" in run.data.metrics for run in runs)
    features = {run.data.tags["dvc.data/features.h5.md5"] for run in runs}
    assert len(features) == len(runs)
    # Each encoder has looked at every image once; the third experiment found its rows there.
    assert list(own) == ["efficientnet-lite0"]
    assert _feature_rows(workspace) == dict.fromkeys(
        ["efficientnet-lite0", *encoders], own["efficientnet-lite0"]
    )


def test_two_encoders_at_once_and_made_again(workspace: Workspace, tmp_path: Path) -> None:
    before = _models(workspace)
    sets = [
        "extract.encoders=[efficientnet-lite0,mobilenetv2]",
        "extract.weights=random",
        "image.size_px=64",
        "search.n_trials=12",
    ]
    assignments = [word for text in sets for word in ("-S", text)]
    workspace.run("dvc", "exp", "run", "--temp", *assignments)
    run = _new(workspace, before)
    assert run.data.params["extract.encoders"] == "efficientnet-lite0, mobilenetv2"
    assert run.data.metrics["test_accuracy"] > 0.2  # of ten classes; weights are random
    output = tmp_path / "verdict.json"
    said = workspace.run("headstart", "reproduce", run.info.run_id, "--output", str(output))
    assert json.loads(output.read_text())["holds"], said


def test_vgg16_by_its_weights_file(workspace: Workspace, assets: Path) -> None:
    before = _models(workspace)
    weights = assets / "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assignments = ["-S", "extract.encoders=vgg16", "-S", f"extract.weights={weights.resolve()}"]
    assignments += ["-S", f"extract.weights_sha256={sha256_of_file(weights)}"]
    workspace.run("dvc", "exp", "run", "--temp", "-S", "image.size_px=96", *assignments)
    run = _new(workspace, before)
    assert run.data.params["extract.encoders"] == "vgg16"
    assert run.data.metrics["test_accuracy"] > 0.5


def test_dvc_shows_sensible_things(workspace: Workspace, tmp_path: Path) -> None:
    metrics = json.loads(workspace.run("dvc", "metrics", "show", "--json"))
    assert metrics[""]["data"]["reports/metrics.json"]["data"]["accuracy"] > 0.8
    workspace.run("dvc", "metrics", "diff")
    workspace.run("dvc", "plots", "show", "-o", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text(encoding="utf-8")
    for title in ("Confusion matrix (test images)", "Value of each trial"):
        assert title in page
    assert "evaluate" in workspace.run("dvc", "dag")


def test_a_run_can_be_made_again(workspace: Workspace, tmp_path: Path) -> None:
    recorded = json.loads((workspace.root / "models/run.json").read_text())["run_id"]
    output = tmp_path / "verdict.json"
    said = workspace.run("headstart", "reproduce", recorded, "--output", str(output))
    verdict = json.loads(output.read_text())
    assert verdict["holds"], said
    kinds = {item["kind"] for item in verdict["items"]}
    assert kinds == {"version", "param", "input", "head", "metric", "result"}
    assert "identical" in said


def test_runs_can_be_compared(workspace: Workspace, tmp_path: Path) -> None:
    first = json.loads((workspace.root / "models/run.json").read_text())["run_id"]
    other = next(
        run.info.run_id
        for run in _models(workspace)
        if run.data.tags["seed"] == "6" and "test_accuracy" in run.data.metrics
    )
    page = tmp_path / "page.html"
    said = workspace.run("headstart", "compare", first, other, "--html", str(page))
    assert "moved to another split" in said
    assert "seed" in said
    assert "data:image/" in page.read_text(encoding="utf-8")
