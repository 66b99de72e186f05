"""The small workspace of the tests of tracking."""

from tests.tracking.conftest import workspace  # noqa: F401
