"""Sections of params.yaml as a stage reads them, and the whole file as the first check does."""

from pathlib import Path

import pytest

from headstart.common.errors import ParamsError
from headstart.params.load import load_sections
from headstart.params.whole_file import Params, load_params
from headstart.stages import fetch, register, train


def _file(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_sections_that_are_left_out_have_their_defaults(tmp_path: Path) -> None:
    path = _file(tmp_path, "train: {epochs: 7}\n")
    sections = load_sections(path, train.Sections)
    assert (sections.seed, sections.image, sections.train.epochs) == (0, Params().image, 7)
    assert load_sections(_file(tmp_path, ""), register.Sections).register_ == Params().register_


def test_a_stage_reads_no_section_but_its_own(tmp_path: Path) -> None:
    path = _file(tmp_path, "search: {n_trials: none}\nunknown: 1\ndata: {source: here}\n")
    assert load_sections(path, fetch.Sections).data.source == "here"
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert "2 mistakes" in str(caught.value)
    assert "search.n_trials" in str(caught.value)
    assert "unknown: unknown; allowed here: seed, image, data" in str(caught.value)


def test_a_mistake_in_a_stages_section_names_what_is_allowed(tmp_path: Path) -> None:
    path = _file(tmp_path, "data: {sorce: here}\n")
    with pytest.raises(ParamsError, match=r"data\.sorce: unknown; .*; did you mean source\?"):
        load_sections(path, fetch.Sections)
