"""Three lines of Python give the answers of the server."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

import headstart
from headstart.common.errors import DataError
from headstart.images.decode import decode
from tests.serving.conftest import CLASSES, base64_of, png, serving

__all__ = ["serving"]


@pytest.fixture(scope="module")
def model(serving: Path) -> Any:
    return headstart.load_model(serving / "artifacts" / "model.h5")


def test_paths_bytes_and_pixels_get_the_answers_that_are_served(
    serving: Path, model: Any, tmp_path: Path
) -> None:
    pictures = [png(seed, 30) for seed in range(19)]
    (tmp_path / "a.png").write_bytes(pictures[0])
    given: list[Any] = [tmp_path / "a.png", str(tmp_path / "a.png"), decode(pictures[0])]
    found = model.predict([*given, *pictures])
    assert model.classes == tuple(CLASSES)
    served = mlflow.pyfunc.load_model(str(serving)).predict(
        pd.DataFrame({"image": [base64_of(picture) for picture in pictures]})
    )
    pd.testing.assert_frame_equal(found[3:].reset_index(drop=True), served)
    for row in range(3):
        assert found.iloc[row].equals(found.iloc[3])


def test_options_are_those_of_the_server(model: Any) -> None:
    best = model.predict([png(1)], top_k=2)
    assert len(best.top_labels[0]) == 2
    assert model.predict([png(1)], threshold=1.0).predicted_label[0] == ""
    assert model.predict([png(1)], max_novelty=0.0).predicted_label[0] == ""
    assert model.predict([]).shape == (0, 4 + len(CLASSES))


def test_what_cannot_be_read(model: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image 1: "):
        model.predict([png(1), b"no image"])
    with pytest.raises(DataError, match=r"image 0: pixels must be RGB, uint8 .* but got float64"):
        model.predict([np.zeros((8, 8, 3))])
    found = model.predict([tmp_path / "none.png", png(1)], on_error="row")
    assert list(found.predicted_label.eq("")) == [True, False]
    assert "No such file" in found.error[0]


def test_the_version_alone_loads_nothing() -> None:
    script = "import sys, headstart; headstart.__version__; print(len(sys.modules) < 100)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"True\n"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        headstart.nothing  # noqa: B018
