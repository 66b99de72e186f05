"""A model whose encoder is an `.onnx` file: one model.h5, which answers, explains, is exported."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest

from headstart.common.errors import FormatError, TrainingError
from headstart.common.files import sha256_of_file
from headstart.encoders.onnx_encoder import OnnxEncoder
from headstart.evaluation.explain import GradCam
from headstart.features.extractor import extract_features
from headstart.features.feature_store import FeatureStore
from headstart.features.h5_contents import inspect_h5
from headstart.models.assemble import assemble
from headstart.models.export import export_model
from headstart.models.model_file import LoadedModel, load_encoder, load_model, save_model
from headstart.models.pixels import hold_to_keras
from headstart.params.image import ImageParams
from tests.encoders.onnx_files import WIDTH, expected_features, extract_params, write_vit
from tests.features.samples import SIZE_PX, extractor, manifest_of, pixels, write_images
from tests.models.conftest import make_head_for

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Any, Path]:
    """A model by the stages' own functions, the encoder in Keras, and their folder."""
    folder = tmp_path_factory.mktemp("made")
    tokens = write_vit(folder, SIZE_PX)
    write_images(folder / "images", 8)
    extract = extract_params(folder / "tiny.yaml")
    done = extract_features(
        extractor(folder / "cache", extract), manifest_of(folder / "images"), folder / "images",
        folder / "features.h5", folder / "backbone.h5",
    )  # fmt: skip
    assert done.n_extracted == 8
    encoder = load_encoder(folder / "backbone.h5")
    assert isinstance(encoder, OnnxEncoder)
    layers = ("class_token",)
    head = make_head_for(WIDTH, len(CLASSES))
    model = assemble(encoder, [head], 1.5, layers)
    metadata = {"classes": list(CLASSES), "image": ImageParams(size=SIZE_PX).model_dump()}
    for name in ("model.h5", "again.h5"):
        save_model(folder / name, model, metadata, encoder=encoder.joined(layers))
    return load_model(folder / "model.h5"), tokens, folder


def test_features_in_the_store_are_those_of_the_encoder(
    made: tuple[LoadedModel, Any, Path],
) -> None:
    _, tokens, folder = made
    with FeatureStore(folder / "features.h5") as store:
        table = store.split("train")
    from headstart.images.decode import decode_input

    decoded = np.stack([
        decode_input((folder / "images" / path).read_bytes(), ImageParams(size=SIZE_PX))
        for path in table.paths
    ])  # fmt: skip
    expected = expected_features(tokens, decoded)
    found = table.features.reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_model_h5_answers_as_head_and_encoder_do(made: tuple[LoadedModel, Any, Path]) -> None:
    loaded, tokens, folder = made
    picture = pixels(3, SIZE_PX, SIZE_PX)
    features, probabilities = loaded.inference.outputs(picture)
    expected = expected_features(tokens, picture[None])[0, :WIDTH]
    np.testing.assert_allclose(features, expected, atol=2e-5 * np.abs(expected).max())
    # What Keras loads is the head.
    by_keras = np.asarray(loaded.model(features[None]))[0]
    np.testing.assert_allclose(probabilities, by_keras, atol=1e-5)
    hold_to_keras(loaded.inference, loaded.model)
    assert (folder / "model.h5").read_bytes() == (folder / "again.h5").read_bytes()


def test_exports_are_the_whole_in_onnx_alone(
    made: tuple[LoadedModel, Any, Path], tmp_path: Path
) -> None:
    loaded, _, folder = made
    images = sorted((folder / "images").rglob("*.*"))
    *_, export = export_model(loaded, "onnx", tmp_path / "model", images)
    assert export.largest_difference < 1e-5
    onnx.checker.check_model(str(export.path))
    session = onnxruntime.InferenceSession(export.path)
    assert session.get_inputs()[0].shape[1:] == [SIZE_PX, SIZE_PX, 3]
    with pytest.raises(TrainingError, match=r"is ONNX: export it with --format onnx"):
        export_model(loaded, "litert", tmp_path / "model", images)


def test_heat_maps_are_refused_with_the_reason(made: tuple[LoadedModel, Any, Path]) -> None:
    with pytest.raises(TrainingError, match=r"is an .onnx file, of which its features alone"):
        GradCam(made[0])


def test_inspect_tells_what_the_files_are(made: tuple[LoadedModel, Any, Path]) -> None:
    _, _, folder = made
    assert "an encoder in ONNX" in inspect_h5(folder / "backbone.h5").as_text()
    assert "encoder in ONNX" in inspect_h5(folder / "model.h5").as_text()


def test_another_file_under_the_same_name_has_other_rows(
    made: tuple[LoadedModel, Any, Path], tmp_path: Path
) -> None:
    _, _, folder = made
    path = tmp_path / "tiny.yaml"
    path.write_text((folder / "tiny.yaml").read_text() + "licence: MIT\n")
    (tmp_path / "tiny.onnx").write_bytes((folder / "tiny.onnx").read_bytes())
    assert sha256_of_file(path) != sha256_of_file(folder / "tiny.yaml")
    keys = {
        extractor(tmp_path, extract_params(one)).cache_folder for one in (path, folder / path.name)
    }
    assert len(keys) == 2


def _with_graph(path: Path, target: Path, graph: Any) -> None:
    """Copy a model file with another graph as its encoder."""
    target.write_bytes(path.read_bytes())
    with h5py.File(target, "a") as file:
        del file["encoder.onnx"]
        values = np.frombuffer(graph.SerializeToString(), np.uint8)
        file.create_dataset("encoder.onnx", data=values)


def test_a_model_file_whose_graph_reads_another_file_is_refused(
    made: tuple[LoadedModel, Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made[2] / "model.h5"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_bytes(b"a" * 4096)
    with h5py.File(path) as file:
        graph = onnx.load_from_string(file["encoder.onnx"][()].tobytes())
    (weights,) = [one for one in graph.graph.initializer if list(one.dims) == [WIDTH, 3, 8, 8]]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="secret.txt")
    _with_graph(path, tmp_path / "model.h5", graph)
    with pytest.raises(FormatError, match="must hold its weights itself"):
        load_model(tmp_path / "model.h5")


def test_a_model_file_whose_graph_may_never_end_is_refused(
    made: tuple[LoadedModel, Any, Path], tmp_path: Path
) -> None:
    path = made[2] / "model.h5"
    with h5py.File(path) as file:
        graph = onnx.load_from_string(file["encoder.onnx"][()].tobytes())
    body = onnx.helper.make_graph([], "body", [], [])
    graph.graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["x"], body=body))
    _with_graph(path, tmp_path / "model.h5", graph)
    with pytest.raises(FormatError, match="without loops and branches, but it has Loop"):
        load_model(tmp_path / "model.h5")


def test_what_it_costs_is_counted_again_where_the_kept_files_are_gone(
    made: tuple[LoadedModel, Any, Path], tmp_path: Path
) -> None:
    folder = made[2]
    frozen = extractor(tmp_path, extract_params(folder / "tiny.yaml")).frozen()
    costs = frozen.block_costs()
    frozen.costs.unlink()
    frozen.h5.write_bytes(b"damaged")
    assert frozen.block_costs() == costs
