"""The data section: where the images come from."""

from typing import ClassVar, Literal

from pydantic import Field

from headstart.params.base import Section


class DataParams(Section):
    """Where the images come from."""

    no_longer: ClassVar = {"max_archive_members": "always 5000000"}

    source: str = Field(
        "data/sources/animal-silhouettes.yaml",
        min_length=1,
        description="spec file, folder of class folders, archive, WebDataset folder or URL",
    )
    class_names: Literal["checked", "as_given"] = Field(
        "checked", description="as_given: classes may be called train or test, or Cat and cat"
    )
    max_archive_gb: float = Field(50.0, gt=0, description="most gigabytes an archive may unpack to")
