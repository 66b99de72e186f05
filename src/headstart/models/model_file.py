"""models/model.h5 as a file: a Keras model, with what it needs to be understood in its attributes.

Any Keras 3 loads it with `keras.models.load_model(path, compile=False)`; the root attributes
`format`, `format_version` and `metadata` (JSON) and the group `novelty` are this project's. An
encoder that is ONNX itself lies beside what Keras saved, which then is the head. Knows nothing of
how a model is made or trained.
"""

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from headstart.common import files
from headstart.common.errors import FormatError, one_line
from headstart.common.hdf5 import stored_array
from headstart.common.quiet import quiet_keras
from headstart.encoders.onnx_encoder import OnnxEncoder, load_onnx_encoder
from headstart.encoders.onnx_graph import ENCODER_DATASET
from headstart.models.inference import Inference
from headstart.models.novelty import NoveltyReference
from headstart.params.image import ImageParams

if TYPE_CHECKING:
    import keras

FORMAT = "headstart-model"
FORMAT_VERSION = 1
# Keras notes the version of the library here, and never reads it when it loads.
_LIBRARY_VERSION = "keras_version"


@dataclass(frozen=True)
class LoadedModel:
    """A model and what its file says about it.

    Attributes:
        metadata: `classes`, `image`, `fingerprint` and more; see docs/model.md.
        image: how images are decoded to its input.
        inference: answers, by ONNX Runtime.
        novelty: what novelty is measured by; None of models that were made before there was one.
    """

    path: Path
    metadata: dict[str, Any]
    image: ImageParams
    inference: Inference
    novelty: NoveltyReference | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.metadata["classes"])

    @cached_property
    def in_onnx(self) -> bool:
        """Whether the encoder is ONNX, which Keras does not compute."""
        with h5py.File(self.path, "r") as file:
            return ENCODER_DATASET in file

    @cached_property
    def model(self) -> "keras.Model":
        """The same in Keras: uint8 (n, size, size, 3) to probabilities float32 (n, n_classes).

        Where `in_onnx`, the head alone: features float32 (n, n_features) to probabilities.

        Raises:
            FormatError: Keras does not load it.
        """
        import keras

        try:
            with quiet_keras():
                return keras.models.load_model(self.path, compile=False)
        except Exception as error:
            # Keras, HDF5 and TensorFlow: layers raise what they like at wrong settings.
            raise _damaged(self.path, f"{type(error).__name__}: {one_line(error, 200)}") from None


def save_model(
    path: Path,
    model: "keras.Model",
    metadata: dict[str, Any],
    novelty: NoveltyReference | None = None,
    encoder: bytes = b"",
) -> None:
    """Write the model atomically; the same model and metadata give the same bytes.

    Args:
        encoder: an ONNX graph from pixels to the features that `model` takes, where it is not in
            the model.
        metadata: JSON values; no run id, no time and no library version, or the bytes would change.
    """
    with files.replacing(path) as temporary:
        raw = temporary.with_name(f"{temporary.name}.keras.h5")
        try:
            with quiet_keras():
                model.save(raw, include_optimizer=False)
            with h5py.File(raw, "r") as source, h5py.File(temporary, "w") as target:
                _copy_group(source, target)
                target.attrs["format"] = FORMAT
                target.attrs["format_version"] = FORMAT_VERSION
                target.attrs["metadata"] = files.canonical_json(metadata)
                if encoder:
                    values = np.frombuffer(encoder, np.uint8)
                    target.create_dataset(ENCODER_DATASET, data=values)
                if novelty is not None:
                    group = target.create_group("novelty")
                    for field in fields(novelty):
                        group.create_dataset(field.name, data=getattr(novelty, field.name))
        finally:
            raw.unlink(missing_ok=True)


def load_model(path: Path) -> LoadedModel:
    """Load the model and its metadata.

    Raises:
        FormatError: not a file of `save_model`, of another version, damaged, or with layers that
            are not known here, as those that could run code.
    """
    metadata = read_metadata(path)
    novelty = _read_novelty(path)
    try:
        image = ImageParams.model_validate(metadata["image"])
        classes = [str(name) for name in metadata["classes"]]
        inference = Inference(path, novelty)
    except Exception as error:
        # ONNX and its runtime raise what they like at wrong settings of a layer.
        raise _damaged(path, f"{type(error).__name__}: {one_line(error, 200)}") from None
    shapes = inference.input_shape, inference.n_classes
    if classes != metadata["classes"] or shapes != ((image.size, image.size, 3), len(classes)):
        raise _damaged(
            path, f"{len(classes)} classes at {image.size} px, but its graph has {shapes}"
        )
    return LoadedModel(path, metadata, image, inference, novelty)


def has_novelty(path: Path) -> bool:
    """Return whether a model file holds what novelty is measured by."""
    return h5py.is_hdf5(path) and "novelty" in h5py.File(path, "r")


def _read_novelty(path: Path) -> NoveltyReference | None:
    with h5py.File(path, "r") as file:
        if "novelty" not in file:
            return None
        try:
            arrays = {name: stored_array(file, f"novelty/{name}") for name in file["novelty"]}
            return NoveltyReference(**arrays)
        except (OSError, TypeError, AttributeError, FormatError) as error:
            raise _damaged(path, f"novelty: {one_line(error, 120)}") from None


def load_encoder(path: Path) -> "keras.Model | OnnxEncoder":
    """Load models/backbone.h5.

    Raises:
        FormatError: the file is missing or damaged.
    """
    import keras

    if not path.is_file():
        raise FormatError(f"{path} must exist, but it does not: run `dvc repro extract`")
    try:
        in_onnx = load_onnx_encoder(path)
        with quiet_keras():
            return in_onnx or keras.models.load_model(path, compile=False)
    except (OSError, ValueError) as error:
        raise FormatError(
            f"{path} must be a Keras model, but it cannot be read ({one_line(error, 120)}): "
            "run `dvc repro --force extract`"
        ) from None


def read_metadata(path: Path) -> dict[str, Any]:
    """Read what the file says about the model, without Keras.

    Raises:
        FormatError: not a file of `save_model`, or of another version.
    """
    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
    except FileNotFoundError:
        raise FormatError(f"{path} must exist, but it does not: run `dvc repro train`") from None
    except OSError as error:
        raise FormatError(
            f"{path} must be a model file, but it cannot be read ({error}): "
            "run `dvc repro --force train`"
        ) from None
    got = (attributes.get("format"), attributes.get("format_version"))
    if got != (FORMAT, FORMAT_VERSION):
        raise FormatError(
            f"{path} must be of format {FORMAT} {FORMAT_VERSION}, but got {got[0]} {got[1]}: "
            "make it again with `dvc repro --force train`"
        )
    try:
        metadata = json.loads(attributes["metadata"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"metadata: {one_line(error, 120)}") from None
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata are no JSON object")
    return metadata


def _damaged(path: Path, reason: str) -> FormatError:
    return FormatError(
        f"{path} must be a model file of this project, but it cannot be loaded ({reason}): run "
        "`dvc repro --force train`, or name another model"
    )


def _copy_group(source: h5py.Group, target: h5py.Group) -> None:
    # A copy rather than a deletion: HDF5 leaves the bytes of a deleted attribute in the file.
    for name in sorted(source.attrs):
        if name != _LIBRARY_VERSION:
            target.attrs[name] = source.attrs[name]
    for name in sorted(source):
        item = source[name]
        if isinstance(item, h5py.Group):
            _copy_group(item, target.create_group(name))
        else:
            target.create_dataset(name, data=item[()])
