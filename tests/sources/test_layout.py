"""What a folder of images means."""

import os
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from headstart.common.errors import DataError
from headstart.sources.data_source import link_folder
from headstart.sources.layout import Entry, check_class_files, check_class_names, outer_folder, scan


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")


def error(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        scan(folder)
    return str(caught.value)


def refused_name(folder: Path) -> str:
    layout = scan(folder)
    with pytest.raises(DataError) as caught:
        check_class_names(layout, "data/own")
    return str(caught.value)


def labels(folder: Path, *rows: str, name: str = "labels.csv") -> None:
    (folder / name).write_text("\n".join(("path,label", *rows)) + "\n", encoding="utf-8")


def test_class_folders_nested_among_files_of_systems(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/deep/er/2.jpg", "Ünï cödé/3", "cat/Thumbs.db", "dog/.hidden")
    touch(tmp_path, "__MACOSX/cat/1.jpg", ".git/x.jpg", "dog/.DS_Store", "dog/desktop.ini")
    touch(tmp_path, "dog/4.jpg", "README.md", "beside.JPG", "dog/notes.txt")
    layout = scan(tmp_path)
    assert [(entry.path, entry.label) for entry in layout.entries] == [
        ("cat/1.jpg", "cat"),
        ("cat/deep/er/2.jpg", "cat"),
        ("dog/4.jpg", "dog"),
        ("dog/notes.txt", "dog"),
        ("Ünï cödé/3", "Ünï cödé"),
    ]
    assert layout.without_class == ["beside.JPG"]


def test_links_are_followed_and_loops_survived(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/5.jpg", "data/cat/1.jpg", "data/dog/2.jpg")
    data = tmp_path / "data"
    (data / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "loop").symlink_to(data / "cat")
    (data / "cat" / "self").symlink_to(data / "cat" / "self")
    (data / "dog" / "gone.jpg").symlink_to(tmp_path / "nothing")
    (data / "dog" / "up").symlink_to(data)
    os.mkfifo(data / "dog" / "pipe")
    paths = [entry.path for entry in scan(data).entries]
    assert paths[:3] == ["cat/1.jpg", "cat/linked/5.jpg", "dog/2.jpg"]
    assert all("loop" not in path and "self" not in path and "pipe" not in path for path in paths)


@pytest.mark.parametrize("split", ["", "train/"])
def test_class_folders_that_link_to_one_another_are_walked_once_a_class(
    tmp_path: Path, split: str
) -> None:
    # All paths through nine folders that link to each other are 9! and more.
    names = "abcdefghi"
    touch(tmp_path, "elsewhere/x.jpg", *(f"data/{split}{name}/1.jpg" for name in names))
    touch(tmp_path, *(["data/test/a/1.jpg"] if split else []))
    data = tmp_path / "data"
    for name in names:
        here = data / split / name
        (here / "0 also").symlink_to(here / "own")
        (here / "own").mkdir()
        (here / "own" / "elsewhere").symlink_to(tmp_path / "elsewhere")
        (here / "up").symlink_to(data / split)
        for other in names:
            (here / f"to {other}").symlink_to(data / split / other)
    (tmp_path / "target").mkdir()
    n_own = link_folder(data, tmp_path / "target") - bool(split)
    # Of each class the image of every class, and of the shared folder.
    assert n_own == 9 * (9 + 1)
    assert (tmp_path / "target" / split / "a" / "own" / "elsewhere" / "x.jpg").exists()
    assert (tmp_path / "target" / split / "i" / "own" / "elsewhere" / "x.jpg").exists()


def test_split_folders_are_kept_as_given(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "Val/a/3.jpg", "Val/b/4.jpg")
    touch(tmp_path, "test/a/5.jpg", "test/b/6.jpg", "train/beside.png")
    layout = scan(tmp_path)
    assert layout.entries[0] == Entry("Val/a/3.jpg", "a", "validation")
    assert {entry.split for entry in layout.entries} == {"train", "validation", "test"}
    assert layout.without_class == ["train/beside.png"]


def test_train_and_test_alone_are_split_folders_but_train_and_bus_are_classes(
    tmp_path: Path,
) -> None:
    touch(
        tmp_path, "one/train/a/1.jpg", "one/train/b/1.jpg", "one/test/a/1.jpg", "one/test/b/1.jpg"
    )
    touch(tmp_path, "two/train/1.jpg", "two/bus/1.jpg", "three/train/1.jpg", "three/test/1.jpg")
    assert {entry.label for entry in scan(tmp_path / "one").entries} == {"a", "b"}
    assert {entry.label for entry in scan(tmp_path / "two").entries} == {"train", "bus"}
    assert {entry.label for entry in scan(tmp_path / "three").entries} == {"train", "test"}
    for name in ("two", "three"):
        assert "may not be called like a split" in refused_name(tmp_path / name)


def test_labels_file(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "2.jpg", "unlisted.jpg")
    (tmp_path / "labels.csv").write_text(
        "\ufeffPath,label,split,group\n"
        "x/1.jpg,cat,Train,p1\n"
        '"2.jpg","dog, wild",,\n'
        "x\\3.jpg,cat,val,p1\n"
        "x/1.jpg,cat,train,p1\n"
    )
    assert scan(tmp_path).entries == [
        Entry("2.jpg", "dog, wild"),
        Entry("x/1.jpg", "cat", "train", "p1"),
        Entry("x/3.jpg", "cat", "validation", "p1"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label,split\na.jpg,cat,trian\n", "line 2 has 'trian'"),
        ("path,label,split\na.jpg,cat,trian\n", "empty or one of train, training, trainval, val"),
        ("path,class\na.jpg,cat\n", "begins with path, class"),
        ("path,label,gruop\na.jpg,cat,x\n", "begins with path, label, gruop"),
        ("path,label,label\na.jpg,cat,dog\n", "path, label, label: give each of them once"),
        ("path;label\na.jpg;cat\n", "begins with path;label: separate them with commas"),
        ("path\tlabel\na.jpg\tcat\n", "separate them with commas"),
        ("", "begins with nothing"),
        ("path,label\n", "has no rows"),
        ("path,label\na.jpg,cat,dog\n", "line 2 has another number"),
        ("path,label\na.jpg\n", "line 2 has another number"),
        ("path,label\na.jpg,\n", "must give every image a path and a label, but line 2 does not"),
        ("path,label\n\na.jpg,x\ty\n", "no control characters within its values, but line 3 has"),
        ('path,label\na.jpg,"x\ry"\n', "has 'x\\ry': take them out"),
        ('path,label\n"a\n.jpg",x\n', "has 'a\\n.jpg': take them out"),
        ("path,label,group\na.jpg,x,p\u20281\n", "has 'p\\u20281': take them out"),
        ("path,label\n../a.jpg,cat\n", "'../a.jpg'"),
        ("path,label\n/etc/passwd,cat\n", "'/etc/passwd'"),
        ("path,label\nC:\\a.jpg,cat\n", "'C:/a.jpg'"),
        ("path,label\na.jpg,cat\na.jpg,dog\n", "as 'dog' after 'cat'"),
        ("path,label\na.jpg,cat\nb.jpg,cat\n", "none of its 2 is there, such as 'a.jpg'"),
        ("path,label\nlabels.csv,cat\n", "there is only 'cat'"),
        ("path,label\na\0.jpg,cat\n", "'a\\x00.jpg'"),
        ("path,label\nimg//a.jpg,cat\nimg/./a.jpg,dog\n", "'img/a.jpg' again, as 'dog' after"),
        ("path,label,split\na.jpg,cat,val\na.jpg,cat,test\n", "'cat' in test after 'cat' in val"),
        ('path,label\n"a.jpg,cat\n', "cannot be read"),
    ],
)
def test_mistakes_in_labels_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    assert words in error(tmp_path)


def test_labels_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("path,label\na.jpg,Bär\n".encode("latin-1"))
    assert "must be comma-separated UTF-8 text" in error(tmp_path)


def test_a_path_in_other_words_is_one_image(tmp_path: Path) -> None:
    touch(tmp_path, "img/a.jpg", "b.jpg")
    labels(tmp_path, "img//a.jpg,cat", "img/./a.jpg,cat", "./img/a.jpg,cat", "b.jpg,dog")
    assert [entry.path for entry in scan(tmp_path).entries] == ["b.jpg", "img/a.jpg"]


FORMS = [unicodedata.normalize("NFC", "Çé"), unicodedata.normalize("NFD", "Çé")]


@pytest.mark.parametrize(("on_disk", "listed"), [FORMS, FORMS[::-1]])
def test_labels_in_another_unicode_form_than_the_files(
    tmp_path: Path, on_disk: str, listed: str
) -> None:
    touch(tmp_path, f"x/{on_disk}.jpg", "b.jpg")
    labels(tmp_path, "b.jpg,dog", f"x/{listed}.jpg,{listed}", f"x/{on_disk}.jpg,{FORMS[0]}")
    layout = scan(tmp_path)
    assert layout.entries == [Entry("b.jpg", "dog"), Entry(f"x/{on_disk}.jpg", FORMS[0])]
    assert layout.notes == []


@pytest.mark.parametrize("name", ["Labels.csv", "LABELS.CSV"])
def test_a_labels_file_in_another_letter_case(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "x/1.jpg", "y/2.jpg")
    labels(tmp_path, "x/1.jpg,cat", "y/2.jpg,dog", name=name)
    assert {entry.label for entry in scan(tmp_path).entries} == {"cat", "dog"}
    labels(tmp_path, "x/1.jpg,cat")
    if len(list(tmp_path.glob("*.[cC]*"))) == 2:
        assert f"has {name} and labels.csv: remove one" in error(tmp_path)


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (["1", "2"], "(the nearest name is 'train/1.jpg'; all are there with 'train/' before each "
                     "path and with '.jpg' after each path)"),
        (["train/1", "train/2"], "all are there with '.jpg' after each path"),
        (["train/1.png", "train/2.png"], "all are there with '.jpg' instead of '.png'"),
        (["1.jpg", "2.jpg"], "all are there with 'train/' before each path"),
        (["own/train/1.jpg", "own/train/2.jpg"], "all are there without 'own/' before each path"),
        (["Train/1.JPG", "train/2.jpG"], "all are there in another letter case"),
        (["train/1.jpeg"], "it is there with '.jpg' instead of '.jpeg'"),
        (["1.jpg", "3.jpg"], "such as '1.jpg' (the nearest name is 'train/1.jpg'): correct"),
        (["nowhere to be found"], "such as 'nowhere to be found': correct the paths"),
        (["x" * 300], "correct the paths"),
    ],
)  # fmt: skip
def test_paths_that_are_not_there_are_explained(
    tmp_path: Path, listed: list[str], words: str
) -> None:
    touch(tmp_path, "train/1.jpg", "train/2.jpg")
    labels(tmp_path, *(f"{path},{'ab'[i % 2]}" for i, path in enumerate(listed)))
    assert words in error(tmp_path)


def test_split_names_of_labels_files_are_those_of_folders_and_empty_lines_are_none(
    tmp_path: Path,
) -> None:
    touch(tmp_path, *(f"{i}.jpg" for i in range(4)))
    rows = (
        "0.jpg,a,test1\n1.jpg,b,Training_Set\n,,\n2.jpg,b,trainval\n3.jpg,a,Hold-out\n,,,\n , ,\n"
    )
    (tmp_path / "labels.csv").write_text("path,label,split\n" + rows)
    splits = [entry.split for entry in scan(tmp_path).entries]
    assert splits == ["test", "train", "train", "test"]


def test_a_few_that_are_not_there_and_some_not_listed_are_said(tmp_path: Path) -> None:
    touch(tmp_path, "img/1.jpg", "img/2.jpg", "img/3.jpg", "img/notes.txt")
    labels(tmp_path, "img/1.jpg,a", "img/2.jpg,b", "img/4.jpg,b")
    layout = scan(tmp_path)
    assert layout.left_out == ["img/3.jpg"]
    assert layout.notes == [
        "1 image is not in labels.csv, such as img/3.jpg: left out",
        "1 of the 3 images in labels.csv is not there, such as 'img/4.jpg' (the nearest name is "
        "'img/3.jpg')",
    ]


TEST_FOLDERS = ["test", "test1", "Test", "TESTING", "test_images", "Test Set"]


@pytest.mark.parametrize("test", TEST_FOLDERS)
@pytest.mark.parametrize("inner", ["", "images/", "deep/er/"])
def test_an_unlabelled_test_folder_is_left_out(tmp_path: Path, test: str, inner: str) -> None:
    touch(
        tmp_path, "train/a/1.jpg", "train/b/2.jpg", f"{test}/{inner}3.jpg", f"{test}/{inner}4.jpg"
    )
    layout = scan(tmp_path)
    assert layout.entries == [Entry("train/a/1.jpg", "a"), Entry("train/b/2.jpg", "b")]
    assert layout.left_out == [f"{test}/{inner}3.jpg", f"{test}/{inner}4.jpg"]
    path = {"Test Set": "'data/fetched/Test Set'"}.get(test, f"data/fetched/{test}")
    assert layout.notes == [
        f"{test}/ holds 2 images without class folders: left out; `headstart predict {path}` "
        "classifies them"
    ]
    check_class_names(layout, "data/own")
    (tmp_path / test / inner / "4.jpg").unlink()
    assert scan(tmp_path).notes[0].startswith(f"{test}/ holds 1 image without class folders")
    assert scan(tmp_path).notes[0].endswith("` classifies it")


def test_a_given_validation_stays_beside_an_unlabelled_test(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in "ab"))
    touch(tmp_path, "test/1.jpg", "evaluation/a/1.jpg")
    layout = scan(tmp_path)
    assert {entry.split for entry in layout.entries} == {"train", "validation"}
    assert layout.left_out == ["test/1.jpg"]


def test_folders_in_other_words_and_twice_nested_are_splits(tmp_path: Path) -> None:
    # As they are on Kaggle: Intel's scenes, cats and dogs, ImageNet-100.
    touch(
        tmp_path, *(f"1/seg_{s}/seg_{s}/{name}/1.jpg" for s in ("train", "test") for name in "ab")
    )
    touch(tmp_path, *(f"2/{s}_set/{s}_set/{n}/1.jpg" for s in ("training", "test") for n in "ab"))
    touch(
        tmp_path, "3/train.X1/a/1.jpg", "3/train.X2/b/1.jpg", "3/val.X/a/1.jpg", "3/val.X/b/1.jpg"
    )
    for name, second in (("1", "test"), ("2", "test"), ("3", "validation")):
        layout = scan(tmp_path / name)
        check_class_names(layout, name)
        assert {(entry.label, entry.split) for entry in layout.entries} == {
            (label, split) for label in "ab" for split in ("train", second)
        }


DECORATED = [
    ("train_jpg", "test_jpg"),
    ("train_resized", "val_resized"),
    ("train_small", "val_small"),
    ("training_set_small", "test_small"),
    ("small-train", "small-holdout"),
    ("imagesTrain", "imagesTest"),
    ("trainA", "testA"),
    ("JPGTrain", "JPGVal"),
    ("2019 train 64x64", "2020 valid 64x64"),
    ("train.X1", "val.X"),
    ("train_val_jpg", "test_jpg"),
    ("seg_train", "seg_test"),
    ("trainval", "holdout"),
    ("TrainVal", "Hold-Out"),
]


@pytest.mark.parametrize(("train", "other"), DECORATED)
@pytest.mark.parametrize("beside", [[], ["docs/readme.md"], ["samples/1.jpg"]])
def test_decorated_names_are_splits_whatever_is_beside(
    tmp_path: Path, train: str, other: str, beside: list[str]
) -> None:
    touch(tmp_path, *(f"{split}/{name}/1.jpg" for split in (train, other) for name in "ab"))
    touch(tmp_path, *beside)
    if beside == ["samples/1.jpg"]:
        assert "has samples: move them out" in error(tmp_path)
        return
    layout = scan(tmp_path)
    check_class_names(layout, "data/own")
    second = "validation" if "val" in other.lower() else "test"
    assert {(entry.label, entry.split) for entry in layout.entries} == {
        (label, split) for label in "ab" for split in ("train", second)
    }


@pytest.mark.parametrize("names", [*DECORATED, ("trainA", "trainB", "testA", "testB")])
@pytest.mark.parametrize("beside", [[], ["docs/readme.md"], ["samples/1.jpg"]])
def test_decorated_splits_without_classes_are_no_classes(
    tmp_path: Path, names: tuple[str, ...], beside: list[str]
) -> None:
    touch(tmp_path, *(f"{name}/1.jpg" for name in names), *beside)
    message = refused_name(tmp_path)
    assert all(repr(name) in message for name in names)
    assert "samples" not in message
    assert "docs" not in message


def test_decorated_folders_beside_splits_are_no_more_of_the_same(tmp_path: Path) -> None:
    names = ("train", "test", "train_masks", "test_masks")
    touch(tmp_path, *(f"{split}/{name}/1.jpg" for split in names for name in "ab"))
    assert "has test_masks and train_masks: move them out" in error(tmp_path)


def test_a_folder_beside_the_splits_is_named(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "test") for name in "ab"))
    touch(tmp_path, "annotations/a.xml")
    assert len(scan(tmp_path).entries) == 4
    touch(tmp_path, "samples/1.jpg")
    assert error(tmp_path) == (
        f"beside folders of splits (test and train) there may be no others with images, but "
        f"{tmp_path} has samples: move them out of {tmp_path}, or, if they are classes, into each "
        "split"
    )


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["val/1.jpg"], "/val has no class folders"),
        (["val/images/1.jpg"], "/val has images, no class of train"),
        (["test/a/1.jpg", "test/c/1.jpg"], "/test has c, no class of train"),
        (["test/c/1.jpg", "test/d/1.jpg"], "/test has c and d, no class of train"),
        (["train2/1.jpg"], "/train2 has no class folders"),
        (["val/a/1.jpg", "train/c/.hidden"], "/train/c is empty"),
    ],
)
def test_splits_without_the_classes_of_train(tmp_path: Path, paths: list[str], words: str) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", *paths)
    assert f"{tmp_path}{words}" in error(tmp_path)


def refused_files(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        check_class_files(scan(folder), "data/own")
    return str(caught.value)


def test_folders_of_annotations_are_no_classes(tmp_path: Path) -> None:
    splits = ("train", "valid")
    touch(tmp_path / "yolo", *(f"images/{s}/{i}.jpg" for s in splits for i in "12"))
    touch(tmp_path / "yolo", *(f"labels/{s}/{i}.txt" for s in splits for i in "12"))
    assert refused_files(tmp_path / "yolo") == (
        "every class must have images, but data/own has none of 'labels', only files such as "
        "labels/train/1.txt: move them out of data/own; if they describe the other images, sort "
        "those into class folders"
    )
    for split in splits:
        touch(tmp_path / "roboflow", f"{split}/images/1.jpg", f"{split}/labels/1.txt")
    assert "such as train/labels/1.txt" in refused_files(tmp_path / "roboflow")
    touch(tmp_path / "voc", "JPEGImages/1.jpg", "Annotations/1.xml")
    assert "none of 'Annotations'" in refused_files(tmp_path / "voc")


def test_classes_whose_files_may_be_images_are_left_to_ingest(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/1.txt", "b/2", "c/3.psd", "d/4.001", "e/5.qoi", "data:,f/6.jfif")
    check_class_files(scan(tmp_path), "data/own")
    touch(tmp_path / "other", "a/1.txt", "b/2.txt")
    check_class_files(scan(tmp_path / "other"), "data/own")


SPLIT_WORDS = ["train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"]
SPLIT_WORDS += ["trainval", "holdout"]


@pytest.mark.parametrize("word", SPLIT_WORDS)
def test_no_class_is_called_like_a_split(tmp_path: Path, word: str) -> None:
    for name in (word, word.upper(), word.title(), f"{word}1", f"{word}_set"):
        folder = tmp_path / f"folders {name}"
        touch(folder, "bus/1.jpg", "car/1.jpg", f"{name}/1.jpg")
        message = refused_name(folder)
        assert f"data/own has '{name}', such as {name}/1.jpg" in message
        assert "set data.class_names: as_given" in message
        touch(tmp_path / f"listed {name}", "1.jpg", "2.jpg")
        labels(tmp_path / f"listed {name}", "1.jpg,bus", f"2.jpg,{name}")
        assert f"data/own has '{name}'" in refused_name(tmp_path / f"listed {name}")
    touch(tmp_path / "nested", *(f"{s}/{n}/1.jpg" for s in ("train", "test") for n in ("a", word)))
    assert f"such as test/{word}/1.jpg" in refused_name(tmp_path / "nested")


@pytest.mark.parametrize(
    "paths",
    [
        ["test/a/1.jpg", "test/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg"],  # no train
        ["train/1.jpg", "valid/1.jpg", "test/1.jpg", "train/_classes.csv"],  # flat, with tables
        ["train2017/1.jpg", "val2017/1.jpg", "annotations/a.json"],  # COCO's
        ["a/1.jpg", "b/1.jpg", "test/1.jpg"],
        ["train/a/1.jpg", "train/b/1.jpg", "samples/1.jpg"],
    ],
)
def test_folders_of_splits_that_hold_no_classes_are_no_classes(
    tmp_path: Path, paths: list[str]
) -> None:
    touch(tmp_path, *paths)
    message = refused_name(tmp_path)
    assert "put class folders into train, validation and test, or write a labels.csv" in message


OTHERS = "retrain,contest,Valery,devil,trainer,trainers,validators,tests of x,valx,dev x"
OTHERS += ",test_tubes,development,dev_boards,evaluation_kits"


@pytest.mark.parametrize(
    "names",
    [
        *(["bus", name] for name in OTHERS.split(",")),
        OTHERS.split(","),
        ["toy train", "toy car", "toy plane"],
        ["steam_train", "steam_engine"],
        ["train station", "test tube", "toy train", "toy validator"],
        ["toyTrain", "train_toy", "testtoy"],
        ["toy train 1", "toy train 2"],
    ],
)
def test_other_names_are_classes(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *(f"{name}/1.jpg" for name in names))
    layout = scan(tmp_path)
    check_class_names(layout, "data/own")
    assert {entry.label for entry in layout.entries} == set(names)


def test_numbered_conditions_that_are_called_test_need_a_word(tmp_path: Path) -> None:
    touch(tmp_path, "Test 1/1.jpg", "Test 2/1.jpg")
    message = refused_name(tmp_path)
    assert "has 'Test 1', 'Test 2'" in message
    assert "set data.class_names: as_given" in message


def test_names_that_differ_in_letter_case_or_spaces_are_refused(tmp_path: Path) -> None:
    labels(tmp_path, "labels.csv,Cat", "1.jpg,cat")
    touch(tmp_path, "1.jpg")
    assert "has 'Cat' (labels.csv) and 'cat' (1.jpg): give each" in refused_name(tmp_path)
    for split, names in (("train", ("big dog", "Cat")), ("test", ("big  dog", "Cat"))):
        touch(tmp_path / "splits", *(f"{split}/{name}/1.jpg" for name in names))
    assert "'big  dog' (test/big  dog/1.jpg) and 'big dog' (tr" in refused_name(tmp_path / "splits")


def test_one_name_in_two_unicode_forms_is_one_class_and_said(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{i}.jpg" for i, name in enumerate(FORMS)), "b/1.jpg")
    layout = scan(tmp_path)
    assert [entry.label for entry in layout.entries if entry.label != "b"] == [FORMS[0]] * 2
    assert layout.notes == [
        "folders called 'Çé' in composed and in decomposed Unicode are one class"
    ]
    check_class_names(layout, "data/own")


def test_splits_inside_class_folders_are_said_not_to_be_splits(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{split}/1.jpg" for name in "ab" for split in ("train", "test")))
    assert scan(tmp_path).notes == [
        "a/test and a/train are not taken for splits: those stand outside the class folders, as "
        "in train/<class>"
    ]


@pytest.mark.parametrize(
    ("paths", "outer"),
    [
        (["archive/train/a/1.jpg", "archive/test/a/1.jpg", "README.md"], "archive"),
        (["set-1.0/inner/a/1.jpg", "set-1.0/inner/b/1.jpg"], "set-1.0/inner"),
        (["images/Labels.csv", "images/1.jpg"], "images"),
        (["train/a/1.jpg", "train/b/1.jpg"], "train"),
        (["cat/indoor/1.jpg", "cat/outdoor/1.jpg"], "cat"),
        (["cat/1.jpg"], ""),
        (["cat/indoor/1.jpg", "cat/2.jpg"], ""),
        (["archive/a/1.jpg", "archive/b/1.jpg", "1.jpg"], ""),
        (["archive/a/1.jpg", "labels.csv"], ""),
        (["a/1.jpg", "b/1.jpg"], ""),
        ([], ""),
    ],
)
def test_an_outer_folder_is_found(tmp_path: Path, paths: list[str], outer: str) -> None:
    touch(tmp_path, *paths)
    assert outer_folder(tmp_path) == outer


def test_an_outer_folder_that_links_to_itself(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path)
    assert outer_folder(tmp_path) in ("", "a")


def test_splits_for_some_images_only_are_passed_on(tmp_path: Path) -> None:
    paths = [f"{label:02d}/{i}.jpg" for label in range(100) for i in range(12)]
    touch(tmp_path, *paths)
    rows = [f"{path},{path[:2]},{'test' if path.endswith('/0.jpg') else ''}" for path in paths]
    (tmp_path / "labels.csv").write_text("path,label,split\n" + "\n".join(rows))
    layout = scan(tmp_path)
    assert len(layout.entries) == 1200
    assert Counter(entry.split for entry in layout.entries) == {"test": 100, None: 1100}


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    assert "no folders in" in error(tmp_path)
    touch(tmp_path, "cat/1.jpg")
    assert "there is only 'cat'" in error(tmp_path)
    (tmp_path / "dog").mkdir()
    assert f"every class folder must hold images, but {tmp_path}/dog is empty" in error(tmp_path)


def test_an_unreadable_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg")
    tmp_path.chmod(0o755)
    (tmp_path / "dog").chmod(0o000)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from headstart.sources.layout import scan\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "scan(Path(sys.argv[1]))\n"
    )
    for parent in list(tmp_path.parents)[:-2]:
        if parent.owner() == tmp_path.owner() and "pytest-" in str(parent):
            parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    (tmp_path / "dog").chmod(0o755)
    assert f"{tmp_path / 'dog'} is not: permission denied" in done.stderr
