"""Encoders that are `.onnx` files: the features of their source, or a refusal that says why."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headstart.common.errors import HeadstartError
from headstart.encoders.builders import build
from headstart.encoders.catalogue import check_size, chosen_encoder, shown_layers
from headstart.encoders.onnx_encoder import OnnxEncoder, load_onnx_encoder
from headstart.encoders.onnx_session import open_onnx
from headstart.encoders.runtimes import resolve
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from tests.encoders.onnx_files import WIDTH, expected_features, extract_params, save, write_vit

SIZE = 32
IMAGE = ImageParams(size=SIZE)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A description, and the encoder in Keras."""
    folder = tmp_path_factory.mktemp("weights")
    tokens = write_vit(folder, SIZE)
    return folder / "tiny.yaml", tokens


def computed(encoder: OnnxEncoder, blocks: list[str] | None = None) -> Any:
    return open_onnx(encoder.joined(blocks), 1).run(None, {"image": PIXELS})[0]


def dense(size: int = SIZE, **more: Any) -> Any:
    """A graph of one layer, in which a test changes something."""
    kernel = np.random.default_rng(1).normal(size=(4, 3, size, size)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixels", "kernel"], ["map"]),
            helper.make_node("Flatten", ["map"], ["vector"]),
        ],
        "net",
        [
            helper.make_tensor_value_info(
                "pixels", TensorProto.FLOAT, more.get("shape", ["n", 3, size, size])
            )
        ],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", more.get("opset", 13))], ir_version=8
    )


VECTOR: dict[str, Any] = {"blocks": {"whole": {"output": "vector"}}}


def test_its_features_are_those_of_the_network_that_was_exported(vit: tuple[Path, Any]) -> None:
    path, tokens = vit
    encoder = build(extract_params(path), IMAGE)
    assert isinstance(encoder, OnnxEncoder)
    assert encoder.blocks == {"class_token": WIDTH, "patches": WIDTH}
    expected = expected_features(tokens, PIXELS)
    np.testing.assert_allclose(computed(encoder), expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(computed(encoder, ["patches"]), computed(encoder)[:, WIDTH:])


def test_its_file_has_the_same_bytes_twice_and_reads_back(
    vit: tuple[Path, Any], tmp_path: Path
) -> None:
    for name in ("one.h5", "two.h5"):
        encoder = build(extract_params(vit[0]), IMAGE)
        encoder.save(tmp_path / name)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert load_onnx_encoder(tmp_path / "one.h5") == encoder


def test_what_it_costs_is_counted_from_its_graph(vit: tuple[Path, Any], tmp_path: Path) -> None:
    path = save(tmp_path, dense(), SIZE, **VECTOR)
    cost = build(extract_params(path), IMAGE).costs()["whole"]
    assert cost.mflops == pytest.approx(2 * 4 * 3 * SIZE * SIZE / 1e6)
    assert cost.megabytes == pytest.approx(4 * (4 * 3 * SIZE * SIZE + 6) / 1e6, rel=1e-3)
    # All of the transformer is needed for either block.
    costs = build(extract_params(vit[0]), IMAGE).costs()
    n_tokens = 2 + (SIZE // 8) ** 2
    per_block = 12 * n_tokens * WIDTH**2 + 2 * n_tokens**2 * WIDTH
    whole = 3 * per_block + (SIZE // 8) ** 2 * 8 * 8 * 3 * WIDTH
    assert costs["patches"].mflops == pytest.approx(2 * whole / 1e6)


def test_it_stands_beside_an_encoder_of_keras(vit: tuple[Path, Any]) -> None:
    alone = extract_params(vit[0])
    both = ExtractParams(
        encoders=("efficientnet-lite0", "tiny"),
        weights={"efficientnet-lite0": "random", "tiny": alone.own_weights[0]},
        weights_sha256={"tiny": str(alone.own_weights[1])},
    )
    encoder = build(both, IMAGE)
    lite = build(ExtractParams(weights="random"), IMAGE)
    expected = np.asarray(lite(PIXELS))
    found = computed(encoder)
    np.testing.assert_allclose(
        found[:, : expected.shape[1]], expected, atol=1e-5 * np.abs(expected).max()
    )
    np.testing.assert_array_equal(found[:, expected.shape[1] :], computed(build(alone, IMAGE)))
    assert list(encoder.blocks)[-2:] == ["tiny.class_token", "tiny.patches"]


def test_maps_are_pooled_as_asked(tmp_path: Path) -> None:
    model = dense(size=8)
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    )
    path = save(tmp_path, model, SIZE, blocks={"last": {"output": "map"}})
    raw = computed(build(extract_params(path, pooling="max"), IMAGE))
    mean = computed(build(extract_params(path), IMAGE))
    assert raw.shape == mean.shape == (3, 4)
    assert (raw > mean).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_px": 48}, r"shape \(n, 3, 48, 48\), as layout and size_px say, but the graph has"),
        ({"layout": "nhwc"}, r"shape \(n, 32, 32, 3\)"),
        ({"blocks": {"a": {"output": "vectr"}}}, "nearest are vector"),
        ({"blocks": {"a": {"output": "vector", "tokens": "first"}}}, "leave it out"),
        ({"file": "tinny.onnx"}, "did you mean tiny.onnx?"),
        ({"sha256": "0" * 64}, "must have the sha256 0000"),
        ({"stdd": [1, 1, 1], "mean": "x"}, "2 mistakes in tiny.yaml"),
    ],
)
def test_mistakes_of_a_description_are_told(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = save(tmp_path, dense(), SIZE, **{**VECTOR, **changes})
    with pytest.raises(HeadstartError, match=message):
        chosen_encoder(extract_params(path), tmp_path)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    model = dense(shape=[1, 3, SIZE, SIZE])
    blocks = {"a": {"output": "nothing"}, "b": {"output": "vector", "tokens": "all"}}
    path = save(tmp_path, model, SIZE, blocks=blocks)
    with pytest.raises(HeadstartError, match=r"3 mistakes in tiny\.yaml and tiny\.onnx") as raised:
        chosen_encoder(extract_params(path), tmp_path)
    for part in ("first axis must be of any length, but it is 1", "blocks.a", "blocks.b.tokens"):
        assert part in str(raised.value)


def test_operators_outside_of_the_list_are_refused(tmp_path: Path) -> None:
    model = dense()
    model.graph.node.append(helper.make_node("RandomNormalLike", ["vector"], ["noise"]))
    model.graph.node.append(helper.make_node("Secret", ["vector"], ["x"], domain="com.other"))
    path = save(tmp_path, model, SIZE, **VECTOR)
    with pytest.raises(HeadstartError, match=r"it has RandomNormalLike, com.other.Secret: export"):
        chosen_encoder(extract_params(path), tmp_path)


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    model = dense()
    onnx.external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=0
    )
    path = save(tmp_path, model, SIZE, **VECTOR)
    assert (tmp_path / "weights.bin").exists()
    with pytest.raises(HeadstartError, match=r"tiny.onnx must hold its weights itself"):
        chosen_encoder(extract_params(path), tmp_path)


def test_features_that_depend_on_the_batch_are_refused(tmp_path: Path) -> None:
    model = dense()
    model.graph.node.append(
        helper.make_node("ReduceMean", ["vector"], ["mean"], axes=[0], keepdims=1)
    )
    model.graph.node.append(helper.make_node("Sub", ["vector", "mean"], ["centred"]))
    path = save(tmp_path, model, SIZE, blocks={"whole": {"output": "centred"}})
    with pytest.raises(HeadstartError, match="whatever is computed beside it"):
        build(extract_params(path), IMAGE)


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, dense(), SIZE, **VECTOR)
    (tmp_path / "tiny.onnx").write_bytes(b"not a model")
    digest = hashlib.sha256(b"not a model").hexdigest()
    path.write_text(path.read_text().replace(path.read_text().split("sha256: ")[1][:64], digest))
    with pytest.raises(HeadstartError, match="must be an ONNX model of opset 20"):
        chosen_encoder(extract_params(path), tmp_path)


def test_params_that_do_not_suit_it_are_refused(vit: tuple[Path, Any]) -> None:
    path, _ = vit
    extract = extract_params(path)
    encoder = chosen_encoder(extract, path.parent)
    with pytest.raises(HeadstartError, match=r"image\.size_px must be 32, the input size of tiny"):
        check_size(encoder, ImageParams(size=64))
    with pytest.raises(HeadstartError, match=r"blocks of tiny's description.*mean class_token\?"):
        shown_layers(encoder, extract_params(path, layers=["classtoken"]))
    with pytest.raises(HeadstartError, match="must be onnxruntime or openvino"):
        resolve(extract_params(path, runtime="keras"))
    with pytest.raises(HeadstartError, match="a name of your own of letters"):
        chosen_encoder(extract_params(path, name="my.vit"), path.parent)


def test_a_resampling_that_it_was_not_trained_with_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, dense(), SIZE, resampling="bilinear", **VECTOR)
    with pytest.raises(HeadstartError, match="must be bilinear for tiny"):
        check_size(chosen_encoder(extract_params(path), tmp_path), IMAGE)


def test_a_block_without_patches_is_refused(vit: tuple[Path, Any], tmp_path: Path) -> None:
    model = onnx.load(vit[0].with_suffix(".onnx"))
    path = save(tmp_path, model, SIZE, special_tokens=99)
    with pytest.raises(HeadstartError, match="less than the 18 tokens of last_hidden_state"):
        chosen_encoder(extract_params(path), tmp_path)


def test_a_block_of_float16_is_made_float32(tmp_path: Path) -> None:
    model = dense()
    model.graph.node.append(helper.make_node("Cast", ["vector"], ["half"], to=TensorProto.FLOAT16))
    path = save(tmp_path, model, SIZE, blocks={"whole": {"output": "half"}})
    assert computed(build(extract_params(path), IMAGE)).dtype == np.float32
