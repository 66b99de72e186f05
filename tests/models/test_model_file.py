"""Model files that are damaged or hostile: one sentence, whatever Keras and HDF5 make of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from headstart.common.errors import FormatError
from headstart.models.assemble import assemble
from headstart.models.model_file import load_model, save_model
from tests.models.conftest import IMAGE, make_encoder, make_head

METADATA: dict[str, Any] = {"classes": ["a", "b", "c"], "image": IMAGE.model_dump(mode="json")}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that loads."""
    path = tmp_path_factory.mktemp("sound") / "model.h5"
    save_model(path, assemble(make_encoder(), [make_head()], 1.0), METADATA)
    return path


def _metadata(content: object) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        file.attrs["metadata"] = content if isinstance(content, str) else json.dumps(content)

    return damage


def _config(old: str, new: str) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        config = file.attrs["model_config"]
        text = config if isinstance(config, str) else config.decode()
        assert old in text
        file.attrs["model_config"] = text.replace(old, new)

    return damage


def _without(name: str) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]

    return damage


def _wide_weights(file: h5py.File) -> None:
    name = next(name for name in _datasets(file) if "conv" in name and "kernel" in name)
    del file[name]
    file[name] = np.zeros((5, 5, 2, 2), np.float32)


def _datasets(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    return names


def _elsewhere(file: h5py.File) -> None:
    """Weights that would be read from another file of the machine."""
    name = next(name for name in _datasets(file) if name.endswith("block1_conv/bias"))
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    name = next(name for name in _datasets(file) if name.endswith("block1_conv/bias"))
    shape = file[name].shape
    del file[name]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "data", shape)
    file.create_virtual_dataset(name, layout)


def _linked(kind: type) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        name = next(name for name in _datasets(file) if name.endswith("block1_conv/bias"))
        del file[name]
        file[name] = kind("/tmp/other.h5", "/data") if kind is h5py.ExternalLink else kind("/x")

    return damage


def _huge(file: h5py.File) -> None:
    """A few bytes that say that they are a terabyte."""
    name = next(name for name in _datasets(file) if name.endswith("block1_conv/bias"))
    del file[name]
    file.create_dataset(name, (2**38,), "f4", chunks=(1024,))


DAMAGES: dict[str, Callable[[h5py.File], None]] = {
    "metadata that are no JSON": _metadata("{"),
    "metadata that are no object": _metadata([1]),
    "no metadata": lambda file: file.attrs.__delitem__("metadata"),
    "no classes": _metadata({"image": METADATA["image"]}),
    "no image": _metadata({"classes": METADATA["classes"]}),
    "classes that are no texts": _metadata({**METADATA, "classes": [1, 2, 3]}),
    "classes that are a number": _metadata({**METADATA, "classes": 3}),
    "another number of classes": _metadata({**METADATA, "classes": ["a", "b"]}),
    "another size": _metadata({**METADATA, "image": {**METADATA["image"], "size": 32}}),
    "an unknown resize": _metadata({**METADATA, "image": {"size": "x\x1b[2J"}}),
    "no configuration": lambda file: file.attrs.__delitem__("model_config"),
    "a configuration that is no JSON": lambda file: file.attrs.__setitem__("model_config", "{"),
    "an unknown layer": _config('"class_name": "ReLU"', '"class_name": "Rogue"'),
    "a module to import": _config('"class_name": "ReLU"', '"module": "os", "class_name": "system"'),
    "a layer without settings": _config('"strides"', '"steps"'),
    "an absurd layer": _config('"strides": [2, 2]', '"strides": [-1, 0]'),
    "no weights": _without("model_weights"),
    "weights of another shape": _wide_weights,
    "weights in another file": _elsewhere,
    "virtual weights": _virtual,
    "weights by a link": _linked(h5py.SoftLink),
    "weights by a link to another file": _linked(h5py.ExternalLink),
    "weights of a terabyte": _huge,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_told_in_one_sentence(sound: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.h5"
    shutil.copy(sound, path)
    with h5py.File(path, "r+") as file:
        DAMAGES[damage](file)
    with pytest.raises(FormatError, match="model file of this project, but it cannot") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_what_keras_alone_refuses_is_told_where_keras_loads_it(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    shutil.copy(sound, path)
    with h5py.File(path, "r+") as file:
        _config('"filters"', '"filtres"')(file)
    with pytest.raises(FormatError, match="model file of this project, but it cannot"):
        _ = load_model(path).model


@pytest.mark.parametrize("n_bytes", [0, 100, 5000])
def test_a_truncated_model_is_told(sound: Path, tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(sound.read_bytes()[:n_bytes])
    with pytest.raises(FormatError, match="cannot be read"):
        load_model(path)


def test_a_model_with_code_in_it_is_refused(tmp_path: Path) -> None:
    import keras

    image = keras.Input((IMAGE.size, IMAGE.size, 3), dtype="uint8")
    code = keras.layers.Lambda(lambda pixels: pixels)(image)
    values = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(code))
    save_model(tmp_path / "model.h5", keras.Model(image, values), METADATA)
    with pytest.raises(FormatError, match="cannot be loaded"):
        load_model(tmp_path / "model.h5")
