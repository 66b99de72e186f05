"""Images that an ingest moves to another split are listed."""

from pathlib import Path

from headstart.dataset.manifest import Manifest
from headstart.dataset.moves import find_moves, placements_file, remember_placements, write_moves
from headstart.params.split import SplitParams
from tests.dataset.test_manifest import manifest_of


def two(first: str, second: str) -> Manifest:
    return manifest_of([("a", "g", first), ("b", "h", second)])


def test_moves_are_those_since_the_last_ingest(tmp_path: Path) -> None:
    former = tmp_path / "placements.csv"
    assert find_moves(two("train", "test"), former) == []
    remember_placements(two("train", "test"), former)
    assert find_moves(two("train", "test"), former) == []
    (move,) = find_moves(two("train", "train"), former)
    assert (move.path, move.label, move.before, move.now) == ("b/h/1", "b", "test", "train")
    write_moves(tmp_path / "moves.csv", [move])
    lines = (tmp_path / "moves.csv").read_text().splitlines()
    assert lines == [
        "path,label,sha256,before,now,group",
        f"b/h/1,b,{1:064x},test,train,h",
    ]


def test_images_of_another_source_do_not_displace_the_first_ones(tmp_path: Path) -> None:
    former = tmp_path / "placements.csv"
    remember_placements(two("train", "test"), former)
    remember_placements(manifest_of([("a", "g", "train")]), former)  # without the second image
    (move,) = find_moves(two("train", "train"), former)
    assert (move.path, move.before, move.now) == ("b/h/1", "test", "train")


def test_each_seed_and_each_set_of_fractions_has_its_own_record(tmp_path: Path) -> None:
    other = SplitParams(train=0.6, validation=0.2, test=0.2)
    files = {
        placements_file(tmp_path, seed=0, fractions=SplitParams()),
        placements_file(tmp_path, seed=1, fractions=SplitParams()),
        placements_file(tmp_path, seed=0, fractions=other),
    }
    assert len(files) == 3


def test_a_damaged_record_is_written_anew(tmp_path: Path) -> None:
    former = tmp_path / "placements.csv"
    former.write_bytes(b"\xff\xfe no csv")
    assert find_moves(two("train", "test"), former) == []
