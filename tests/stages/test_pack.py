"""The three data stages on the default data, and the store at their end."""

import shutil
from pathlib import Path

import pytest

from headstart.common.errors import ParamsError
from headstart.common.paths import Project
from headstart.dataset.manifest import read_manifest
from headstart.dataset.pixel_store import ImageStore
from headstart.params.load import load_sections
from headstart.stages import fetch, ingest, pack


@pytest.fixture
def workspace(repository: Path, tmp_path: Path) -> Project:
    shutil.copytree(repository / "data" / "sources", tmp_path / "data" / "sources")
    (tmp_path / "params.yaml").write_text("image: {size_px: 32}\n")
    return Project(tmp_path)


def run_all(files: Project) -> None:
    for stage in (fetch, ingest, pack):
        stage.run(files, load_sections(files.params, stage.Sections))


def test_default_data_from_the_package_to_the_store(workspace: Project) -> None:
    run_all(workspace)
    manifest = read_manifest(workspace.manifest)
    store = ImageStore(workspace.images)
    chosen = manifest.select("train", "validation")
    assert len(manifest) == 1500
    assert store.shape == (len(chosen), 32, 32, 3)
    assert store.sha256 == chosen.sha256
    assert store.labels.tolist() == chosen.label_ids.tolist()
    assert store.classes[0] == "bear"
    first = {path: path.read_bytes() for path in (workspace.manifest, workspace.images)}
    run_all(workspace)
    assert all(path.read_bytes() == data for path, data in first.items())


def test_the_size_has_one_name_in_the_file(workspace: Project) -> None:
    # `size` is what code and model metadata say; DVC's run cache ignores keys of that name.
    workspace.params.write_text("image: {size: 32}\n")
    with pytest.raises(ParamsError, match=r"image\.size: unknown; allowed here: size_px, "):
        load_sections(workspace.params, pack.Sections)


def test_no_splits_give_a_valid_empty_store(workspace: Project) -> None:
    run_all(workspace)
    workspace.params.write_text("image: {size_px: 32}\npack: {splits: []}\n")
    pack.run(workspace, load_sections(workspace.params, pack.Sections))
    store = ImageStore(workspace.images)
    assert store.shape == (0, 32, 32, 3)
    assert store[[]].shape == (0, 32, 32, 3)
    assert list(store.batches(8)) == []
