"""Stage extract as DVC runs it: a process in a workspace, with params.yaml and a manifest."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from headstart.dataset.manifest import write_manifest
from headstart.encoders.runtimes import resolve
from headstart.features.feature_store import FeatureStore
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from headstart.stages.extract import Sections
from tests.features.conftest import cache_root, exported
from tests.features.samples import SIZE_PX, manifest_of, write_images

__all__ = ["cache_root", "exported"]


@pytest.fixture
def workspace(tmp_path: Path, cache_root: Path) -> Path:
    assert cache_root.is_dir()
    write_images(tmp_path / "data" / "fetched", 12)
    manifest = manifest_of(tmp_path / "data" / "fetched")
    write_manifest(tmp_path / "data" / "manifest.csv", manifest)
    set_params(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def set_params(workspace: Path, **extract: object) -> None:
    params = {"image": {"size_px": SIZE_PX}, "extract": extract}
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))


def run(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headstart.stages.extract", *arguments]
    return subprocess.run(command, cwd=workspace, check=False, capture_output=True, text=True)


def test_it_writes_features_and_encoder(workspace: Path) -> None:
    done = run(workspace)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "extract   12 images by efficientnet-lite0 in onnxruntime float32"
    )
    with FeatureStore(workspace / "data" / "features.h5") as store:
        assert (len(store), store.feature_dim, store.n_views) == (12, 1904, 1)
    first = outputs(workspace)
    again = run(workspace)
    assert ": 0 rows extracted, 12 from the cache" in again.stdout
    assert outputs(workspace) == first


def outputs(workspace: Path) -> list[bytes]:
    names = ("data/features.h5", "models/backbone.h5")
    return [(workspace / name).read_bytes() for name in names]


@pytest.mark.parametrize(
    ("extract", "message"),
    [
        ({"encoders": "vgg"}, "extract.encoders must be a known encoder, but got vgg: did you m"),
        ({"weights": "lost.h5"}, "there is no file"),
        ({"layers": "head_rellu"}, "has none named head_rellu: nearest are head_relu"),
        ({"runtime": "onnxruntime", "precision": "bfloat16"}, "set extract.runtime to openvino"),
    ],
)
def test_what_the_user_can_mend_has_no_traceback(
    workspace: Path, extract: dict[str, object], message: str
) -> None:
    set_params(workspace, **extract)
    done = run(workspace)
    assert done.returncode == 1
    assert done.stderr.startswith("extract: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (workspace / "data" / "features.h5").exists()


def test_it_depends_on_the_sections_it_declares() -> None:
    assert list(Sections.model_fields) == ["seed", "image", "extract"]
    sections = Sections(seed=0, image=ImageParams(), extract=ExtractParams())
    assert resolve(sections.extract) == sections.extract
