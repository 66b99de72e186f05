"""The commands that run a model: what they are told by options, and what they say of files."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from headstart.cli import app
from headstart.models.assemble import assemble
from headstart.models.model_file import save_model
from headstart.tracking import model_uri
from tests.models.conftest import IMAGE, SIZE, make_encoder, make_head

ESCAPE = "\x1b[2Jgone\u202egnp"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file; one of its classes would clear the screen."""
    path = tmp_path_factory.mktemp("model") / "champion.h5"
    image = IMAGE.model_dump(mode="json")
    metadata = {"classes": ["a", "b", ESCAPE], "image": image, "fine_tuned": None}
    save_model(path, assemble(make_encoder(), [make_head()], 1.0), metadata)
    return path


@pytest.fixture
def here(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a picture, a model, and a registry where it is `models:/m@champion`."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "models").mkdir()
    shutil.copy(model, tmp_path / "models/model.h5")
    _picture(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    real = model_uri.model_file

    @contextmanager
    def found(name: str, root: Path) -> Iterator[Path]:
        assert root == tmp_path
        if name == "models:/m@champion":
            yield model
        else:
            with real(name, root) as path:
                yield path

    monkeypatch.setattr(model_uri, "model_file", found)
    return tmp_path


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


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


def test_default_paths_are_the_projects_in_any_of_its_folders(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = here / "photos" / "of today"
    _picture(inside / "one.png")
    monkeypatch.chdir(inside)
    assert CliRunner().invoke(app, ["predict", "one.png"]).exit_code == 0
    assert CliRunner().invoke(app, ["explain", "one.png"]).exit_code == 0
    assert len(list((here / "explained").iterdir())) == 1
    group = typer.main.get_command(app)
    n_paths = 0
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for option in command.params:
            default = option.default() if callable(option.default) else option.default
            if isinstance(default, str | Path) and "/" in str(default):
                n_paths += 1
                assert here in Path(default).resolve().parents, f"{name} {option.name}"
    assert n_paths == 8


def test_every_path_that_can_be_read_is_answered(here: Path) -> None:
    os.mkfifo(here / "pipe")
    missing = CliRunner().invoke(app, ["predict", "picture.png", "nowhere.png", "pipe"])
    assert missing.exit_code == 1
    told, other, answer = missing.output.splitlines()
    assert told == "nowhere.png: No such file or directory"
    assert other.startswith("pipe: an image must be a file or a folder, but this is a pipe")
    assert answer.startswith("picture.png: ")


@pytest.mark.usefixtures("here")
def test_a_path_that_is_missing_is_told_before_a_model_is_looked_for() -> None:
    done = CliRunner().invoke(app, ["predict", "nowhere.png", "--model", "no-model.h5"])
    assert done.exit_code == 1
    assert done.output == "nowhere.png: No such file or directory\n"


def test_folders_are_read_as_ingest_reads_them(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    _picture(elsewhere / "linked.png")
    _picture(here / "photos" / "own.png")
    for ignored in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (here / "photos" / ignored).write_bytes(b"no image")
    (here / "photos" / "more").symlink_to(elsewhere)
    (here / "photos" / "loop").symlink_to(here / "photos")
    done = CliRunner().invoke(app, ["predict", "photos"])
    assert done.exit_code == 0, done.output
    names = [line.partition(": ")[0] for line in done.output.splitlines()]
    assert sorted(names) == ["photos/more/linked.png", "photos/own.png"]


def test_names_of_files_and_classes_do_not_steer_the_terminal(here: Path) -> None:
    _picture(here / "photos" / f"{ESCAPE}\n.png")
    (here / "photos" / "bad\x9b31m.png").write_bytes(b"no image")
    with (here / "photos" / os.fsdecode(b"\xff.png")).open("wb") as stream:
        stream.write(b"no image")
    for command in ("predict", "explain"):
        done = CliRunner().invoke(app, [command, "photos", "photos/\x1b[31mnone"])
        assert not isinstance(done.exception, UnicodeError)
        assert done.output.count("\n") == 4
        assert all(c.isprintable() or c == "\n" for c in done.output), ascii(done.output)
        assert r"photos/\x1b[31mnone: No such" in done.output
        assert r"\x1b[2Jgone\u202egnp 0." in done.output


@pytest.mark.parametrize("command", ["explain", "export"])
def test_what_is_written_by_default_is_ignored_by_git(
    command: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository / "docs")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    (default,) = (p.default for p in commands[command].params if p.name == "output")
    written = Path(default()).resolve() / "some.file"
    assert written.is_relative_to(repository)
    ignored = subprocess.run(["git", "check-ignore", str(written)], check=False, cwd=repository)
    assert ignored.returncode == 0


def test_answers_go_to_a_file(here: Path) -> None:
    (here / "notes.txt").write_text("no image")
    for command in (["picture.png", "notes.txt"], ["-"]):
        arguments = ["predict", *command, "--output", "out/answers.csv"]
        done = CliRunner().invoke(app, arguments, input="picture.png\nnotes.txt\n")
        assert done.exit_code == 1  # one has no answer
        assert "1 images predicted" in done.output
        assert "notes.txt: " in done.output
        lines = (here / "out/answers.csv").read_text().splitlines()
        assert lines[0].startswith("path,predicted_label,predicted_label_id,probability,p(a),p(b),")
        assert [line.split(",")[0] for line in lines[1:]] == ["picture.png", "notes.txt"]
    refused = CliRunner().invoke(app, ["predict", "picture.png", "--output", "answers.txt"])
    assert refused.exit_code == 1


def test_no_help_text_is_taken_for_markup() -> None:
    """Text in square brackets would not be shown: defaults are told by show_default."""
    group = typer.main.get_command(app)
    texts = [
        getattr(option, "help", None) or ""
        for command in group.commands.values()  # type: ignore[attr-defined]
        for option in command.params
    ]
    assert len(texts) > 20
    assert [text for text in texts if "[" in text] == []
