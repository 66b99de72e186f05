"""The evaluate section: how the model is judged on the test split."""

from pydantic import Field

from headstart.params.base import Section


class EvaluateParams(Section):
    """How the model is judged on the test split."""

    n_bootstrap: int = Field(
        2000, ge=100, le=100_000, description="resamples for confidence intervals"
    )
