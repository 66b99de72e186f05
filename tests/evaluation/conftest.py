"""The small encoder, heads and workspace of the tests of models."""

from tests.models.conftest import encoder, head, pixels, workspace  # noqa: F401
