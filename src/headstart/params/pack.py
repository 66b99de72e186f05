"""The pack section: which images are kept as decoded pixels."""

from typing import Literal

from pydantic import Field

from headstart.params.base import Section
from headstart.params.split import Split


class PackParams(Section):
    """Which splits are kept as decoded pixels for training from pixels."""

    splits: tuple[Split, ...] = Field(("train", "validation"), strict=False)
    compression: Literal["none", "gzip", "lzf"] = Field("none")
