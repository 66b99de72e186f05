"""A project that version 0.1.0 made goes on with this code, and nothing in it is lost.

tests/recorded/round1.tar.xz is such a project, made by tests/recorded/record.py in another folder
than the one it is unpacked to here: its clone has moved, as a user's may have.
"""

import hashlib
import tarfile
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.e2e.conftest import REPOSITORY, Workspace, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.ci]

ARCHIVE = REPOSITORY / "tests" / "recorded" / "round1.tar.xz"


@dataclass(frozen=True)
class Held:
    """What a project holds that `dvc repro` must not lose.

    Attributes:
        images: the manifest, of which every version has path, label, sha256, group and split.
        rows: sha256 of an image → the bytes of its feature row.
        shards: path → hash of each file of the feature cache.
        trials: number → (state, value, params) of the study that 0.1.0 began.
        runs: id → (params, metrics) of every MLflow run.
        versions: version → run id; `aliases`: alias → version.
    """

    images: pd.DataFrame
    rows: dict[bytes, bytes]
    shards: dict[str, str]
    trials: dict[int, Any]
    runs: dict[str, Any]
    versions: dict[int, str]
    aliases: dict[str, int]


def look(workspace: Workspace) -> Held:
    """What the project holds now."""
    root = workspace.root
    with h5py.File(root / "data" / "features.h5") as file:
        features = file["features"]
        if isinstance(features, h5py.Group):
            features = features["efficientnet-lite0/block4_add"]
        rows = {
            sha256: row.tobytes()
            for sha256, row in zip(file["sha256"][...].tolist(), features[...], strict=True)
        }
    (journal,) = root.glob(".headstart/studies/heads-*.journal")
    storage = JournalStorage(JournalFileBackend(str(journal)))
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    client = MlflowClient(workspace.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    model = client.get_registered_model("headstart")
    return Held(
        images=pd.read_csv(root / "data" / "manifest.csv"),
        rows=rows,
        shards={
            path.relative_to(workspace.cache).as_posix(): hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
            for path in workspace.cache.glob("features/*/shards/*.h5")
        },
        trials={trial.number: (trial.state, trial.value, trial.params) for trial in study.trials},
        runs={
            run.info.run_id: (run.data.params, run.data.metrics)
            for run in client.search_runs(experiments, max_results=1000)
        },
        versions={
            int(version.version): str(version.run_id)
            for version in client.search_model_versions("name='headstart'")
        },
        aliases={alias: int(version) for alias, version in model.aliases.items()},
    )


@dataclass(frozen=True)
class GoneOn:
    """The recorded project with this code over its own, before and after one `dvc repro`."""

    workspace: Workspace
    before: Held
    now: Held


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> GoneOn:
    """The user's `git merge` of this code, then `dvc repro`."""
    base = tmp_path_factory.mktemp("recorded")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(base, filter="data")
    root = base / "project"
    theirs = {name: (root / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
    workspace = make_workspace(root, base / "cache", small=False)
    for name, content in theirs.items():
        (root / name).write_bytes(content)
    workspace.run("git", "add", "-A")
    workspace.run("git", "commit", "-q", "-m", "the new version of headstart, my own params")
    before = look(workspace)
    workspace.run("dvc", "repro")
    return GoneOn(workspace, before, look(workspace))


def test_every_stage_runs_with_the_params_of_then(project: GoneOn) -> None:
    assert project.workspace.run("dvc", "status").strip() == "Data and pipelines are up to date."


def test_images_stay_and_their_splits_are_sound(project: GoneOn) -> None:
    before, now = project.before.images, project.now.images
    assert sorted(now["sha256"]) == sorted(before["sha256"])
    assert set(now["label"]) == set(before["label"])
    held = now.groupby("label")["split"].nunique()
    assert (held == 3).all(), "every class is in every split"
    assert (now.groupby("group")["split"].nunique() == 1).all(), "no group straddles splits"


def test_cached_rows_are_left_alone(project: GoneOn) -> None:
    """Large JPEGs mean other pixels now, so rows are extracted once more, beside those of then.

    These images are small: their rows are the same, but for how the graph of now is computed.
    """
    before, now = project.before.rows, project.now.rows
    assert now.keys() == before.keys()
    then = {key: np.frombuffer(row, np.float32) for key, row in before.items()}
    largest = max(float(np.abs(row).max()) for row in then.values())
    for key, row in now.items():
        found = np.frombuffer(row, np.float32)
        np.testing.assert_allclose(found, then[key], rtol=1e-4, atol=5e-6 * largest)
    assert project.now.shards.items() > project.before.shards.items()


def test_trials_runs_and_versions_are_kept(project: GoneOn) -> None:
    before, now = project.before, project.now
    assert now.trials.items() >= before.trials.items()
    assert now.runs.keys() > before.runs.keys(), "the training is a run of its own"
    assert {run_id: now.runs[run_id] for run_id in before.runs} == before.runs
    assert now.versions.items() >= before.versions.items()
    assert now.aliases["champion"] in (before.aliases["champion"], max(now.versions))


def test_the_champion_of_then_answers_where_the_clone_is_now(project: GoneOn) -> None:
    champion = f"models:/headstart/{project.before.aliases['champion']}"
    answer = project.workspace.run(
        "headstart", "predict", "data/own/disc/01.jpg", "--model", champion
    )
    assert "data/own/disc/01.jpg: " in answer
    assert {"disc", "square", "stripes"} <= set(answer.replace(",", " ").split())
