"""Twelve ways to make a run: each lands once, in the right database, and can be made again."""

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from tests.e2e.conftest import Workspace, make_workspace, replace, tracking_server

pytestmark = pytest.mark.slow

_EVALUATED = {"predictions.csv", "metrics.json", "evaluation"}
_LINEAGE_TAGS = {
    "git.commit", "git.dirty", "dvc.stage", "dvc.source", "dvc.source.md5", "dvc.data/fetched.md5",
    "dvc.data/manifest.csv.md5", "dvc.data/images.h5.md5", "dvc.data/features.h5.md5",
    "dvc.models/backbone.h5.md5", "dvc.data/best_head.json.md5", "fingerprint", "seed", "study",
    "trial", "version.python", "version.keras", "version.numpy", "machine.processor",
}  # fmt: skip


@dataclass(frozen=True)
class Landed:
    """A run where it landed: the database by its address, and the experiment."""

    way: str
    uri: str
    experiment: str
    run: Run


@dataclass
class Ways:
    """A workspace, the databases that runs may land in, and what was made how: seed → way."""

    workspace: Workspace
    uris: list[str]
    made: dict[str, str]
    dirty: set[str]

    def landed(self) -> list[Landed]:
        """Every run of a model in every database."""
        found = []
        for uri in self.uris:
            client = MlflowClient(uri)
            names = {e.experiment_id: e.name for e in client.search_experiments()}
            query = "tags.`headstart.kind` = 'model'"
            for run in client.search_runs(list(names), query, max_results=1000):
                way = self.made.get(run.data.tags["seed"], "unknown")
                found.append(Landed(way, uri, names[run.info.experiment_id], run))
        return found


def _seed(workspace: Workspace, seed: int, *, root: Path | None = None) -> None:
    """Set the seed in params.yaml and commit everything, so that the tree is clean."""
    root = root or workspace.root
    path = root / "params.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [f"seed: {seed}" if line.startswith("seed: ") else line for line in lines]
    path.write_text("\n".join(changed) + "\n", encoding="utf-8")
    workspace.run("git", "add", "-A", cwd=root)
    workspace.run("git", "commit", "-q", "-m", f"seed {seed}", cwd=root)


def _wait_for_queue(workspace: Workspace) -> None:
    for _ in range(300):
        tasks = workspace.run("dvc", "queue", "status")
        if "Queued" not in tasks and "Running" not in tasks:
            names = re.findall(r"^\w+ +([\w-]+) .*Failed", tasks, re.MULTILINE)
            logs = [workspace.run("dvc", "queue", "logs", name) for name in names]
            assert not logs, "\n".join([tasks, *logs])
            return
        time.sleep(2)
    raise AssertionError(f"the queue did not end:\n{tasks}")


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """All twelve, each with a seed of its own, so that DVC has something to run."""
    base = tmp_path_factory.mktemp("ways")
    workspace = make_workspace(base / "headstart", base / "cache")
    made: dict[str, str] = {}

    made["1"] = "dvc repro"
    _seed(workspace, 1)
    workspace.run("dvc", "repro")

    made["2"] = "dvc exp run --queue"
    workspace.run("dvc", "exp", "run", "--queue", "-S", "seed=2")
    workspace.run("dvc", "queue", "start")
    _wait_for_queue(workspace)

    made["3"] = "dvc exp run --temp"
    workspace.run("dvc", "exp", "run", "--temp", "-S", "seed=3")

    made["4"] = made["5"] = "dvc exp run --run-all -j 2"
    for seed in (4, 5):
        workspace.run("dvc", "exp", "run", "--queue", "-S", f"seed={seed}")
    workspace.run("dvc", "exp", "run", "--run-all", "-j", "2")

    command = ["mlflow", "run", "--env-manager", "local"]
    made["6"] = "mlflow run . -e main"
    workspace.run(*command, ".", "-e", "main", "-P", "seed=6")
    made["7"] = "mlflow run . -e train"
    workspace.run(*command, ".", "-e", "train", "-P", "seed=7")

    made["8"] = "git worktree"
    tree = base / "worktree"
    workspace.run("git", "worktree", "add", "-q", "-b", "other", str(tree))
    _seed(workspace, 8, root=tree)
    workspace.run("dvc", "repro", cwd=tree)

    made["9"] = "mlflow run from another folder"
    elsewhere = base / "elsewhere"
    elsewhere.mkdir()
    workspace.run(*command, str(workspace.root), "-e", "main", "-P", "seed=9", cwd=elsewhere)

    made["10"] = "dvc exp run"
    workspace.run("dvc", "exp", "run", "-S", "seed=10")

    made["11"] = "MLFLOW_EXPERIMENT_NAME"
    _seed(workspace, 11)
    workspace.run("dvc", "repro", MLFLOW_EXPERIMENT_NAME="by hand")

    with tracking_server(workspace, base / "server") as address:
        uri = f"http://{address}"
        made["12"] = "MLFLOW_TRACKING_URI"
        _seed(workspace, 12)
        workspace.run("dvc", "repro", MLFLOW_TRACKING_URI=uri)

        made["13"] = "a dirty tree"
        _seed(workspace, 13)
        module = workspace.root / "src/headstart/training/tune.py"
        module.write_text(module.read_text(encoding="utf-8") + "\n# not committed\n")
        (workspace.root / "src/headstart/models/new_idea.py").write_text('"""Not in git."""\n')
        workspace.run("dvc", "repro")

        uris = [workspace.tracking_uri, f"sqlite:///{elsewhere}/mlflow.db", uri]
        yield Ways(workspace, uris, made, {"13"})


def _of(ways: Ways, seed: str) -> Landed:
    (found,) = [landed for landed in ways.landed() if landed.run.data.tags["seed"] == seed]
    return found


def test_each_way_lands_once_in_its_place(ways: Ways) -> None:
    landed = ways.landed()
    assert Counter(one.run.data.tags["seed"] for one in landed) == dict.fromkeys(ways.made, 1)
    ours, elsewhere, served = ways.uris
    places = {one.run.data.tags["seed"]: (one.uri, one.experiment) for one in landed}
    # `mlflow run` opens its run before any of our code, in its own default experiment.
    by_hand = {
        "6": (ours, "Default"), "7": (ours, "Default"), "9": (elsewhere, "Default"),
        "11": (ours, "by hand"), "12": (served, "headstart"),
    }  # fmt: skip
    assert places == {seed: by_hand.get(seed, (ours, "headstart")) for seed in ways.made}
    folders = [ways.workspace.root.parent / "worktree", ways.workspace.root / ".dvc" / "tmp"]
    assert [path for folder in folders for path in folder.rglob("mlflow.db")] == []


def test_each_run_is_complete(ways: Ways) -> None:
    for landed in ways.landed():
        run, client = landed.run, MlflowClient(landed.uri)
        assert run.info.status == "FINISHED", landed.way
        assert set(run.data.tags) >= _LINEAGE_TAGS, landed.way
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert names >= {"model.h5", "provenance", "data"}, landed.way
        if landed.way != "mlflow run . -e train":
            assert names >= _EVALUATED, landed.way
            assert "test_accuracy" in run.data.metrics, landed.way
        provenance = {a.path for a in client.list_artifacts(run.info.run_id, "provenance")}
        wanted = {"provenance/params.yaml", "provenance/dvc.lock", "provenance/manifest.csv"}
        assert provenance >= wanted, landed.way
        assert run.data.params["seed"] == run.data.tags["seed"], landed.way
        assert run.inputs is not None
        digests = {i.dataset.name: i.dataset.digest for i in run.inputs.dataset_inputs}
        hashed = run.data.tags["dvc.data/features.h5.md5"]
        assert digests["data/features.h5"] == hashed, landed.way
        if landed.way.startswith("dvc exp run"):
            assert run.data.tags["dvc.exp_name"], landed.way
            assert run.data.tags["dvc.baseline_rev"], landed.way


def test_clean_and_dirty_trees_are_told_apart(ways: Ways) -> None:
    clean = ("1", "8", "11", "12")
    for seed in clean:
        assert _of(ways, seed).run.data.tags["git.dirty"] == "false", ways.made[seed]
    landed = _of(ways, "13")
    assert landed.run.data.tags["git.dirty"] == "true"
    client = MlflowClient(landed.uri)
    path = client.download_artifacts(landed.run.info.run_id, "provenance/uncommitted.patch")
    patch = Path(path).read_text(encoding="utf-8")
    assert "# not committed" in patch
    assert "new_idea.py" in patch


def test_each_run_can_be_made_again(ways: Ways, tmp_path: Path) -> None:
    for landed in ways.landed():
        run_id, output = landed.run.info.run_id, tmp_path / "verdict.json"
        command = ["headstart", "reproduce", run_id, "--output", str(output)]
        said = ways.workspace.run(*command, MLFLOW_TRACKING_URI=landed.uri)
        verdict = json.loads(output.read_text(encoding="utf-8"))
        assert verdict["holds"], f"{landed.way}: {said}"
        compared = {(item["kind"], item["name"]) for item in verdict["items"]}
        assert ("result", "model.h5") in compared, landed.way
        assert ("metric", "val_accuracy") in compared, landed.way


def test_a_changed_version_and_a_changed_param_are_named(ways: Ways) -> None:
    workspace, first = ways.workspace, _of(ways, "1").run
    client = MlflowClient(ways.uris[0])
    before = first.data.tags["version.numpy"]
    # As if the run had been made with another NumPy.
    client.set_tag(first.info.run_id, "version.numpy", "1.0.0")
    try:
        other = _of(ways, "3").run.info.run_id
        said = workspace.run("headstart", "compare", first.info.run_id, other)
        again = workspace.run("headstart", "reproduce", first.info.run_id)
    finally:
        client.set_tag(first.info.run_id, "version.numpy", before)
    rows = [line.split() for line in said.splitlines()]
    assert ["seed", "1", "3"] in rows, said
    assert ["version.numpy", "1.0.0", before] in rows, said
    assert f"version.numpy: 1.0.0 then, {before} now" in again


def test_a_changed_image_is_named(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "headstart", tmp_path / "cache")
    rng = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    for channel, name in enumerate(("red", "green", "blue")):
        (pictures / name).mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            pixels[..., channel] += 60
            Image.fromarray(pixels).save(pictures / name / f"{number}.png")
    replace(workspace.root / "params.yaml", "data/sources/animal-silhouettes.yaml", str(pictures))
    workspace.run("git", "commit", "-qam", "own pictures")
    workspace.run("dvc", "repro")
    first = json.loads((workspace.root / "models/run.json").read_text())["run_id"]
    Image.fromarray(np.full((40, 40, 3), 200, np.uint8)).save(pictures / "red" / "7.png")
    output = tmp_path / "verdict.json"
    done = subprocess.run(
        ["headstart", "reproduce", first, "--output", str(output)],
        cwd=workspace.root,
        env=workspace.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "first cause: input dvc.source.md5" in done.stdout, done.stdout
    workspace.run("dvc", "repro")
    second = json.loads((workspace.root / "models/run.json").read_text())["run_id"]
    said = workspace.run("headstart", "compare", first, second)
    assert "1 images were added, 1 removed, 0 relabelled, 0 moved" in said


def test_no_worktree_is_left(ways: Ways) -> None:
    trees = ways.workspace.run("git", "worktree", "list").splitlines()
    assert len(trees) == 2, trees
