"""Stage ingest, through its own entry point: what it writes, and what users do wrong."""

import csv
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from headstart.common.errors import DataError
from headstart.common.paths import Project
from headstart.dataset.duplicates import find_groups, straddling
from headstart.dataset.image_statistics import inspect
from headstart.dataset.manifest import Manifest, read_manifest
from headstart.dataset.splits import assign_splits, uniform_hash
from headstart.params.load import load_sections
from headstart.params.split import SplitParams
from headstart.sources.arrays import encode_png, read_array, read_spec
from headstart.stages import ingest
from tests.images.pictures import picture, write_classes, write_picture


@pytest.fixture
def workspace(tmp_path: Path) -> Project:
    return Project(tmp_path)


def run(files: Project, **params: Any) -> str:
    files.params.write_text(yaml.safe_dump({"ingest": params}))
    return ingest.run(files, load_sections(files.params, ingest.Sections))


def error(files: Project, **params: Any) -> str:
    with pytest.raises(DataError) as caught:
        run(files, **params)
    return str(caught.value)


def metrics(files: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files.data_report / "metrics.json").read_text())
    return found


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_clean_folder(workspace: Project) -> None:
    write_classes(workspace.fetched, 40)
    assert run(workspace) == "80 images of 2 classes, 0 rejected, 0 copies or near copies"
    manifest = read_manifest(workspace.manifest)
    assert len(manifest) == 80
    assert table(workspace.rejected) == []
    found = metrics(workspace)
    assert found["leaks"] == 0
    assert found["train"] + found["validation"] + found["test"] == 80
    assert {row["label"]: row["images"] for row in table(workspace.data_report / "counts.csv")} == {
        "a": "40",
        "b": "40",
    }


@pytest.mark.parametrize("column", ["label", "group"])
@pytest.mark.parametrize("character", ["\r", "\n", "\x0b", "\x1c", "\x85", "\u2028"])
def test_no_control_character_comes_into_the_tables(
    workspace: Project, column: str, character: str
) -> None:
    write_classes(workspace.fetched, 6)
    names = sorted(path.relative_to(workspace.fetched) for path in workspace.fetched.rglob("*.png"))
    rows = [{"path": name, "label": name.parent, "group": f"{name} g"} for name in names]
    rows[0] |= {column: f"x{character}y"}
    with (workspace.fetched / "labels.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["path", "label", "group"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    assert re.search(
        r"no control characters within its values, but line [23] has", error(workspace)
    )
    assert not workspace.splits.exists()
    assert not workspace.manifest.exists()


def test_a_dirty_folder(workspace: Project) -> None:
    folder = workspace.fetched
    write_classes(folder, 60)
    (folder / "a" / "page.jpg").write_text("<html>")
    half = (folder / "a" / "000.png").read_bytes()[:-300]
    (folder / "b" / "half.png").write_bytes(half)
    shutil.copy(folder / "a" / "001.png", folder / "a" / "copy.png")
    shutil.copy(folder / "a" / "002.png", folder / "b" / "conflict.png")
    picture(3, (24, 18)).save(folder / "a" / "again.jpg", quality=90)  # looks like a/003.png
    write_picture(folder / "beside.png", 999)
    line = run(workspace)
    assert "3 rejected" in line
    assert "2 with conflicting labels" in line
    assert [(row["path"], row["reason"]) for row in table(workspace.rejected)] == [
        ("a/page.jpg", "not_an_image"),
        ("b/half.png", "truncated"),
        ("beside.png", "no_class"),
    ]
    manifest = read_manifest(workspace.manifest).table.set_index("path")
    for one, other, flag in (
        ("a/001.png", "a/copy.png", "exact_duplicates"),
        ("a/002.png", "b/conflict.png", "label_conflict"),
        ("a/003.png", "a/again.jpg", "near_duplicates"),
    ):
        rows = manifest.loc[[one, other]]
        assert rows[flag].all()
        assert rows["split"].nunique() == rows["group"].nunique() == 1
    assert metrics(workspace)["leaks"] == 0
    page = (workspace.data_report / "index.html").read_text()
    assert page.count("what is left of") == 0  # nothing can be seen of a truncated PNG
    for words in ("One picture, two labels", "a/copy.png", "it is a web page", "b/half.png"):
        assert words in page
    assert not re.search(r"(src|href)=.https?://", page)


def test_mirrored_copies_share_a_split_and_conflict_only_with_copies_as_they_are(
    workspace: Project,
) -> None:
    folder = workspace.fetched
    write_classes(folder, 20)
    image = picture(3, (24, 18))  # a/003.png
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b" / "mirrored.png")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "b" / "turned.png")
    assert "conflicting" not in run(workspace)
    rows = read_manifest(workspace.manifest).table.set_index("path")
    same = rows.loc[["a/003.png", "b/mirrored.png", "b/turned.png"]]
    assert same["split"].nunique() == same["group"].nunique() == 1
    assert same["near_duplicates"].all()
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "a" / "turned.png")
    assert "2 with conflicting labels" in run(workspace)
    page = (workspace.data_report / "index.html").read_text()
    conflicts = page.split("One picture, two labels")[1].split("Copies and near copies")[0]
    assert "a/turned.png" in conflicts


def test_the_card_shows_what_is_left_of_a_truncated_photograph(workspace: Project) -> None:
    write_classes(workspace.fetched, 40)
    whole = workspace.fetched / "a" / "half.jpg"
    write_picture(whole, 7, (320, 240))
    whole.write_bytes(whole.read_bytes()[:-1500])
    run(workspace)
    assert [row["reason"] for row in table(workspace.rejected)] == ["truncated"]
    assert "what is left of a/half.jpg" in (workspace.data_report / "index.html").read_text()


def test_a_hostile_class_name_is_escaped_in_the_card(workspace: Project) -> None:
    write_classes(workspace.fetched, 40)
    (workspace.fetched / "b").rename(workspace.fetched / "<script>alert(1)")
    run(workspace)
    page = (workspace.data_report / "index.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_same_folder_gives_the_same_bytes(workspace: Project) -> None:
    write_classes(workspace.fetched, 40)
    run(workspace)
    outputs = [workspace.manifest, workspace.rejected, *sorted(workspace.data_report.iterdir())]
    first = [path.read_bytes() for path in outputs]
    run(workspace)
    assert [path.read_bytes() for path in outputs] == first


def test_newcomers_move_nobody_but_those_they_join(workspace: Project) -> None:
    folder = workspace.fetched
    write_classes(folder, 60)
    run(workspace)
    before = splits_of(read_manifest(workspace.manifest))
    for i in range(40):  # copies in another format: some of them have a smaller hash
        picture(i, (24, 18)).save(folder / "a" / f"copy{i:03d}.bmp")
        write_picture(folder / "b" / f"new{i:03d}.png", 5000 + i, (24, 18))
    line = run(workspace)
    after = splits_of(read_manifest(workspace.manifest))
    moved = {path for path, split in before.items() if after[path] != split}
    assert moved
    assert moved <= {f"a/{i:03d}.png" for i in range(40)}
    assert {row["path"] for row in table(workspace.data_report / "moves.csv")} == moved
    assert f"{len(moved)} moved to another split" in line
    assert metrics(workspace)["leaks"] == 0


def splits_of(manifest: Manifest) -> dict[str, str]:
    return dict(zip(manifest.paths, manifest.splits, strict=True))


def test_given_splits_that_leak_are_kept_and_reported(workspace: Project) -> None:
    for number, split in enumerate(("train", "val", "test")):
        for label_id, label in enumerate("ab"):
            for i in range(4):
                seed = 100 * number + 10 * label_id + i
                write_picture(workspace.fetched / split / label / f"{i}.png", seed, (24, 18))
    shutil.copy(workspace.fetched / "train/a/0.png", workspace.fetched / "test/a/0.png")
    assert "1 groups in two of the given splits" in run(workspace)
    assert read_manifest(workspace.manifest).is_given("validation")
    assert metrics(workspace)["leaks"] == 1
    assert (metrics(workspace)["train"], metrics(workspace)["test"]) == (8, 8)
    assert "too good to be true" in (workspace.data_report / "index.html").read_text()


def test_a_validation_split_that_is_taken_from_train_did_not_come_with_the_data(
    workspace: Project,
) -> None:
    for number, split in enumerate(("train", "test")):
        for label_id, label in enumerate("ab"):
            for i in range(8):
                seed = 100 * number + 10 * label_id + i
                write_picture(workspace.fetched / split / label / f"{i}.png", seed, (24, 18))
    run(workspace)
    manifest = read_manifest(workspace.manifest)
    assert manifest.is_given("test")
    assert "validation" in manifest.splits
    assert not manifest.is_given("validation")


def test_groups_of_the_user_share_a_split(workspace: Project) -> None:
    rows = ["path,label,group"]
    for i in range(120):
        write_picture(workspace.fetched / "images" / f"{i}.png", i, (24, 18))
        rows.append(f"images/{i}.png,{'ab'[i % 2]},patient {i // 3}")
    (workspace.fetched / "labels.csv").write_text("\n".join(rows) + "\n")
    run(workspace)
    of_group = read_manifest(workspace.manifest).table.groupby("group")["split"].nunique()
    assert len(of_group) == 40
    assert (of_group == 1).all()


def test_what_users_get_wrong(workspace: Project) -> None:
    workspace.fetched.mkdir(parents=True)
    assert "there are no folders" in error(workspace)
    write_classes(workspace.fetched, 40, "a")
    assert "at least two classes, but there is only 'a'" in error(workspace)
    (workspace.fetched / "b").mkdir()
    assert f"hold images, but {workspace.fetched}/b is empty" in error(workspace)
    (workspace.fetched / "labels.csv").write_text("path,label,split\na/000.png,a,trian\n")
    assert "line 2 has 'trian'" in error(workspace)


def test_too_many_rejected_files_stop_the_stage_after_the_list_is_written(
    workspace: Project,
) -> None:
    write_classes(workspace.fetched, 40)
    for i in range(20):
        (workspace.fetched / "a" / f"bad{i}.jpg").write_text("no image")
    assert error(workspace) == (
        "at most 5.0% of the files may be left out (ingest.max_rejected_fraction), but 20 of 100 "
        "(20.0%) were: see reports/rejected.csv for each of them and the reason; fix or remove "
        "them, or raise the limit"
    )
    assert len(table(workspace.rejected)) == 20
    assert not workspace.manifest.exists()
    run(workspace, max_rejected_fraction=0.2)


def test_nothing_but_rejected_files(workspace: Project) -> None:
    for label in "ab":
        (workspace.fetched / label).mkdir(parents=True)
        (workspace.fetched / label / "x.jpg").write_text("no image")
    assert "2 of 2 (100.0%)" in error(workspace)
    assert "but 'a': all of its 1 files were rejected; 'b': all of its 1 files" in error(
        workspace, max_rejected_fraction=1.0
    )


def test_a_class_of_one_group_is_an_error_that_says_why(workspace: Project) -> None:
    folder = workspace.fetched
    write_classes(folder, 12)
    for i in range(40):
        (folder / "black").mkdir(exist_ok=True)
        shutil.copy(folder / "a" / "000.png", folder / "black" / f"{i}.png")
    write_picture(folder / "lone" / "1.png", 77)
    assert error(workspace) == (
        "every class needs images in at least 2 duplicate groups, so that one can train it and "
        "another test it, but 'black': its 40 images are copies of one image, black/0.png; 'lone': "
        "its only image is lone/1.png; add other images of it, or remove the class"
    )
    assert not workspace.splits.exists()
    rows = ["path,label,group"]
    rows += [
        f"{label}/{i:03d}.png,{label},{label * (label == 'a')}" for label in "ab" for i in range(9)
    ]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    assert "'a': its 9 images are in one group, 'a'; add" in error(workspace)


def test_small_classes_are_named_in_one_warning(
    workspace: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(workspace.fetched, 14)
    assert run(workspace).startswith("28 images of 2 classes")
    assert capsys.readouterr().err == ""
    for i in range(3):
        write_picture(workspace.fetched / "c" / f"{i}.png", 600 + i)
    for i in range(2):
        write_picture(workspace.fetched / "d" / f"{i}.png", 700 + i)
    run(workspace)
    assert capsys.readouterr().err == (
        "ingest    2 of 4 classes have fewer than 2 images in a split "
        "(ingest.min_images_per_split), so what is measured of them is uncertain: "
        "'c' (train 1, validation 1, test 1); 'd' (train 1, validation 0, test 1); "
        "add images of them, or, where there are enough, delete their lines in data/splits.csv to "
        "split them anew\n"
    )


def test_given_splits_without_images_to_train_are_an_error(workspace: Project) -> None:
    rows = ["path,label,split"]
    for label in "ab":
        for i in range(6):
            write_picture(workspace.fetched / label / f"{i}.png", ord(label) * 10 + i)
            rows.append(f"{label}/{i}.png,{label},{'train' if label == 'a' else 'test'}")
    (workspace.fetched / "labels.csv").write_text("\n".join(rows) + "\n")
    assert "these have none: 'b'; give train some of their images" in error(workspace)


def test_a_class_keeps_the_thresholds_that_it_was_first_given(workspace: Project) -> None:
    write_classes(workspace.fetched, 5)
    run(workspace)
    first, before = workspace.splits.read_text(), splits_of(read_manifest(workspace.manifest))
    columns = "seed,train,validation,test,class,first_groups,draw,validation_from,test_from"
    assert first.splitlines()[0] == columns
    assert len(first.splitlines()) == 3
    write_classes(workspace.fetched, 60)
    for i in range(20):
        write_picture(workspace.fetched / "c" / f"{i}.png", 2000 + i)
    run(workspace)
    after = splits_of(read_manifest(workspace.manifest))
    assert after | before == after
    grown = workspace.splits.read_text()
    assert grown.startswith(first)
    assert len(grown.splitlines()) == 4
    workspace.splits.unlink()
    run(workspace)
    assert splits_of(read_manifest(workspace.manifest)) != after
    workspace.splits.write_text(grown)
    run(workspace)
    assert splits_of(read_manifest(workspace.manifest)) == after
    assert workspace.splits.read_text() == grown


def test_the_hostile_folder_goes_through_the_stage(workspace: Project, assets: Path) -> None:
    write_classes(workspace.fetched, 40)
    hostile = workspace.fetched / "a" / "hostile"
    shutil.copytree(assets / "hostile-images", hostile)
    run(workspace, max_rejected_fraction=0.5)
    rejected = {Path(row["path"]).name for row in table(workspace.rejected)}
    accepted = {Path(path).name for path in read_manifest(workspace.manifest).paths}
    names = {path.name for path in hostile.iterdir()} - {".hidden.jpg", "Thumbs.db"}
    assert names <= rejected | accepted
    assert "bomb_30000x30000.png" in rejected
    assert "cmyk_cat.jpg" in accepted


def test_errors_come_without_a_traceback_through_the_entry_point(workspace: Project) -> None:
    write_classes(workspace.fetched, 3, "a")
    workspace.params.write_text("{}\n")
    workspace.dvc_yaml.write_text("stages: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", "headstart.stages.ingest"],
        cwd=workspace.root,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ingest: a classifier needs at least two classes")
    assert "Traceback" not in done.stderr


def test_ingest_does_not_import_tensorflow(repository: Path) -> None:
    code = "import sys, headstart.stages.ingest as _; sys.exit('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, check=False)
    assert done.returncode == 0


def test_no_group_of_all_ten_thousand_pictures_straddles_a_split(repository: Path) -> None:
    spec = read_spec(repository / "data" / "sources" / "animal-silhouettes-all.yaml")
    files = importlib.metadata.files(spec.package) or []
    (path,) = [Path(str(f.locate())) for f in files if f.as_posix() == spec.images.file]
    encoded = [encode_png(pixels) for pixels in read_array(path)]
    statistics = np.concatenate(
        [inspect(data, hashlib.sha256(data).digest(), max_pixels=10**4) for data in encoded]
    )
    labels = np.repeat(np.arange(10), 1000)
    groups = find_groups(statistics, labels, [None] * len(statistics), max_bits=4)
    names = labels.astype(str).tolist()
    splits = assign_splits(
        groups.keys, names, [None] * len(statistics), seed=0, fractions=SplitParams(), known={}
    ).splits
    assert int(groups.exact_duplicates.sum()) == 2 * 284
    assert np.bincount(groups.duplicates).max() <= 5  # no chains of silhouettes
    assert straddling(groups.keys, splits) == []
    naive = [
        "test" if uniform_hash(str(row), seed=0) > 0.85 else "train"
        for row in range(len(statistics))
    ]
    assert len(straddling(groups.keys, naive)) > 50


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("ingest", "data/fetched"), ("train", "data/best_head.json"), ("pack", "data/manifest.csv")],
)
def test_a_stage_that_is_run_before_its_inputs_are_there(
    workspace: Project, stage: str, missing: str
) -> None:
    shutil.rmtree(workspace.fetched, ignore_errors=True)
    workspace.params.write_text("{}\n")
    workspace.dvc_yaml.write_text("stages: {}\n")
    done = subprocess.run(
        [sys.executable, "-m", f"headstart.stages.{stage}"],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert missing in done.stderr
    assert "dvc " in done.stderr
