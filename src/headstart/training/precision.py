"""A copy of an assembled model that computes in another precision."""

from typing import TYPE_CHECKING, Any

from headstart.models.inference import FEATURES, LOGITS

if TYPE_CHECKING:
    import keras

# These stay in float32: pixels must not be rounded twice, and neither must what is averaged or
# exponentiated.
_EXACT = ("preprocess_", "image", FEATURES, LOGITS, "temperature", "probabilities")


def at_precision(model: "keras.Model", policy: str) -> "keras.Model":
    """The same layers and weights under a dtype policy, such as mixed_bfloat16."""
    import keras

    def recast(layer: Any) -> Any:
        config = layer.get_config()
        keep = layer.name.startswith(_EXACT) or policy == "float32"
        return type(layer).from_config(config if keep else config | {"dtype": policy})

    copy = keras.models.clone_model(model, clone_function=recast)
    copy.set_weights(model.get_weights())
    return copy
