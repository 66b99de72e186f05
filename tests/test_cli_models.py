"""The commands that run a model: what they are told by options."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from headstart.cli import app
from headstart.models.assemble import assemble
from headstart.models.model_file import save_model
from headstart.tracking import model_uri
from tests.models.conftest import IMAGE, SIZE, make_backbone, make_head


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture and with the model that `models:/m@champion` names."""
    image = IMAGE.model_dump(mode="json")
    metadata = {"classes": ["a", "b", "c"], "image": image, "fine_tuned": None}
    save_model(tmp_path / "champion.h5", assemble(make_backbone(), [make_head()], 1.0), metadata)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def found(model: str, root: Path) -> Iterator[Path]:
        assert model == "models:/m@champion"
        assert root == tmp_path
        yield tmp_path / "champion.h5"

    monkeypatch.setattr(model_uri, "model_file", found)
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", ["predict", "explain"])
def test_a_registered_model_and_a_limit_of_pixels(command: str) -> None:
    arguments = [command, "picture.png", "--model", "models:/m@champion"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert " 0." in done.output
    refused = CliRunner().invoke(app, [*arguments, "--max-pixels", str(SIZE * SIZE - 1)])
    assert refused.exit_code == 1
    assert str(SIZE * SIZE - 1) in refused.output
