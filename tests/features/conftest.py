"""What the tests of features share: one exported default encoder for all of them."""

import os
import shutil
from pathlib import Path

import pytest

from tests.features.samples import extractor


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the small default encoder, built and exported once."""
    # One folder of the whole session, also for rooms that import this fixture.
    root = tmp_path_factory.getbasetemp() / "exported"
    frozen = extractor(root).frozen()
    assert frozen.require_onnx().exists()
    return root


@pytest.fixture
def cache_root(exported: Path, own_cache: Path) -> Path:
    """An empty cache, but for the exported encoder; subprocesses find it by HEADSTART_CACHE."""
    assert os.environ["HEADSTART_CACHE"] == str(own_cache)
    shutil.copytree(exported / "backbones", own_cache / "backbones")
    return own_cache
