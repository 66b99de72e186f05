"""Made-up features, written once a module."""

from pathlib import Path

import pytest

from tests.heads.made_features import write_made_features


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.h5"
    write_made_features(path)
    return path
