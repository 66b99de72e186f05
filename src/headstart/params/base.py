"""What every section of params.yaml has in common."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)


class Section(BaseModel):
    """A frozen section: unknown keys are mistakes, and so are strings where numbers belong."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # Fields that params.yaml need not show: few people change them. They may be added to it.
    rarely_changed: ClassVar[frozenset[str]] = frozenset()
    # Former fields, and what holds in their place: read without effect, for this version.
    no_longer: ClassVar[Mapping[str, str]] = {}
    # Former names of fields, which are read as the new ones, for this version.
    renamed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_former_fields(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        kept = {name: value for name, value in values.items() if name not in cls.no_longer}
        # Where both are given, the former name stays, and is a mistake as any unknown one.
        return {
            new if (new := cls.renamed.get(name)) and new not in kept else name: value
            for name, value in kept.items()
        }

    @field_validator("*", mode="before")
    @classmethod
    def _whole_numbers(cls, value: Any) -> Any:
        """Let 2e1 and 20.0 stand where a whole number is wanted; floats take whole numbers."""
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, list | tuple):
            return type(value)(cls._whole_numbers(one) for one in value)
        return value


_WORDS = {"yes": True, "on": True, "no": False, "off": False}
# The words of YAML 1.1 for true and false, which are texts in YAML 1.2.
Flag = Annotated[
    bool,
    BeforeValidator(lambda v: _WORDS.get(v.lower(), v) if isinstance(v, str) else v),
]

Seed = Annotated[
    int, Field(ge=0, lt=2**32, description="of all randomness: same seed and inputs, same bytes")
]
