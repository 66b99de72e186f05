"""Made-up features, as the tests of heads share them."""

from tests.heads.conftest import features  # noqa: F401
