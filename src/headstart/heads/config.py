"""The file of the best head: its config, and how it was found.

Knows nothing of how a head is trained.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from headstart.common.errors import FormatError, SearchError
from headstart.common.files import read_json, write_json
from headstart.params.base import Section
from headstart.params.head import HeadConfig, ValidationViews

_FORMAT = "headstart-head"
_FORMAT_VERSION = 1


class EnsembleMember(Section):
    """A head of an ensemble."""

    config: HeadConfig
    epochs: int = Field(ge=1, description="of a network")
    times: int = Field(ge=1, description="how often it was chosen: its weight")
    trial: int = Field(ge=0)


class HeadEnsemble(Section):
    """Heads whose weighted mean logits are better than the best head's, out of fold."""

    members: tuple[EnsembleMember, ...] = Field(strict=False, min_length=2)
    estimate: float = Field(description="the metric to expect on new images")
    optimism: float = Field(ge=0, description="as of the best head")
    gain: float = Field(description="log loss less than the best head's on unseen images")
    error: float = Field(description="its standard error")

    def of_trials(self) -> str:
        """Its trials and how often each was chosen, for a person."""
        return ", ".join(f"trial {member.trial} × {member.times}" for member in self.members)


class BestHead(Section):
    """What `data/best_head.json` says: the winning head and how it was found."""

    config: HeadConfig
    epochs: int = Field(ge=1, description="epochs after which the metric was best")
    metric: str
    value: float
    study: str
    trial: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    validation_views: ValidationViews = Field(
        "plain", description="what view of a validation image"
    )
    folds: int = Field(1, ge=1, description="of cross-validation; 1: the validation split decided")
    estimate: float | None = Field(
        None, description="the value to expect on new images: corrected for the choice among trials"
    )
    optimism: float = Field(
        0.0, ge=0, description="accuracy that it shows beyond what to expect, for being the best"
    )
    ensemble: HeadEnsemble | None = Field(None, description="where it beats the best head")


def chosen_layers(layers: str, available: Sequence[str]) -> tuple[str, ...]:
    """The feature blocks that a head's `layers` stands for, in the order of `available`.

    Raises:
        SearchError: one is not there.
    """
    if layers == "all":
        return tuple(available)
    named = [available[0]] if layers == "last" else layers.split("+")
    if missing := [name for name in named if name not in available]:
        raise SearchError(
            f"layers of a head must be all, last, or feature blocks joined by +, but got {layers}: "
            f"{', '.join(missing)} is none of {', '.join(available)}"
        )
    return tuple(name for name in available if name in named)


def encoder_of(layer: str) -> str:
    """The encoder that a feature block is of, where there are several; else nothing."""
    return layer.rpartition(".")[0]


def describe_layers(layers: str) -> str:
    """What a head's `layers` are, for a person: of several encoders, how many blocks of each."""
    counts = Counter(encoder_of(layer) for layer in layers.split("+"))
    if set(counts) == {""}:
        return layers
    return " and ".join(
        f"{n} {'block' if n == 1 else 'blocks'} of {encoder}" for encoder, n in counts.items()
    )


def list_layers(layers: str) -> str:
    """What a head's `layers` are, all named; those of several encoders by encoder."""
    of_encoder: dict[str, list[str]] = {}
    for layer in layers.split("+"):
        of_encoder.setdefault(encoder_of(layer), []).append(layer.rpartition(".")[2])
    parts = {encoder: " + ".join(names) for encoder, names in of_encoder.items()}
    return "; ".join(f"{e}: {names}" if e else names for e, names in parts.items())


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
        content.pop("first_epoch", None)  # of 0.1.0: where in the study's row orders it began
        return BestHead.model_validate(content)
    except (ValueError, ValidationError) as error:
        raise FormatError(
            f"{path} must be a {_FORMAT} file of version {_FORMAT_VERSION}, but {error}: "
            "make it again with `dvc repro --force search`"
        ) from None


__all__ = ["BestHead", "HeadConfig", "read_head", "write_head"]
