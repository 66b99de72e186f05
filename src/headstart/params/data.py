"""The data section: where the images come from."""

from typing import Literal

from pydantic import Field

from headstart.params.base import Section


class DataParams(Section):
    """Where the images come from."""

    source: str = Field(
        "data/sources/animal-silhouettes.yaml",
        min_length=1,
        description="spec file, folder of class folders, archive, WebDataset folder or URL",
    )
    class_names: Literal["checked", "as_given"] = Field(
        "checked", description="as_given: classes may be called train or test, or Cat and cat"
    )
    max_archive_gb: float = Field(50.0, gt=0, description="most bytes an archive may unpack to")
    max_archive_members: int = Field(5_000_000, gt=0)
