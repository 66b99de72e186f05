"""The register section: a model's name in the registry, and what makes it the champion."""

from typing import Literal

from pydantic import Field

from headstart.params.base import Section


class RegisterParams(Section):
    """Under what name a model is registered, and what makes it the champion."""

    model_name: str = Field(
        "headstart",
        min_length=1,
        pattern=r"^[^/:.%\"']+$",
        description="name in MLflow's registry; without / : . % and quotes",
    )
    gate: Literal["better", "not_worse_and_smaller", "not_worse_and_faster", "always"] = Field(
        "better", description="when a model becomes the champion"
    )
