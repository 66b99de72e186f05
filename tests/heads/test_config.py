"""The file of the best head: read back as written, and refused when it is another."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.common.errors import FormatError
from headstart.heads.config import BestHead, HeadConfig, read_head, write_head

BEST = BestHead(
    config=HeadConfig(),
    epochs=7,
    metric="log_loss",
    value=0.25,
    study="heads-0",
    trial=3,
    batch_size=64,
)


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        HeadConfig,
        hidden_layers=st.integers(0, 2),
        width=st.integers(1, 8192),
        learning_rate=st.floats(1e-9, 100),
        dropout=st.floats(0, 0.95),
        optimizer=st.sampled_from(["adamw", "sgd"]),
    ),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, config: HeadConfig, value: float
) -> None:
    path = tmp_path_factory.mktemp("head") / "best_head.json"
    best = BEST.model_copy(update={"config": config, "value": value})
    write_head(path, best)
    assert read_head(path) == best


def test_bytes_depend_on_the_head_alone(tmp_path: Path) -> None:
    write_head(tmp_path / "a.json", BEST)
    write_head(tmp_path / "b.json", BEST.model_copy())
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format_version": 1', '"format_version": 2', "says headstart-head version 2"),
        ('"headstart-head"', '"other"', "says other version 1"),
        ('"epochs": 7', '"epochs": "many"', "valid integer"),
        ('"trial": 3', '"trail": 3', "trail"),
        ("{", "[", "best_head.json must be a headstart-head file"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "best_head.json"
    write_head(path, BEST)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(FormatError, match=message) as error:
        read_head(path)
    assert "dvc repro --force search" in str(error.value)
