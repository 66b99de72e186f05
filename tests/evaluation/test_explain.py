"""Explaining single images."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image

from headstart.evaluation.explain import explain_files
from headstart.models.assemble import assemble
from headstart.models.model_file import LoadedModel
from tests.models.conftest import IMAGE, make_encoder, make_head


@pytest.fixture
def loaded() -> LoadedModel:
    """A small model with what its file would say."""
    model = assemble(make_encoder(), [make_head()], 1.0)
    classes = ["cat", "dog", "a class with a name that is far too long for the room it has"]
    return LoadedModel(model, {"classes": classes, "image": IMAGE.model_dump(mode="json")})


def test_each_image_gets_its_classes_and_a_picture(loaded: LoadedModel, tmp_path: Path) -> None:
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "same name.png")
        pixels = np.random.default_rng(len(paths)).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    found = list(explain_files(loaded, [*paths, paths[0]], tmp_path / "out", top=2))
    assert [len(one.top) for one in found] == [2, 2, 2]
    names = [one.picture.name for one in found if one.picture]
    assert names == ["x-same name.png", "y-same name.png", "x-same name-2.png"]
    for one in found:
        assert one.top[0][1] >= one.top[1][1] > 0
        assert one.picture is not None
        with Image.open(one.picture) as sheet:
            assert sheet.width == 688
            assert 0.8 < sheet.width / sheet.height < 1.8


def test_a_file_that_is_no_image_gets_a_reason_and_the_rest_go_on(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    paths = [tmp_path / "notes.txt", tmp_path / "missing.png", tmp_path / "red.png"]
    found = list(explain_files(loaded, paths, tmp_path / "out"))
    assert [bool(one.reason) for one in found] == [True, True, False]
    assert found[0].picture is None
    assert len(list((tmp_path / "out").iterdir())) == 1
    (limited,) = explain_files(loaded, paths[2:], tmp_path / "out", max_pixels=399)
    assert "399" in limited.reason.replace(",", "")


def test_names_of_other_scripts_are_drawn_in_a_font_that_has_them(tmp_path: Path) -> None:
    model = assemble(make_encoder(), [make_head(n_classes=2)], 1.0)
    sheets = []
    for classes in (["大熊猫", "小熊"], ["北极狐", "小狗"]):
        metadata = {"classes": classes, "image": IMAGE.model_dump(mode="json")}
        Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
        loaded = LoadedModel(model, metadata)
        (one,) = explain_files(loaded, [tmp_path / "red.png"], tmp_path / classes[0])
        assert one.picture is not None
        with Image.open(one.picture) as sheet:
            sheets.append(np.asarray(sheet))
    if not _has_a_font("大熊猫小北极狐狗"):
        pytest.skip("no font with Chinese letters on this machine")
    assert (sheets[0] != sheets[1]).any(), "empty boxes look alike"


def _has_a_font(text: str) -> bool:
    return any(
        {ord(letter) for letter in text} <= FT2Font(path).get_charmap().keys()
        for path in findSystemFonts()
        if path.endswith((".ttf", ".otf", ".ttc"))
    )
