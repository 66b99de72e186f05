"""Every supported encoder leaves as a file that plain Keras loads."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headstart.encoders.builders import ENCODERS, build
from headstart.heads.fitted import feature_statistics
from headstart.images.decode import decode_input
from headstart.models.assemble import assemble
from headstart.models.model_file import save_model
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from tests.models.conftest import make_head_for

_SIZE = 128
_SCRIPT = """
import keras, numpy
model = keras.models.load_model("model.h5", compile=False)
numpy.save("found.npy", model.predict(numpy.load("pixels.npy"), verbose=0))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name in ENCODERS if "-large" not in name))
def test_a_fresh_process_with_keras_alone_gives_the_same_answer(
    assets: Path, tmp_path: Path, name: str
) -> None:
    """Random weights: of most encoders there are no others to be had offline."""
    image = ImageParams(size=_SIZE - _SIZE % ENCODERS[name].multiple_px)
    encoder = build(ExtractParams(encoders=name, weights="random"), image)
    photos = sorted((assets / "animals").rglob("*.jpg"))[::75]
    pixels = np.stack([decode_input(photo.read_bytes(), image) for photo in photos])
    # Random networks give features of any scale; standardised, they tell images apart.
    features = encoder.predict(pixels, verbose=0)
    mean, variance = feature_statistics(features)
    head = replace(make_head_for(features.shape[1]), mean=mean, variance=variance)
    model = assemble(encoder, [head], 1.7)
    np.save(tmp_path / "pixels.npy", pixels)
    for file in ("model.h5", "again.h5"):
        save_model(tmp_path / file, model, {"classes": ["a", "b", "c"]})
    assert (tmp_path / "model.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    subprocess.run([sys.executable, "-c", _SCRIPT], cwd=tmp_path, check=True, capture_output=True)
    expected = model.predict(pixels, verbose=0)
    assert np.abs(np.load(tmp_path / "found.npy") - expected).max() < 1e-5
    assert np.ptp(expected, axis=0).max() > 1e-4
