"""An encoder that is an `.onnx` file, all the way, beside one of Keras: repro, serve, predict."""

import base64
import csv
import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml

from headstart.common.files import sha256_of_file
from headstart.images.decode import decode_input
from headstart.params.image import ImageParams
from tests.e2e.conftest import Workspace, free_port, make_workspace, server
from tests.encoders.onnx_files import write_vit

pytestmark = [pytest.mark.slow, pytest.mark.ci]

SIZE_PX = 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    base = tmp_path_factory.mktemp("onnx")
    workspace = make_workspace(base / "headstart", base / "cache")
    write_vit(workspace.root / "weights", SIZE_PX)
    path = workspace.root / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["image"]["size_px"] = SIZE_PX
    params["extract"] |= {
        "encoders": ["efficientnet-lite0", "tiny"],
        "weights": {"tiny": "weights/tiny.yaml"},
        "weights_sha256": {"tiny": sha256_of_file(workspace.root / "weights/tiny.yaml")},
    }
    # Both encoders in one model, and no ensemble that might leave one out.
    params["search"]["space"]["layers"] = "all"
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    workspace.run("git", "add", "-A")
    workspace.run("git", "commit", "-q", "-m", "an encoder of our own")
    workspace.run("dvc", "repro")
    return workspace


def test_served_predicted_and_exported_answers_are_those_of_evaluate(
    trained: Workspace, tmp_path: Path
) -> None:
    with (trained.root / "reports/predictions.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "test"][:4]
    paths = [trained.root / "data/fetched" / row["path"] for row in rows]
    probabilities = [name for name in rows[0] if name.startswith("p(")]

    answers = tmp_path / "answers.csv"
    trained.run("headstart", "predict", *map(str, paths), "--output", str(answers))
    with answers.open(encoding="utf-8") as stream:
        predicted = list(csv.DictReader(stream))

    trained.run("headstart", "export", "--format", "onnx", "--output", str(tmp_path / "model"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    image = ImageParams(size=SIZE_PX)
    pixels = np.stack([decode_input(path.read_bytes(), image) for path in paths])
    exported = session.run(None, {session.get_inputs()[0].name: pixels})[0]

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["mlflow", "models", "serve", "-m", "models/serving", "--env-manager", "local"]
    with server(trained, *command, "-p", str(port), url=f"{url}/ping", log=tmp_path / "log"):
        encoded = [base64.b64encode(path.read_bytes()).decode() for path in paths]
        body = json.dumps({"dataframe_records": [{"image": one} for one in encoded]}).encode()
        request = urllib.request.Request(
            f"{url}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            served = json.load(response)["predictions"]
    for row, by_predict, by_export, by_server in zip(
        rows, predicted, exported, served, strict=True
    ):
        wanted = [float(row[name]) for name in probabilities]
        assert by_export == pytest.approx(wanted, abs=1e-4)
        assert [float(by_predict[name]) for name in probabilities] == pytest.approx(
            wanted, abs=1e-4
        )
        assert [by_server[name] for name in probabilities] == pytest.approx(wanted, abs=1e-4)


def test_the_run_can_be_made_again(trained: Workspace, tmp_path: Path) -> None:
    run_id = json.loads((trained.root / "models/run.json").read_text(encoding="utf-8"))["run_id"]
    said = trained.run("headstart", "reproduce", run_id, "--output", str(tmp_path / "again"))
    found = re.search(r"identical: (\d+) of (\d+)", said)
    assert found is not None, said
    assert found[1] == found[2]


def test_a_changed_description_must_be_named_by_its_new_hash(trained: Workspace) -> None:
    path = trained.root / "weights/tiny.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("special_tokens: 2", "special_tokens: 1"), encoding="utf-8")
    with pytest.raises(AssertionError, match="must have the sha256"):
        trained.run("python", "-m", "headstart.stages.extract")
    path.write_text(before, encoding="utf-8")
