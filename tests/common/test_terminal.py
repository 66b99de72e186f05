"""What people read on a terminal does not steer it."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.common.terminal import printable, say

_ANY = st.text(st.characters(exclude_categories=[]))


@given(_ANY)
def test_a_name_stays_on_its_line_and_steers_nothing(name: str) -> None:
    shown = printable(name)
    shown.encode()  # which no surrogate can be
    assert len(shown.splitlines()) <= 1
    assert {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"} == set()
    assert {unicodedata.bidirectional(c) for c in shown} & {"LRO", "RLO", "LRI", "RLI"} == set()


@pytest.mark.parametrize("name", ["grün/Çé 1.jpg", "日本/猫.png", "a\u202fb", "👩‍🔬.jpg", r"a\x1b"])
def test_names_that_people_give_stay_as_they_are(name: str) -> None:
    assert printable(name) == name


def test_control_characters_and_bytes_that_are_no_text_are_spelled_out() -> None:
    assert printable("a\x1b[31m\n\udcff\u202e") == r"a\x1b[31m\n\udcff\u202e"


def test_what_is_said_keeps_its_lines_and_loses_its_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say("one\ttwo\nhttp://me:hunter2@host/x", error=True)
    assert capsys.readouterr().err == "one\\ttwo\nhttp://host/x\n"
