"""Stage fetch, through its own entry point: every kind of source, and what users do wrong."""

import errno
import http.server
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from headstart.common.errors import DataError
from headstart.common.paths import Project
from headstart.params.load import load_sections
from headstart.sources import data_source as sources
from headstart.sources.layout import scan
from headstart.stages import fetch
from tests.images.pictures import write_classes, write_picture


@pytest.fixture
def workspace(tmp_path: Path) -> Project:
    return Project(tmp_path / "workspace")


def run(files: Project, source: object, **data: object) -> str:
    files.root.mkdir(exist_ok=True)
    files.params.write_text(yaml.safe_dump({"data": {"source": str(source), **data}}))
    return fetch.run(files, load_sections(files.params, fetch.Sections))


def fetched(files: Project) -> dict[str, bytes]:
    found = [path for path in files.fetched.rglob("*") if path.is_file()]
    return {path.relative_to(files.fetched).as_posix(): path.read_bytes() for path in found}


def contents(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_folder_is_linked_and_its_files_are_left_alone(
    workspace: Project, tmp_path: Path
) -> None:
    write_classes(tmp_path / "mine", 3)
    (tmp_path / "mine" / "a" / "linked.png").symlink_to(tmp_path / "mine" / "b" / "000.png")
    before = contents(tmp_path / "mine")
    assert run(workspace, tmp_path / "mine") == f"7 files from {tmp_path / 'mine'}"
    assert fetched(workspace) == before
    assert not (workspace.fetched / "a" / "linked.png").is_symlink()
    run(workspace, tmp_path / "mine")
    shutil.rmtree(workspace.fetched)
    assert contents(tmp_path / "mine") == before


def test_data_own_is_relative_to_the_workspace(workspace: Project) -> None:
    write_classes(workspace.root / "data" / "own", 2)
    assert run(workspace, "data/own") == "4 files from data/own"


def test_archives_are_unpacked_and_unwrapped(workspace: Project, tmp_path: Path) -> None:
    write_classes(tmp_path / "mine" / "set-1.0", 3)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "mine" / "set-1.0", "set-1.0/inner")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        for name, data in contents(tmp_path / "mine").items():
            zipped.writestr(name, data)
    for name in ("a.tar.gz", "a.zip"):
        run(workspace, tmp_path / name)
        assert fetched(workspace) == contents(tmp_path / "mine" / "set-1.0")


def packed(folder: Path, kind: str) -> Path:
    """The folder itself, or an archive of it with the folder as the outer one."""
    if kind == "folder":
        return folder
    return Path(shutil.make_archive(str(folder), kind, folder.parent, folder.name))


@pytest.mark.parametrize("kind", ["folder", "zip", "gztar"])
def test_kaggles_layout_is_the_classes_of_train(
    workspace: Project, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "pets" / "pets" / "train", 2)
    write_classes(tmp_path / "pets" / "pets", 3, ["test1"])
    (tmp_path / "pets" / "pets" / "sample_submission.csv").write_text("id,label")
    source = packed(tmp_path / "pets", kind)
    assert run(workspace, source) == f"8 files from {source}"
    outer = "pets" if kind == "folder" else "pets/pets"
    assert capsys.readouterr().out == (
        f"fetch     everything is in {outer}/: what is in there counts\n"
        "fetch     test1/ holds 3 images without class folders: left out; `headstart predict "
        "data/fetched/test1` classifies them\n"
    )
    assert set(fetched(workspace)) == set(contents(tmp_path / "pets" / "pets"))
    layout = scan(workspace.fetched)
    assert Counter((e.label, e.split) for e in layout.entries) == {("a", None): 2, ("b", None): 2}
    assert layout.without_class == []


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_is_wrong_is_named_below_the_users_own_source(
    workspace: Project, tmp_path: Path, kind: str
) -> None:
    for split in ("train", "val", "samples"):
        write_classes(tmp_path / "pets" / "inner" / split, 2)
    source = packed(tmp_path / "pets", kind)
    told = error(workspace, source)
    outer = "inner" if kind == "folder" else "pets/inner"
    assert f"but {source}/{outer} has samples: move them out of {source}/{outer}," in told
    shutil.rmtree(tmp_path / "pets" / "inner")
    write_picture(tmp_path / "pets" / "1.jpg", 1)
    source = packed(tmp_path / "pets", kind)
    assert "fetched." not in error(workspace, source)
    assert str(source) in error(workspace, source)


def test_a_class_that_is_called_train_needs_a_word(workspace: Project, tmp_path: Path) -> None:
    write_classes(tmp_path / "traffic", 2, ["bus", "train", "Bus"])
    assert f"{tmp_path / 'traffic'} has 'train', such as train/000.png" in error(
        workspace, tmp_path / "traffic"
    )
    (tmp_path / "traffic" / "train").rename(tmp_path / "train")
    assert "has 'Bus' (Bus/000.png) and 'bus' (bus/000.png)" in error(
        workspace, tmp_path / "traffic"
    )
    (tmp_path / "train").rename(tmp_path / "traffic" / "train")
    run(workspace, tmp_path / "traffic", class_names="as_given")
    assert {entry.label for entry in scan(workspace.fetched).entries} == {"Bus", "bus", "train"}


def test_two_files_that_are_read_as_one_are_named(workspace: Project, tmp_path: Path) -> None:
    write_classes(tmp_path / "mine", 2)
    for name in (b"caf\xe9.jpg", b"caf%E9.jpg"):
        Path(os.fsdecode(bytes(tmp_path / "mine" / "a") + b"/" + name)).write_bytes(name)
    assert f"{tmp_path / 'mine'} has two that are read as 'a/caf%E9.jpg'" in error(
        workspace, tmp_path / "mine"
    )


def test_a_source_that_experiments_would_not_find_is_said(
    workspace: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(source: str) -> str:
        run(workspace, source)
        return capsys.readouterr().out

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=workspace.root, check=True)

    write_classes(workspace.root / "data" / "own", 2)
    write_classes(tmp_path / "outside", 2)
    assert said("data/own") == ""
    git("init", "-q")
    assert said("./data/own/") == (
        "fetch     ./data/own/ is tracked neither by git nor by DVC, so `dvc exp run --queue` and "
        "`--temp` will not find it: run `dvc add data/own` and `git add data/own.dvc`\n"
    )
    assert "relative path out of the project" in said("../outside")
    assert said(str(tmp_path / "outside")) == ""
    (workspace.root / "data" / "own.dvc").write_text("outs: []\n")
    assert "tracked neither" in said("data/own")
    git("add", "data/own.dvc")
    assert said("data/own") == ""
    git("rm", "-q", "--cached", "data/own.dvc")
    git("add", "data/own/a")
    assert said("data/own") == ""


@pytest.mark.parametrize("layout", ["labels", "splits"])
def test_archives_of_the_other_layouts(workspace: Project, tmp_path: Path, layout: str) -> None:
    mine = tmp_path / "mine" / "wrapped"
    if layout == "labels":
        for i in range(4):
            write_picture(mine / "images" / f"{i}.png", i)
        rows = "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(4))
        (mine / "labels.csv").write_text("path,label\n" + rows)
    else:
        for split in ("train", "val", "test"):
            write_classes(mine / split, 2)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(mine, "wrapped")
    run(workspace, tmp_path / "a.tar")
    assert fetched(workspace) == contents(mine)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on the loopback, for the folder tmp_path/web."""

    def handler(*args: object) -> _Quiet:
        return _Quiet(*args, directory=str(tmp_path / "web"))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def stage(files: Project, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "headstart.stages.fetch"],
        cwd=files.root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_archive_at_a_url(workspace: Project, tmp_path: Path, server: str) -> None:
    write_classes(tmp_path / "mine", 2)
    (tmp_path / "web").mkdir()
    shutil.make_archive(str(tmp_path / "web" / "pictures"), "zip", tmp_path / "mine")
    workspace.root.mkdir()
    workspace.params.write_text(f"data: {{source: '{server}/pictures.zip'}}\n")
    done = stage(workspace)
    assert done.returncode == 0, done.stderr
    assert fetched(workspace) == contents(tmp_path / "mine")
    assert [path.name for path in workspace.fetched.parent.iterdir()] == ["fetched"]
    workspace.params.write_text(f"data: {{source: '{server}/nothing.zip'}}\n")
    done = stage(workspace)
    assert done.returncode == 1
    assert "fetch: data.source must be reachable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_no_fault_of_the_url(
    workspace: Project, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_classes(tmp_path / "mine", 2)
    (tmp_path / "web").mkdir()
    shutil.make_archive(str(tmp_path / "web" / "pictures"), "zip", tmp_path / "mine")
    monkeypatch.setattr(sources, "unpack", full)
    told = error(workspace, f"{server}/pictures.zip")
    assert "No space left on device" in told
    assert "reachable" not in told


def error(files: Project, source: object, **data: object) -> str:
    with pytest.raises(DataError) as caught:
        run(files, source, **data)
    assert not files.fetched.exists()
    left_over = list(files.fetched.parent.glob(".*")) if files.fetched.parent.exists() else []
    assert left_over == []
    return str(caught.value)


def test_what_users_get_wrong(workspace: Project, tmp_path: Path) -> None:
    assert "there is no" in error(workspace, "data/own")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"data.source must hold images, but {empty} holds no files" in error(workspace, empty)
    write_classes(tmp_path / "one", 2, "a")
    assert "at least two classes, but there is only 'a'" in error(workspace, tmp_path / "one")
    write_classes(tmp_path / "two", 2)
    (tmp_path / "two" / "void").mkdir()
    two = tmp_path / "two"
    assert f"every class folder must hold images, but {two}/void is empty" in error(workspace, two)
    for i in range(3):
        write_picture(tmp_path / "flat" / f"{i}.png", i)
    assert f"there are no folders in {tmp_path / 'flat'}:" in error(workspace, tmp_path / "flat")
    (tmp_path / "notes.txt").write_text("not images")
    assert "must be a folder of images, a zip or tar archive" in error(
        workspace, tmp_path / "notes.txt"
    )
    (tmp_path / "spec.yaml").write_text("title: mine\n")
    assert "must be a spec file of the format headstart-source" in error(
        workspace, tmp_path / "spec.yaml"
    )


def test_an_archive_bomb(workspace: Project, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", b"\0" * 5_000_000)
    words = error(workspace, tmp_path / "bomb.zip", max_archive_gb=0.001)
    assert words == (
        "the archive bomb.zip is refused: its member 'a/1.png' makes it larger than the 0.001 GB "
        "that it may unpack to (data.max_archive_gb); it may be a compression bomb"
    )


def test_the_projects_own_folder_is_no_source(workspace: Project) -> None:
    write_classes(workspace.root / "data" / "own", 2)
    with pytest.raises(DataError, match="must not hold the project's own fetched/ folder"):
        run(workspace, "data")


def test_a_failure_leaves_the_former_images(workspace: Project, tmp_path: Path) -> None:
    write_classes(tmp_path / "mine", 2)
    run(workspace, tmp_path / "mine")
    with pytest.raises(DataError):
        run(workspace, "nothing")
    assert fetched(workspace) == contents(tmp_path / "mine")


def test_an_unreadable_folder_stops_the_stage(workspace: Project, tmp_path: Path) -> None:
    write_classes(tmp_path / "mine", 2)
    workspace.root.mkdir()
    workspace.params.write_text(f"data: {{source: '{tmp_path / 'mine'}'}}\n")
    workspace.dvc_yaml.write_text("stages: {}\n")
    for path in (tmp_path, workspace.root):
        path.chmod(0o777)
    (tmp_path / "mine" / "b").chmod(0o000)
    code = (
        # Imported while it may be: the other user cannot look into every checkout.
        "import os, sys, fcntl, onnxruntime, headstart.stages.checks\n"
        "from headstart.stages import fetch\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "sys.argv = ['fetch']\n"
        "fetch.run_stage('fetch', fetch.Sections, fetch.run)\n"
    )
    for parent in [p for p in tmp_path.parents if "pytest-" in str(p)]:
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        check=False,
    )
    (tmp_path / "mine" / "b").chmod(0o755)
    assert done.returncode == 1
    assert done.stderr == (
        f"fetch: every folder of images must be readable, but {tmp_path / 'mine' / 'b'} is not: "
        "permission denied; change its mode or owner\n"
    )


@pytest.mark.parametrize("name", ["-all", "-rest"])
def test_the_other_pictures_of_the_package_are_sources(
    workspace: Project, repository: Path, name: str
) -> None:
    spec = repository / "data" / "sources" / f"animal-silhouettes{name}.yaml"
    few = spec.read_text().replace("images_per_class: 1000", "images_per_class: 3")
    few = few.replace("images_per_class: 850", "images_per_class: 3")
    workspace.root.mkdir()
    (workspace.root / "few.yaml").write_text(few)
    assert run(workspace, "few.yaml") == "30 files from few.yaml"
    first = {"-all": "bear/00000.png", "-rest": "bear/00150.png"}[name]
    assert sorted(fetched(workspace))[0] == first
