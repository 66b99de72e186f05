"""Whatever is wrong anywhere in params.yaml is told by the first stage that runs, all of it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from headstart.common.errors import ParamsError
from headstart.common.paths import Project
from headstart.params.whole_file import load_params
from headstart.stages.checks import STAGES, check_possible

NO_GRID = "kind: network, dropout: {low: 0.0, high: 0.5}"


def _project(folder: Path, text: str) -> Project:
    (folder / "params.yaml").write_text(text)
    (folder / "dvc.yaml").write_text("stages: {}\n")
    return Project(folder)


def _told(folder: Path, text: str, stage: str = "fetch") -> str:
    project = _project(folder, text)
    with pytest.raises(ParamsError) as error:
        check_possible(project, stage)
    return str(error.value)


def test_the_stages_are_those_of_dvc_yaml(repository: Path) -> None:
    assert tuple(yaml.safe_load((repository / "dvc.yaml").read_text())["stages"]) == STAGES


def test_the_defaults_can_be(repository: Path) -> None:
    for stage in STAGES:
        check_possible(Project(repository), stage)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extract: {encoders: efficientnet_lite}", "did you mean efficientnet-lite"),
        (
            "extract: {encoders: inceptionv3}\nimage: {size_px: 32}",
            "image.size_px must be at least",
        ),
        ("extract: {weights: wieghts.h5}", "there is no file .*: did you mean weights.h5?"),
        ("extract: {weights: imagnet}", "did you mean imagenet?"),
        ("extract: {encoders: mobilenetv2}", "ImageNet weights of mobilenetv2 must be found"),
        ("extract: {precision: bfloat16}", "extract.precision must be float32 where"),
        ("extract: {layer: hed_relu}", "none named hed_relu: nearest are head_relu"),
        ("extract: {encoders: [vgg16, efficientnet_lite2]}", "did you mean efficientnet-lite2"),
        (
            "extract: {encoders: [vgg16, vgg19]}\ntrain: {fine_tune: {enabled: true}}",
            "fine-tuning works with one encoder, but extract.encoders names vgg16, vgg19",
        ),
        ("train: {fine_tune: {enabled: true, from_layer: hed_relu}}", "nearest are head_relu"),
        pytest.param(
            "train: {fine_tune: {enabled: true}}\nextract: {encoders: inceptionv3}",
            "blocks needs an encoder whose layers are named by blocks",
            marks=pytest.mark.slow,
        ),
        ("train: {fine_tune: {enabled: true}}\npack: {splits: [train]}", "pack.splits is .train.:"),
        (
            "search: {sampler: grid, space: {kind: network, dropout: {low: 0.0, high: 0.5}}}",
            "dropout is a range without steps",
        ),
        ("search: {storage: studies.db}", "search.storage must be an Optuna storage"),
        ("search: {storage: 'postgresql://a:secret@127.0.0.1:9/x'}", "search.storage must be"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ParamsError, match=message):
        raise ParamsError(_told(tmp_path, text))
    assert "secret" not in _told(tmp_path, text)


def test_all_of_it_is_told_at_once(tmp_path: Path) -> None:
    text = (
        "extract: {weights: nowhere.h5, precision: bfloat16, layer: nolayer}\n"
        f"search: {{sampler: grid, space: {{{NO_GRID}}}}}\n"
        "pack: {splits: [validation]}\n"
        "train: {fine_tune: {enabled: true}}\n"
    )
    told = _told(tmp_path, text)
    assert told.startswith("5 mistakes in params.yaml:\n  extract.weights must be")
    # what only the stages before need no longer counts
    assert _told(tmp_path, text, "search").startswith("3 mistakes in params.yaml:")
    project = Project(tmp_path)
    check_possible(project, "evaluate")


def test_a_metric_that_needs_more_classes_is_told_once_the_classes_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ThreeClasses:
        classes = ("a", "b", "c")

    monkeypatch.setattr("headstart.dataset.manifest.read_manifest", lambda _: ThreeClasses())
    text = "search: {metric: top_3_accuracy}"
    assert "for 3 classes, but got top_3_accuracy" in _told(tmp_path, text, "extract")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("serch: {n_trials: 3}", "evaluate, register; did you mean search?"),
        ("train: {eposch: 3}", "fine_tune; did you mean epochs?"),
        ("search: {metric: acuracy}", "but got 'acuracy'; did you mean accuracy"),
        ("search: {space: {optimizer: adam}}", "but got 'adam'; did you mean adamw?"),
        ("register: {gate: Better}", "but got 'Better'; did you mean better?"),
        ("image: {size: 64}", "fit; did you mean size_px?"),
    ],
)
def test_names_are_met_with_the_nearest(tmp_path: Path, text: str, message: str) -> None:
    project = _project(tmp_path, text)
    with pytest.raises(ParamsError) as error:
        load_params(project.params)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "search: {sampler: grid, space: {kind: network, width: {low: 8, high: 9, log: true}}}\n",
        "register: {gate: bettr}\n",
        "train: {eposch: 3}\n",
    ],
)
def test_the_first_stage_tells_of_a_later_section(
    tmp_path: Path, repository: Path, text: str
) -> None:
    """A real stage, as DVC runs it: nothing has been read or written when it stops."""
    _project(tmp_path, text)
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(repository / "src")}
    command = [sys.executable, "-m", "headstart.stages.fetch"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("fetch: 1 mistake in params.yaml:\n  ")
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", "dvc.yaml"}
