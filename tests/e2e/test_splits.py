"""data/splits.csv with the real tools: clones, experiments, growth, and runs made again."""

import json
from pathlib import Path

import pytest
import yaml

from headstart.dataset.manifest import read_manifest
from tests.e2e.conftest import Workspace, make_workspace, replace
from tests.images.pictures import write_picture

pytestmark = pytest.mark.slow


def add_images(folder: Path, start: int, stop: int) -> None:
    """Pictures of three classes that tell themselves apart by nothing but their names."""
    for label_id, label in enumerate(("apple", "pear", "plum")):
        for i in range(start, stop):
            write_picture(folder / label / f"{i:03d}.png", 1000 * label_id + i)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A project whose images lie outside of it."""
    add_images(tmp_path / "images", 0, 12)
    made = make_workspace(tmp_path / "headstart", tmp_path / "cache")
    replace(
        made.root / "params.yaml",
        "source: data/sources/animal-silhouettes.yaml",
        f"source: {tmp_path / 'images'}",
    )
    replace(made.root / "params.yaml", "n_trials: 6", "n_trials: 2")
    made.run("git", "commit", "-q", "-a", "-m", "own images")
    return made


def splits_of(root: Path) -> dict[str, str]:
    manifest = read_manifest(root / "data/manifest.csv")
    return dict(zip(manifest.paths, manifest.splits, strict=True))


@pytest.mark.ci
def test_thresholds_go_with_clones_and_experiments(workspace: Workspace, tmp_path: Path) -> None:
    # Of the pipeline, no more than this is about: an experiment is applied with all of its outputs.
    stages = yaml.safe_load((workspace.root / "dvc.yaml").read_text())["stages"]
    first_two = {name: stages[name] for name in ("fetch", "ingest")}
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": first_two}))
    splits = workspace.root / "data/splits.csv"
    workspace.run("dvc", "repro", "ingest")
    assert len(splits.read_text().splitlines()) == 1 + 3
    assert "up to date" in workspace.run("dvc", "status", "ingest")
    first, manifest = splits_of(workspace.root), (workspace.root / "data/manifest.csv").read_bytes()
    workspace.run("git", "add", "-A")
    workspace.run("git", "commit", "-q", "-m", "the first twelve")

    add_images(tmp_path / "images", 12, 40)
    workspace.run("dvc", "repro", "ingest")
    grown = splits_of(workspace.root)
    assert len(grown) == 120
    assert grown | first == grown
    assert "data/splits.csv" not in workspace.run("git", "status", "--porcelain")

    clone = Workspace(tmp_path / "clone", tmp_path / "another cache")
    workspace.run("git", "clone", "-q", str(workspace.root), str(clone.root))
    clone.run("dvc", "repro", "ingest")
    assert splits_of(clone.root) == grown
    assert (clone.root / "data/manifest.csv").read_bytes() != manifest

    workspace.run("dvc", "exp", "run", "--temp", "-n", "other-seed", "-S", "seed=1", "ingest")
    assert len(splits.read_text().splitlines()) == 1 + 3
    workspace.run("dvc", "exp", "apply", "other-seed")
    assert len(splits.read_text().splitlines()) == 1 + 6
    assert splits_of(workspace.root) != grown
    assert "up to date" in workspace.run("dvc", "status", "ingest")


def test_runs_of_before_and_after_growth_can_be_made_again(
    workspace: Workspace, tmp_path: Path
) -> None:
    own = workspace.root / "data/own"
    (tmp_path / "images").rename(own)
    replace(workspace.root / "params.yaml", f"source: {tmp_path / 'images'}", "source: data/own")
    run_ids = []
    for _ in range(2):
        workspace.run("dvc", "add", "data/own")
        workspace.run("dvc", "repro", "evaluate")
        # Of what the run wrote, only the data is committed: splits.csv comes from the run.
        workspace.run("git", "add", "data/own.dvc", "params.yaml")
        workspace.run("git", "commit", "-q", "-m", "images")
        run_ids.append(json.loads((workspace.root / "models/run.json").read_text())["run_id"])
        add_images(own, 12, 40)
    for run_id in run_ids:
        output = tmp_path / f"{run_id}.json"
        said = workspace.run("headstart", "reproduce", run_id, "--output", str(output))
        assert json.loads(output.read_text())["holds"], said
