"""What a head is, as data: one frozen record of every choice, and the file of the best one.

Knows nothing of how a head is trained.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from headstart.errors import FormatError
from headstart.files import read_json, write_json
from headstart.params.base import Section

Kind = Literal["network", "linear_probe"]
Activation = Literal["relu", "gelu", "silu", "tanh"]
Normalisation = Literal["none", "standardise", "layer_norm"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["constant", "cosine"]
ClassWeights = Literal["none", "balanced"]

_FORMAT = "headstart-head"
_FORMAT_VERSION = 1
MAX_HIDDEN_LAYERS = 2


class HeadConfig(Section):
    """One head and its training. Every field has a value, whatever the kind of head.

    A `network` is trained by gradient steps; a `linear_probe` is multinomial logistic regression
    with an L2 penalty, solved to convergence: it uses only `normalisation`, `class_weights` and
    `l2`.
    """

    kind: Kind = "network"
    hidden_layers: int = Field(1, ge=0, le=MAX_HIDDEN_LAYERS)
    width: int = Field(128, ge=1, le=8192, description="units of each hidden layer")
    activation: Activation = "relu"
    normalisation: Normalisation = "standardise"
    input_dropout: float = Field(0.0, ge=0, le=0.95)
    dropout: float = Field(0.3, ge=0, le=0.95, description="after each hidden layer")
    optimizer: Optimizer = "adamw"
    learning_rate: float = Field(1e-3, gt=0, le=100)
    weight_decay: float = Field(1e-3, ge=0, le=10, description="decoupled; of kernels only")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    schedule: Schedule = "cosine"
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the steps, of cosine")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: ClassWeights = "none"
    epochs: int = Field(40, ge=1, le=10_000, description="length of the schedule, and the limit")
    l2: float = Field(1e-3, gt=0, le=1000, description="of linear_probe: beside the mean loss")


DEFAULT_HEAD = HeadConfig()


class BestHead(Section):
    """What `data/best_head.json` says: the winning head and how it was found."""

    config: HeadConfig
    epochs: int = Field(ge=1, description="epochs after which the metric was best")
    metric: str
    value: float
    study: str
    trial: int = Field(ge=0)
    first_epoch: int = Field(0, ge=0, description="where in the study's row orders it began")


def write_head(path: Path, head: BestHead) -> None:
    """Write the winning head; the bytes depend on `head` alone."""
    header = {"format": _FORMAT, "format_version": _FORMAT_VERSION}
    write_json(path, header | head.model_dump(mode="json"))


def read_head(path: Path) -> BestHead:
    """Read the winning head.

    Raises:
        FormatError: the file is not of this format and version.
    """
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        found = (content.pop("format", None), content.pop("format_version", None))
        if found != (_FORMAT, _FORMAT_VERSION):
            raise ValueError(f"it says {found[0]} version {found[1]}")
        return BestHead.model_validate(content)
    except (ValueError, ValidationError) as error:
        raise FormatError(
            f"{path} must be a {_FORMAT} file of version {_FORMAT_VERSION}, but {error}: "
            "make it again with `dvc repro --force search`"
        ) from None
