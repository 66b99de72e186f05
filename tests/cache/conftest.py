"""An exported encoder, as the tests of features share it."""

from tests.features.conftest import cache_root, exported  # noqa: F401
