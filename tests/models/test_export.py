"""Exports: the same answers in other runtimes, or no file."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.common.errors import TrainingError
from headstart.models import export
from headstart.models.assemble import assemble
from headstart.models.export import FORMATS, Export, export_model
from headstart.models.model_file import LoadedModel, load_model, save_model
from tests.models.conftest import IMAGE, SIZE, make_encoder, make_head

CLASSES = ["cat", "dog", "Ⓟanda"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file."""
    path = tmp_path_factory.mktemp("model") / "model.h5"
    metadata = {"classes": CLASSES, "image": IMAGE.model_dump(mode="json"), "fine_tuned": None}
    save_model(path, assemble(make_encoder(), [make_head(), make_head(1)], 1.5), metadata)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty pictures."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(40)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return paths


def _export(model_file: Path, images: list[Path], name: str, target: Path) -> list[Export]:
    return export_model(load_model(model_file), name, target, images)


@pytest.mark.parametrize(
    "name",
    [
        "onnx",
        pytest.param("openvino", marks=pytest.mark.slow),
        pytest.param("litert", marks=[pytest.mark.slow, pytest.mark.ci]),
    ],
)
def test_an_export_answers_as_the_h5_does(
    model_file: Path, images: list[Path], tmp_path: Path, name: str
) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="the openvino extra is not installed")
    h5, made = _export(model_file, images, name, tmp_path / "out" / "model")
    assert made.largest_difference < 1e-4
    assert made.n_checked == 40
    assert made.path.suffix == FORMATS[name].suffixes[0]
    assert {path.name for path in made.path.parent.iterdir()} == {
        f"model{suffix}" for suffix in FORMATS[name].suffixes
    }
    assert h5.size_bytes == model_file.stat().st_size
    assert made.latency_ms > 0
    assert _classes_in(made.path) == CLASSES


def _classes_in(path: Path) -> list[str]:
    if path.suffix == ".onnx":
        import onnx

        made = onnx.load(path)
        assert [value.name for value in made.graph.output] == ["probabilities"]
        (text,) = [prop.value for prop in made.metadata_props if prop.key == "classes"]
    elif path.suffix == ".xml":
        import openvino

        text = openvino.Core().read_model(path).get_rt_info(["headstart", "classes"]).value
    else:
        text = zipfile.ZipFile(path).read("classes.json").decode()
    classes: list[str] = json.loads(text)
    return classes


def test_an_export_that_answers_otherwise_is_not_kept(
    model_file: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert_wrongly(loaded: LoadedModel, path: Path) -> export.Runner:
        right = FORMATS["onnx"].convert(loaded, path)
        return lambda pixels: right(pixels)[::-1]

    wrong = replace(FORMATS["onnx"], convert=convert_wrongly)
    monkeypatch.setattr(export, "FORMATS", {"wrong": wrong})
    with pytest.raises(TrainingError, match=r"but wrong differs by .* nothing was written"):
        _export(model_file, images, "wrong", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named(model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="one of onnx, openvino, litert, but got torch"):
        _export(model_file, [], "torch", tmp_path / "model")
    with pytest.raises(TrainingError, match="checked on real images, but got none"):
        _export(model_file, [], "onnx", tmp_path / "model")


def test_files_that_are_no_images_are_left_out(
    model_file: Path, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no image")
    files = [tmp_path / "notes.png", images[0], tmp_path / "missing.png", images[1]]
    _, made = _export(model_file, files, "onnx", tmp_path / "model")
    assert made.n_checked == 2
    with pytest.raises(TrainingError, match=r"none of 1 files could be decoded.*notes\.png"):
        _export(model_file, files[:1], "onnx", tmp_path / "model")


def test_a_missing_runtime_is_an_error_with_its_extra(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(FORMATS["openvino"], needs=("no_such_package", "openvino"))
    monkeypatch.setattr(export, "FORMATS", {"openvino": absent})
    with pytest.raises(TrainingError, match=r"pip install 'headstart\[openvino\]'"):
        _export(model_file, [], "openvino", tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino", "litert"])
def test_the_default_encoder_on_a_hundred_photos(assets: Path, tmp_path: Path, name: str) -> None:
    from headstart.encoders.builders import build
    from headstart.params.extract import ExtractParams
    from headstart.params.image import ImageParams
    from tests.models.conftest import make_head_for, saved

    image = ImageParams()
    encoder = build(ExtractParams(), image)
    model = assemble(encoder, [make_head_for(encoder.output.shape[-1])], 1.0)
    metadata = {"classes": CLASSES, "image": image.model_dump(mode="json"), "fine_tuned": None}
    loaded = saved(tmp_path / "model.h5", model, metadata)
    photos = sorted((assets / "animals").rglob("*.jpg"))
    _, made = export_model(loaded, name, tmp_path / "model", photos)
    assert made.n_checked == 100
    assert made.largest_difference < 1e-4
