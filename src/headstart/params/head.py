"""What a head is, as data: every choice that makes one, what is allowed for it, who uses it."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from headstart.params.base import Section

# Former names of kinds, which are read as the new ones, for this version.
_FORMER_KINDS = {"linear_probe": "logistic_regression"}
Kind = Annotated[
    Literal["ridge", "logistic_regression", "network"],
    BeforeValidator(lambda kind: _FORMER_KINDS.get(kind, kind) if isinstance(kind, str) else kind),
]
Layers = Annotated[str, Field(min_length=1)]
Activation = Literal["relu", "gelu", "silu", "tanh"]
Normalisation = Literal["none", "standardise", "layer_norm"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
ClassWeights = Literal["none", "balanced"]
ValidationViews = Literal["plain", "mean_of_views"]
HiddenLayers = Annotated[int, Field(ge=0, le=2)]
Width = Annotated[int, Field(ge=1, le=8192)]
Rate = Annotated[float, Field(ge=0, le=0.95)]
LearningRate = Annotated[float, Field(gt=0, le=100)]
Decay = Annotated[float, Field(ge=0, le=10)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Penalty = Annotated[float, Field(gt=0, le=1000)]
RidgePenalty = Annotated[float, Field(gt=0, le=1e9)]


class HeadConfig(Section):
    """One head and its training. Every field has a value, whatever the kind of head.

    `ridge` is least squares with an L2 penalty, on standardised features, its scores calibrated
    out of fold: it uses `layers`, `class_weights` and `penalty`. `logistic_regression` is
    multinomial, with an L2 penalty, solved to convergence: it uses `layers`, `normalisation`,
    `class_weights` and `l2`. A `network` is trained by gradient steps; it uses
    `layers`, `normalisation`, `class_weights` and everything from `hidden_layers` to `epochs`.
    """

    rarely_changed: ClassVar = frozenset(
        {"hidden_layers", "width", "activation", "input_dropout", "dropout", "optimizer"}
        | {"learning_rate", "weight_decay", "momentum", "schedule", "warmup", "label_smoothing"}
        | {"epochs", "l2", "penalty"}
    )

    kind: Kind = Field("network", description="solved (ridge, logistic_regression) or trained")
    layers: Layers = Field("all", description="feature blocks: all, last, or names joined by +")
    hidden_layers: HiddenLayers = Field(1, description="0: a linear head")
    width: Width = Field(256, description="units of each hidden layer")
    activation: Activation = Field("relu", description="of hidden layers")
    normalisation: Normalisation = Field("layer_norm", description="of the features")
    input_dropout: Rate = Field(0.3, description="of the features")
    dropout: Rate = Field(0.3, description="after each hidden layer")
    optimizer: Optimizer = Field("adamw", description="of networks")
    learning_rate: LearningRate = Field(1e-3, description="its highest")
    weight_decay: Decay = Field(1e-3, description="decoupled; of kernels only")
    momentum: Fraction = Field(0.9, description="of sgd")
    schedule: Schedule = Field("cosine", description="of the learning rate")
    warmup: Fraction = Field(0.1, description="fraction of the steps, of cosine")
    label_smoothing: Fraction = Field(0.1, description="of networks, in training")
    class_weights: ClassWeights = Field("none", description="balanced: every class weighs the same")
    epochs: Epochs = Field(40, description="length of the schedule, and the limit")
    l2: Penalty = Field(1e-3, description="of logistic_regression, beside the mean loss")
    penalty: RidgePenalty = Field(
        1000.0, description="of ridge, beside the summed squares; a search tries a path of them"
    )


Values = Mapping[str, Any]


def _always(_: Values) -> bool:
    return True


def _of_network(head: Values) -> bool:
    return bool(head["kind"] == "network")


def _of_hidden(head: Values) -> bool:
    return _of_network(head) and head["hidden_layers"] > 0


# Which heads use a field that a search may vary; each after those that its condition reads.
USED: dict[str, Callable[[Values], bool]] = {
    "kind": _always,
    "layers": _always,
    "normalisation": lambda head: head["kind"] != "ridge",
    "class_weights": _always,
    "l2": lambda head: head["kind"] == "logistic_regression",
    "hidden_layers": _of_network,
    "width": _of_hidden,
    "activation": _of_hidden,
    "dropout": _of_hidden,
    "input_dropout": _of_network,
    "optimizer": _of_network,
    "learning_rate": _of_network,
    "weight_decay": _of_network,
    "momentum": lambda head: _of_network(head) and head["optimizer"] == "sgd",
    "schedule": _of_network,
    "warmup": lambda head: _of_network(head) and head["schedule"] == "cosine",
    "label_smoothing": _of_network,
    "epochs": _of_network,
}
