"""Which layers of an assembled model are trained when it is fine-tuned.

Batch normalisation stays in inference mode: its statistics are those of the data that the encoder
was trained on, and those of a few small batches are worse.
"""

import difflib
import re
from typing import TYPE_CHECKING

from headstart.common.errors import TrainingError
from headstart.models.inference import FEATURES
from headstart.params.train import FineTuneParams

if TYPE_CHECKING:
    import keras

# block5_conv1, block_16_expand, block7a_dwconv, conv5_block3_1_conv, stage3_block2_dense1
_BLOCK = re.compile(r"^(conv\d+_block\d+|stage\d_block\d+|block_?\d+[a-z]?)(?=_)")
_PREPROCESSING = "preprocess_"


def unfreeze(model: "keras.Model", params: FineTuneParams) -> str:
    """Make the layers trainable that `params` name, and all others not.

    Returns:
        The name of the first layer that is trained.

    Raises:
        TrainingError: there is no such layer, or the encoder's blocks cannot be told by name.
    """
    layers = model.layers
    names: list[str] = [layer.name for layer in layers]
    first = first_layer(names, params)
    for position, layer in enumerate(layers):
        layer.trainable = position >= first and _may_train(layer)
    if not model.trainable_weights:
        raise TrainingError(
            f"fine-tuning needs layers with weights, but from {names[first]} on there are none: "
            "name an earlier layer in train.fine_tune.from_layer"
        )
    return names[first]


def blocks(names: list[str]) -> list[str]:
    """The blocks among layer names, in their order."""
    found = (_BLOCK.match(name) for name in names)
    return list(dict.fromkeys(match.group(1) for match in found if match))


def first_layer(names: list[str], params: FineTuneParams) -> int:
    """Where among a model's layers training begins.

    Raises:
        TrainingError: there is no such layer, or the encoder's blocks cannot be told by name.
    """
    if params.from_layer is not None:
        return _named(names, params.from_layer)
    known = blocks(names)
    if not known:
        raise TrainingError(
            "train.fine_tune.blocks needs an encoder whose layers are named by blocks, but this "
            "one's are not: set train.fine_tune.from_layer to a layer, such as "
            f"{names[names.index(FEATURES) // 2]}"
        )
    start = known[max(0, len(known) - params.blocks)]
    return next(i for i, name in enumerate(names) if re.match(rf"{re.escape(start)}_", name))


def _named(names: list[str], wanted: str) -> int:
    if wanted in names[: names.index(FEATURES)]:
        return names.index(wanted)
    near = difflib.get_close_matches(wanted, names, n=5, cutoff=0.3) or names[-5:]
    raise TrainingError(
        f"train.fine_tune.from_layer must be a layer of the encoder, but it has none named "
        f"{wanted}: nearest are {', '.join(near)}"
    )


def _may_train(layer: "keras.layers.Layer") -> bool:
    import keras

    is_norm = isinstance(layer, keras.layers.BatchNormalization)
    return not is_norm and not layer.name.startswith(_PREPROCESSING)
