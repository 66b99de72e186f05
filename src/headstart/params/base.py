"""What every section of params.yaml has in common."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator


class Section(BaseModel):
    """A frozen section: unknown keys are mistakes, and so are strings where numbers belong."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

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

# Draws everything that is drawn: the same seed and inputs give the same bytes.
Seed = Annotated[int, Field(ge=0, lt=2**32)]
