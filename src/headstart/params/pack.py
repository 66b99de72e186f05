"""The pack section: which images are kept as decoded pixels."""

from typing import ClassVar, Literal

from pydantic import Field

from headstart.params.base import Section
from headstart.params.split import Split


class PackParams(Section):
    """Which splits are kept as decoded pixels for training from pixels."""

    rarely_changed: ClassVar = frozenset({"compression"})

    splits: tuple[Split, ...] = Field(
        ("train", "validation"), strict=False, description="fine-tuning needs both of these"
    )
    compression: Literal["none", "gzip", "lzf"] = Field(
        "none", description="none: read through a memory map; the others are smaller and slower"
    )
