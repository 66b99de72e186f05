"""The evaluate and register sections."""

from typing import Literal

from pydantic import Field

from headstart.params.base import Section


class EvaluateParams(Section):
    """How the model is judged on the test split."""

    n_bootstrap: int = Field(2000, ge=100, le=100_000)


class RegisterParams(Section):
    """Under what name a model is registered, and what makes it the champion."""

    model_name: str = Field("headstart", min_length=1, pattern=r"^[^/:.%\"']+$")
    gate: Literal["better", "not_worse_and_smaller", "not_worse_and_faster", "always"] = Field(
        "better"
    )
