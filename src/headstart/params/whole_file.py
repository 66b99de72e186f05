"""The whole of params.yaml, for what reads every section: the check before a stage, and logging."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from headstart.params.base import Section, Seed
from headstart.params.data import DataParams
from headstart.params.evaluate import EvaluateParams
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from headstart.params.ingest import IngestParams
from headstart.params.load import read_mapping, validate
from headstart.params.pack import PackParams
from headstart.params.register import RegisterParams
from headstart.params.search import SearchParams
from headstart.params.train import TrainParams


class Params(Section):
    """All of params.yaml. Stages see only the sections that they declare."""

    seed: Seed = 0
    image: ImageParams = Field(default_factory=ImageParams)
    data: DataParams = Field(default_factory=DataParams)
    ingest: IngestParams = Field(default_factory=IngestParams)
    pack: PackParams = Field(default_factory=PackParams)
    extract: ExtractParams = Field(default_factory=ExtractParams)
    search: SearchParams = Field(default_factory=SearchParams)
    train: TrainParams = Field(default_factory=TrainParams)
    evaluate: EvaluateParams = Field(default_factory=EvaluateParams)
    register_: RegisterParams = Field(default_factory=RegisterParams, alias="register")


def load_params(path: Path) -> Params:
    """Read and check the whole file.

    Raises:
        ParamsError: naming every mistake at once, with its path and what is allowed.
    """
    return validate(path, Params, read_mapping(path))


def former_names(path: Path) -> list[str]:
    """Return which former parameters the file has, each as `section.field (what holds now)`."""
    return list(_former(Params, read_mapping(path), ""))


def _former(section: type[Section], raw: Any, prefix: str) -> Iterator[str]:
    if not isinstance(raw, dict):
        return
    for name, now in section.no_longer.items():
        if name in raw:
            yield f"{prefix}{name} (ignored: {now})"
    yield from (f"{prefix}{old} (now {new})" for old, new in section.renamed.items() if old in raw)
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            key = field.alias or name
            yield from _former(inner, raw.get(key), f"{prefix}{key}.")
