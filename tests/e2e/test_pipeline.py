"""The whole way of the data, with the real tools, from nothing to a served model."""

import base64
import csv
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mlflow import MlflowClient

from headstart.common.paths import Project, sqlite_uri
from headstart.encoders.catalogue import ENCODERS
from tests.e2e.conftest import (
    IMAGES_PER_CLASS,
    TRIALS,
    Workspace,
    free_port,
    make_workspace,
    server,
)
from tests.stages.tracked import hold_model_to_reports

OUTPUTS = (
    "data/manifest.csv",
    "data/images.h5",
    "data/features.h5",
    "data/best_head.json",
    "models/model.h5",
    "reports/predictions.csv",
)


def _json(workspace: Workspace, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace.root / name).read_text(encoding="utf-8"))
    return content


def _predictions(workspace: Workspace) -> list[dict[str, str]]:
    with (workspace.root / "reports/predictions.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_every_artifact_is_there(reproduced: Workspace) -> None:
    outputs = [
        *OUTPUTS,
        "models/backbone.h5",
        "models/run.json",
        "models/serving/MLmodel",
        "models/serving/artifacts/model.h5",
        "reports/rejected.csv",
        "reports/metrics.json",
        "reports/comparison.json",
        "reports/registration.json",
        "reports/search/trials.csv",
    ]
    assert [name for name in outputs if not (reproduced.root / name).is_file()] == []
    with h5py.File(reproduced.root / "data/features.h5") as file:
        blocks = file["features/efficientnet-lite0"]
        assert {name: block.shape for name, block in blocks.items()} == {
            name: (10 * IMAGES_PER_CLASS, 1, width)
            for name, width in ENCODERS["efficientnet-lite0"].blocks.items()
        }
        assert file.attrs["format"] == "headstart-features"
    assert "Data and pipelines are up to date." in reproduced.run("dvc", "status")


def test_metrics_are_flat_and_of_the_recorded_run(reproduced: Workspace) -> None:
    metrics = _json(reproduced, "reports/metrics.json")
    names = [
        "accuracy", "accuracy_ci95_low", "accuracy_ci95_high", "balanced_accuracy", "macro_f1",
        "top_3_accuracy", "log_loss", "brier", "ece", "novelty_auroc", "novelty_auroc_worst",
        "novelty_caught", "n_test", "run_id",
    ]  # fmt: skip
    assert list(metrics) == names
    assert metrics["accuracy_ci95_low"] <= metrics["accuracy"] <= metrics["accuracy_ci95_high"]
    assert metrics["accuracy"] > 0.8
    assert metrics["run_id"] == _json(reproduced, "models/run.json")["run_id"]


def test_the_tracking_database_tells_it_all(reproduced: Workspace) -> None:
    client = MlflowClient(reproduced.tracking_uri)
    experiment = client.get_experiment_by_name("headstart")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    kinds = [run.data.tags["headstart.kind"] for run in runs]
    assert kinds.count("model") == 1
    assert kinds.count("study") == 1
    assert kinds.count("trial") == TRIALS
    assert {run.info.status for run in runs} == {"FINISHED"}
    trials = [run for run in runs if run.data.tags["headstart.kind"] == "trial"]
    assert len({frozenset(run.data.params) for run in trials}) == 1
    assert len({frozenset(run.data.metrics) for run in trials}) == 1
    model = next(run for run in runs if run.data.tags["headstart.kind"] == "model")
    assert model.info.run_id == _json(reproduced, "models/run.json")["run_id"]
    commit = reproduced.run("git", "rev-parse", "HEAD").strip()
    assert model.data.tags["git.commit"] == commit
    assert model.data.tags["git.dirty"] == "false"
    assert model.data.params["extract.encoders"] == "efficientnet-lite0"
    accuracy = _json(reproduced, "reports/metrics.json")["accuracy"]
    assert model.data.metrics["test_accuracy"] == accuracy
    names = {artifact.path for artifact in client.list_artifacts(model.info.run_id)}
    assert {"model.h5", "predictions.csv", "metrics.json", "provenance"} <= names
    carried = client.get_logged_model(model.data.tags["headstart.model_id"])
    assert carried.tags["git.commit"] == commit
    hashed = "dvc.data/features.h5.md5"
    assert carried.tags[hashed] == model.data.tags[hashed]
    assert carried.params["extract.encoders"] == "efficientnet-lite0"
    logged = Path(client.download_artifacts(model.info.run_id, "model.h5"))
    assert logged.read_bytes() == (reproduced.root / "models/model.h5").read_bytes()


def test_every_metric_of_the_run_is_the_models(reproduced: Workspace) -> None:
    hold_model_to_reports(Project(reproduced.root))


def test_dataset_inputs_carry_dvcs_hashes(reproduced: Workspace) -> None:
    import yaml

    lock = yaml.safe_load((reproduced.root / "dvc.lock").read_text())["stages"]
    outs = {o["path"]: o["md5"] for stage in lock.values() for o in stage.get("outs", [])}
    client = MlflowClient(reproduced.tracking_uri)
    run = client.get_run(_json(reproduced, "models/run.json")["run_id"])
    assert run.inputs is not None
    logged = {i.dataset.name: i.dataset.digest for i in run.inputs.dataset_inputs}
    assert logged["data/features.h5"] == outs["data/features.h5"]
    contexts = {
        i.dataset.name: {tag.value for tag in i.tags}
        for i in run.inputs.dataset_inputs
        if i.dataset.name.startswith("data/features.h5")
    }
    assert contexts == {
        "data/features.h5": {"training"},
        "data/features.h5 (validation)": {"validation"},
        "data/features.h5 (test)": {"test"},
    }
    assert run.data.tags["dvc.data/features.h5.md5"] == outs["data/features.h5"]


def test_the_champion_is_registered(reproduced: Workspace) -> None:
    client = MlflowClient(reproduced.tracking_uri)
    version = client.get_model_version_by_alias("headstart", "champion")
    assert version.run_id == _json(reproduced, "models/run.json")["run_id"]
    assert (
        version.tags["model.sha256"]
        == _json(reproduced, "reports/registration.json")["model_sha256"]
    )


def test_the_study_opens_with_optuna(reproduced: Workspace) -> None:
    import optuna

    database = reproduced.root / ".headstart" / "studies" / "optuna.db"
    assert database.is_file()
    storage = sqlite_uri(database)
    (summary,) = optuna.get_all_study_summaries(storage)
    assert summary.study_name == _json(reproduced, "data/best_head.json")["study"]
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    assert len(study.trials) == TRIALS
    assert study.metric_names == ["accuracy"]
    assert summary.study_name.startswith("efficientnet-lite0-accuracy-5-folds-10-classes-")
    assert study.best_trial.number == _json(reproduced, "data/best_head.json")["trial"]


PLAIN_KERAS = """
import json, sys
import h5py, keras, numpy as np
from PIL import Image
path, size, *images = sys.argv[1:]
model = keras.models.load_model(path, compile=False)
size = int(size)
pixels = [
    np.asarray(Image.open(i).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    for i in images
]
probabilities = model.predict(np.stack(pixels), verbose=0)
with h5py.File(path) as file:
    classes = json.loads(file.attrs["metadata"])["classes"]
assert not any(name.startswith("headstart") for name in sys.modules)
print(json.dumps({"classes": classes, "probabilities": probabilities.tolist()}))
"""


def _plain_keras(workspace: Workspace, images: list[Path]) -> list[dict[str, float]]:
    """Probabilities by a process that has Keras and not this package (-I: an empty path)."""
    model = str(workspace.root / "models/model.h5")
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_KERAS, model, "224", *map(str, images)],
        capture_output=True,
        text=True,
        check=True,
        env=workspace.environment(TF_CPP_MIN_LOG_LEVEL="3"),
    )
    answer = json.loads(done.stdout)
    return [dict(zip(answer["classes"], row, strict=True)) for row in answer["probabilities"]]


def _served(url: str, image: Path) -> dict[str, Any]:
    body = {"dataframe_records": [{"image": base64.b64encode(image.read_bytes()).decode()}]}
    return dict(_post(url, json.dumps(body).encode())["predictions"][0])


def _post(url: str, body: bytes) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def test_served_offline_and_plain_keras_agree(reproduced: Workspace, tmp_path: Path) -> None:
    rows = [row for row in _predictions(reproduced) if row["split"] == "test"][:4]
    images = [reproduced.root / "data/fetched" / row["path"] for row in rows]
    plain = _plain_keras(reproduced, images)
    # The checkout moves, and not to a name with `%`, which MLflow's own server cannot read.
    moved = Workspace(tmp_path / "moved #2 ?", reproduced.cache)
    not_needed = shutil.ignore_patterns(".dvc", ".git", "fetched", "optuna.db")
    shutil.copytree(reproduced.root, moved.root, ignore=not_needed)
    assert f"recorded in {reproduced.root}/mlruns" in moved.run("headstart", "doctor")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve = ["mlflow", "models", "serve", "-m", "models:/headstart@champion"]
    options = ["--env-manager", "local", "-p", str(port)]
    log = tmp_path / "server.log"
    with server(moved, *serve, *options, url=f"{url}/ping", log=log):
        served = [_served(f"{url}/invocations", image) for image in images]
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(f"{url}/invocations", b'{"inputs": {"image": ["no base64!"]}}')
        assert refused.value.code == 400
        assert "row 0: `image` must be base64" in refused.value.read().decode()
    for row, keras_row, http_row in zip(rows, plain, served, strict=True):
        assert http_row["predicted_label"] == row["predicted_label"]
        for name, probability in keras_row.items():
            assert http_row[f"p({name})"] == pytest.approx(probability, abs=1e-5)
            assert float(row[f"p({name})"]) == pytest.approx(http_row[f"p({name})"], abs=1e-4)


def test_a_fresh_clone_with_the_lock_makes_the_same_bytes_and_its_own_run(
    reproduced: Workspace, tmp_path: Path
) -> None:
    """From nothing again: empty feature cache, study store and tracking database."""
    reproduced.run("git", "add", "-A")
    reproduced.run("git", "commit", "-q", "-m", "the lock and the reports")
    clone = Workspace(tmp_path / "clone", tmp_path / "cache")
    reproduced.run("git", "clone", "-q", str(reproduced.root), str(clone.root))
    assert (clone.root / "dvc.lock").is_file()
    clone.run("dvc", "repro")
    for name in OUTPUTS:
        ours, theirs = (clone.root / name).read_bytes(), (reproduced.root / name).read_bytes()
        assert ours == theirs, f"{name} differs"
    run_id = _json(clone, "models/run.json")["run_id"]
    assert run_id != _json(reproduced, "models/run.json")["run_id"]
    assert _json(clone, "reports/metrics.json")["run_id"] == run_id
    client = MlflowClient(clone.tracking_uri)
    assert "test_accuracy" in client.get_run(run_id).data.metrics
    assert client.get_model_version_by_alias("headstart", "champion").run_id == run_id
    assert "well" in clone.run("headstart", "doctor")
    assert "Test accuracy" in clone.run("headstart", "summary")


def test_predict_agrees_with_predictions_csv(reproduced: Workspace) -> None:
    row = next(row for row in _predictions(reproduced) if row["split"] == "test")
    printed = reproduced.run("headstart", "predict", f"data/fetched/{row['path']}", "--top", "1")
    said = re.fullmatch(r".*: (.+) (0\.\d+|1\.000); novelty (\d\.\d\d)", printed.strip())
    assert said is not None, printed
    label, value, novelty = said.groups()
    assert label == row["predicted_label"]
    assert float(value) == pytest.approx(float(row[f"p({label})"]), abs=1e-3)
    assert float(novelty) == pytest.approx(float(row["novelty"]), abs=0.02)


def test_doctor_notices_a_lost_database(reproduced: Workspace) -> None:
    done = subprocess.run(
        ["headstart", "doctor"],
        cwd=reproduced.root,
        env=reproduced.environment(MLFLOW_TRACKING_URI=f"sqlite:///{reproduced.cache}/empty.db"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "dvc repro --force --single-item train" in done.stdout


def test_wrong_params_stop_the_first_stage_with_every_mistake(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", tmp_path / "c")
    text = (workspace.root / "params.yaml").read_text()
    text = text.replace("runtime: onnxruntime", "runtime: torch").replace("seed: 0", "seed: -1", 1)
    (workspace.root / "params.yaml").write_text(text)
    done = subprocess.run(
        ["dvc", "repro"],
        cwd=workspace.root,
        env=workspace.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 255
    assert "2 mistakes in params.yaml" in done.stderr
    assert "seed: Input should be greater than or equal to 0, but got -1" in done.stderr
    assert "extract.runtime: Input should be 'keras', 'onnxruntime'" in done.stderr
    assert "Traceback" not in done.stderr


def test_probabilities_are_probabilities(reproduced: Workspace) -> None:
    rows = _predictions(reproduced)
    names = [name for name in rows[0] if name.startswith("p(")]
    values = np.array([[float(row[name]) for name in names] for row in rows])
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-5)
    assert {row["split"] for row in rows} == {"validation", "test"}
