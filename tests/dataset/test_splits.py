"""Splits always work: exact quotas in every class, whole groups, and nobody moves."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from headstart.common.errors import DataError
from headstart.dataset.manifest import Manifest
from headstart.dataset.splits import (
    COLUMNS,
    Key,
    SplitAssignment,
    Thresholds,
    assign_splits,
    find_moves,
    former_splits_file,
    read_thresholds,
    remember_splits,
    uniform_hash,
    write_moves,
    write_thresholds,
)
from headstart.params.split import SPLITS, Split, SplitParams
from tests.dataset.test_manifest import manifest_of

DEFAULT = SplitParams()
SHARES = (0.7, 0.15, 0.15)
Image = tuple[str, str]  # group, label


def assign(
    images: Sequence[Image],
    known: Mapping[Key, Thresholds] | None = None,
    given_splits: Sequence[Split | None] | None = None,
    *,
    seed: int = 0,
    fractions: SplitParams = DEFAULT,
) -> SplitAssignment:
    return assign_splits(
        [group for group, _ in images],
        [label for _, label in images],
        given_splits or [None] * len(images),
        seed=seed,
        fractions=fractions,
        known=known or {},
    )


def images_of(sizes: Mapping[str, int], start: int = 0) -> list[Image]:
    """As many images as said of each class, each a group of its own."""
    return [(f"{label}{i}", label) for label, n in sizes.items() for i in range(start, start + n)]


def count(images: Sequence[Image], assigned: SplitAssignment) -> dict[str, list[int]]:
    found = Counter(zip((label for _, label in images), assigned.splits, strict=True))
    return {label: [found[label, s] for s in SPLITS] for label in sorted({x for _, x in images})}


fractions_of_all = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)).map(
    lambda parts: SplitParams(
        train=parts[0] / sum(parts),
        validation=parts[1] / sum(parts),
        test=1 - parts[0] / sum(parts) - parts[1] / sum(parts),
    )
)
class_sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(2, 60), min_size=1)


@settings(max_examples=30, deadline=None)
@given(class_sizes, fractions_of_all, st.integers(0, 2**32 - 1))
def test_every_class_has_its_quota_to_within_one_image(
    sizes: dict[str, int], fractions: SplitParams, seed: int
) -> None:
    images = images_of(sizes)
    for label, counts in count(images, assign(images, seed=seed, fractions=fractions)).items():
        n = sizes[label]
        assert sum(counts) == n
        assert n < len(SPLITS) or min(counts) >= 1
        assert counts[0] >= 1
        assert counts[2] >= 1
        shares = (fractions.train, fractions.validation, fractions.test)
        if min(shares) * n >= 1:  # else a quota below one is raised to one
            for got, share in zip(counts, shares, strict=True):
                assert abs(got - share * n) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({f"c{i:02d}": 40 for i in range(16)}, [28, 6, 6]),
        ({f"c{i:02d}": 80 for i in range(17)}, [56, 12, 12]),
        ({f"c{i:03d}": 30 for i in range(100)}, [21, 4, 5]),
        ({f"c{i:03d}": 12 for i in range(100)}, [8, 2, 2]),
        ({"a": 5, "b": 5, "c": 5}, [3, 1, 1]),
        ({"a": 2, "b": 2}, [1, 0, 1]),
    ],
)
def test_data_sets_that_a_hash_alone_would_refuse(
    sizes: dict[str, int], expected: list[int]
) -> None:
    images = images_of(sizes)
    assert set(map(tuple, count(images, assign(images)).values())) == {tuple(expected)}


def test_one_class_five_hundred_times_another() -> None:
    images = images_of({"few": 4, "many": 2000})
    assert count(images, assign(images)) == {"few": [2, 1, 1], "many": [1400, 300, 300]}


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(2, 20), min_size=2),
    st.floats(0.05, 0.5),
)
def test_what_scikit_learn_can_stratify_is_never_refused(
    sizes: dict[str, int], test_size: float
) -> None:
    images = images_of(sizes)
    labels = [label for _, label in images]
    try:
        train_test_split(labels, test_size=test_size, stratify=labels, random_state=0)
    except ValueError:
        return
    assert all(counts[0] and counts[2] for counts in count(images, assign(images)).values())


newcomers = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 40)), min_size=1, max_size=4
)


@settings(max_examples=25, deadline=None)
@given(newcomers, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_nobody_moves_when_images_are_added_in_any_number_of_steps(
    steps: list[dict[str, int]], seed: int, shuffle: object
) -> None:
    images: list[Image] = []
    thresholds: dict[Key, Thresholds] = {}
    split_of: dict[Image, Split] = {}
    for number, step in enumerate(steps):
        images += images_of(step, start=100 * number)
        shuffle.shuffle(images)  # type: ignore[attr-defined]
        assigned = assign(images, thresholds, seed=seed)
        thresholds = assigned.thresholds
        now = dict(zip(images, assigned.splits, strict=True))
        assert now == now | split_of
        split_of = now


@pytest.mark.parametrize("first", [2, 5, 12, 40])
def test_a_class_that_grows_to_a_thousand_tends_to_the_fractions(first: int) -> None:
    sizes = {f"c{i}": first for i in range(6)}
    small = images_of(sizes)
    seen = assign(small)
    grown = images_of(dict.fromkeys(sizes, 1000))
    later = assign(grown, seen.thresholds)
    assert later.thresholds == seen.thresholds
    before = dict(zip(small, seen.splits, strict=True))
    after = dict(zip(grown, later.splits, strict=True))
    assert all(after[image] == split for image, split in before.items())
    for counts in count(grown, later).values():
        for got, share in zip(counts, SHARES, strict=True):
            assert abs(got / 1000 - share) < 0.15


def test_the_first_images_of_a_new_class_move_no_other() -> None:
    old = images_of({"a": 30, "b": 30})
    seen = assign(old)
    grown = assign([*old, *images_of({"c": 9})], seen.thresholds)
    assert grown.splits[:60] == seen.splits
    assert Counter(grown.splits[60:]) == {"train": 6, "validation": 2, "test": 1}


groups_and_labels = st.lists(
    st.tuples(st.sampled_from([f"g{i}" for i in range(12)]), st.sampled_from("abc")), max_size=60
)


@settings(max_examples=30, deadline=None)
@given(groups_and_labels, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_groups_are_whole_whatever_they_hold_and_in_any_order(
    images: list[Image], seed: int, shuffle: object
) -> None:
    assigned = assign(images, seed=seed)
    of_group: dict[str, set[str]] = defaultdict(set)
    for (group, _), split in zip(images, assigned.splits, strict=True):
        of_group[group].add(split)
    assert all(len(splits) == 1 for splits in of_group.values())
    mixed = list(images)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    again = assign(mixed, seed=seed)
    assert again.thresholds == assigned.thresholds
    assert dict(zip(mixed, again.splits, strict=True)) == dict(
        zip(images, assigned.splits, strict=True)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=4, max_size=40), st.integers(0, 2**32 - 1))
def test_groups_of_any_size_are_within_the_largest_of_the_quota(
    sizes: list[int], seed: int
) -> None:
    images = [(f"g{i}", "a") for i, n in enumerate(sizes) for _ in range(n)]
    (counts,) = count(images, assign(images, seed=seed)).values()
    assert min(counts) >= 1
    for got, share in zip(counts, SHARES, strict=True):
        assert abs(got - share * len(images)) <= max(sizes)


def test_a_group_as_large_as_its_class_trains_it() -> None:
    images = [("large", "a")] * 30 + [("g1", "a"), ("g2", "a")] + images_of({"b": 20})
    assert count(images, assign(images))["a"] == [30, 1, 1]


def test_groups_with_every_class_are_as_near_to_the_quotas_as_they_allow() -> None:
    images = [
        (f"patient {p}", label) for p in range(30) for label in "xyz" for _ in range(1 + p % 4)
    ]
    for counts in count(images, assign(images)).values():
        for got, share in zip(counts, SHARES, strict=True):
            assert abs(got - share * 74) <= 4  # one patient's images


def test_classes_make_up_for_groups_that_span_them() -> None:
    """A group of several classes goes as a whole; the classes' own images fill the quotas."""
    spanning = [("both", label) for label in "ab" for _ in range(10)]
    images = spanning + images_of({"a": 30, "b": 30})
    assert set(map(tuple, count(images, assign(images)).values())) == {(28, 6, 6)}


def test_every_class_is_in_every_split_however_groups_span_classes() -> None:
    pairs = [
        (f"pair {p} group {g}", f"class {2 * p + k}")
        for p in range(20)
        for g in range(4)
        for k in range(2)
        for _ in range(3)
    ]
    assert set(map(tuple, count(pairs, assign(pairs)).values())) == {(6, 3, 3)}
    # Camera traps: most sites see the common species, few the rare ones.
    sites = [
        (f"site {site}", f"species {species:02d}")
        for site in range(200)
        for species in range(50)
        for _ in range((site * 7919 + species * 104729) % 97 * 3 // (30 * (species + 1)))
    ]
    groups_of: dict[str, set[str]] = defaultdict(set)
    for site, species_name in sites:
        groups_of[species_name].add(site)
    for label, counts in count(sites, assign(sites)).items():
        assert min(counts) >= 1 or len(groups_of[label]) < 3, label


def test_a_group_that_gains_images_of_another_class_stays() -> None:
    images = [("both", "a"), ("both", "b"), *images_of({"a": 200, "b": 201})]
    seen = assign(images)
    grown = [*images, *((f"a{i}", "b") for i in range(200)), *((f"b{i}", "c") for i in range(99))]
    assert assign(grown, seen.thresholds).splits[: len(images)] == seen.splits


def test_seeds_and_fractions_give_splits_of_their_own() -> None:
    images = images_of({"a": 500})
    same = sum(
        one == other
        for one, other in zip(assign(images).splits, assign(images, seed=1).splits, strict=True)
    )
    assert abs(same / 500 - (0.7**2 + 2 * 0.15**2)) < 0.1
    halves = SplitParams(train=0.5, validation=0.25, test=0.25)
    both = assign(images, assign(images).thresholds, fractions=halves)
    assert count(images, both) == {"a": [250, 125, 125]}
    assert len(both.thresholds) == 2


def test_the_hash_of_a_group_is_pinned() -> None:
    # A change here moves every image of every user to another split.
    assert uniform_hash("group", seed=7) == 0.21874828723604978
    assert uniform_hash("group", seed=7, draw=3) == 0.840544702052739
    (found,) = assign(images_of({"a": 40})).thresholds.values()
    assert found == Thresholds(0, 0.7193382722995771, 0.8690298282486815)


def test_given_splits_are_kept_and_what_is_missing_is_taken_from_train() -> None:
    images = images_of({"a": 200, "b": 200})
    given_splits: list[Split | None] = ["train" if i % 4 else "test" for i in range(400)]
    assigned = assign(images, given_splits=given_splits)
    assert [s for s, g in zip(assigned.splits, given_splits, strict=True) if g == "test"] == [
        "test"
    ] * 100
    assert count(images, assigned) == {"a": [127, 23, 50], "b": [127, 23, 50]}


def test_an_image_without_a_split_does_not_give_back_what_was_taken_from_train() -> None:
    images = images_of({"a": 200, "b": 200})
    given_splits: list[Split | None] = ["train" if i % 4 else "test" for i in range(400)]
    before = assign(images, given_splits=given_splits)
    after = assign([*images, ("a999", "a")], before.thresholds, [*given_splits, None])
    assert after.splits[:400] == before.splits


def test_the_rest_is_split_so_that_the_class_as_a_whole_has_its_fractions() -> None:
    images = images_of({"a": 100})
    given_splits: list[Split | None] = ["test" if i < 15 else None for i in range(100)]
    assert count(images, assign(images, given_splits=given_splits)) == {"a": [70, 15, 15]}
    given_splits = ["train" if i < 40 else None for i in range(100)]
    assigned = assign(images, given_splits=given_splits)
    assert assigned.splits[:40] == ["train"] * 40
    assert count(images, assigned) == {"a": [70, 15, 15]}


def test_an_image_without_a_split_follows_its_group() -> None:
    images = [(group, "a") for group in "aabccd"]
    given_splits: list[Split | None] = ["test", None, None, "train", "test", "validation"]
    splits = assign(images, given_splits=given_splits).splits  # all three are given
    assert splits[:2] == ["test", "test"]
    assert splits[3:5] == ["train", "test"]  # as given, though it leaks


def test_nothing_at_all() -> None:
    assert assign([]) == SplitAssignment([], {})


labels = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.builds(
            Key,
            st.integers(0, 2**32 - 1),
            st.just(0.7),
            st.floats(0, 0.3),
            st.just(0.0),
            labels,
            st.lists(st.text("0123456789abcdef", min_size=8, max_size=8), max_size=3).map(tuple),
        ).map(lambda key: key._replace(test=1 - key.train - key.validation)),
        st.builds(Thresholds, st.integers(0, 255), st.floats(0, 0.5), st.floats(0.5, 1)),
        max_size=5,
    )
)
def test_the_file_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, thresholds: dict[Key, Thresholds]
) -> None:
    path = tmp_path_factory.mktemp("splits") / "splits.csv"
    write_thresholds(path, thresholds)
    assert read_thresholds(path) == thresholds
    assert list(read_thresholds(path)) == list(thresholds)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["seed,class"], "line 1 cannot be read (its columns must be seed,train"),
        ([",".join(COLUMNS), "0,0.7,0.15,0.15,a,,0,x,1"], "line 2 cannot be read (could not conv"),
        ([",".join(COLUMNS), "0,0.7,0.15,0.15,a,,0,0.9,0.8"], "in [0, 1], in order"),
        ([",".join(COLUMNS), "<<<<<<< HEAD"], "line 2 cannot be read (it must have 9 values)"),
        ([",".join(COLUMNS), "0,0.7,0.15,0.15,a,,0,.8,.9,1"], "line 2 cannot be read (it must"),
        ([",".join(COLUMNS), "0,nan,0.15,0.15,a,,0,.8,.9"], "must sum to 1"),
        (
            [",".join(COLUMNS), "0,0.7,0.15,0.15,a,,0,.7,.8", "0,0.7,0.15,0.15,a,,1,.7,.8"],
            "class 'a' is there twice; keep the first line",
        ),
    ],
)
def test_a_damaged_file_is_an_error_with_its_line(
    tmp_path: Path, lines: list[str], words: str
) -> None:
    path = tmp_path / "splits.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        read_thresholds(path)
    assert words in str(caught.value)
    assert "restore the file with `git checkout`" in str(caught.value)


def test_a_file_of_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(
        "seed,train,validation,test,class,draw,validation_from,test_from\n"
        "0,0.7,0.15,0.15,a,3,0.5,0.75\n"
    )
    known = read_thresholds(path)
    assert known == {Key(0, 0.7, 0.15, 0.15, "a"): Thresholds(3, 0.5, 0.75)}
    # Such a line holds for whatever the class has, as it did.
    assigned = assign(images_of({"a": 40}), known)
    assert assigned.thresholds == known
    write_thresholds(path, known)
    assert read_thresholds(path) == known


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 150), st.integers(1, 60), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_a_class_of_another_data_set_has_thresholds_of_its_own(
    n_first: int, n_second: int, n_added: int, seed: int
) -> None:
    """The demo has cats, and so may the user: neither is split by what suits the other."""
    theirs = images_of({"cat": n_first, "bear": 30})
    mine = [(f"mine-{group}", label) for group, label in images_of({"cat": n_second, "dog": 9})]
    first = assign(theirs, seed=seed)
    second = assign(mine, first.thresholds, seed=seed)
    assert second.splits == assign(mine, seed=seed).splits
    # Back at the first ones, and with images added to either: nobody moves.
    again = assign(theirs, second.thresholds, seed=seed)
    assert (again.splits, again.thresholds) == (first.splits, second.thresholds)
    added = [(f"new-{group}", label) for group, label in images_of({"cat": n_added})]
    for images, before in ((theirs, first.splits), (mine, second.splits)):
        grown = assign([*images, *added], second.thresholds, seed=seed)
        assert grown.splits[: len(images)] == before
        assert grown.thresholds == second.thresholds


def test_a_class_is_known_again_by_any_of_its_first_groups() -> None:
    images = images_of({"cat": 100, "dog": 100})
    first = assign(images)
    kept = [image for image in images if int(image[0][3:]) % 3 == 0]
    again = assign(kept, first.thresholds)
    assert again.thresholds == first.thresholds
    assert again.splits == [
        split for image, split in zip(images, first.splits, strict=True) if image in kept
    ]


def test_a_file_that_is_not_there_knows_of_no_class(tmp_path: Path) -> None:
    assert read_thresholds(tmp_path / "splits.csv") == {}


def two(first: str, second: str) -> Manifest:
    return manifest_of([("a", "g", first), ("b", "h", second)])


def test_moves_are_those_since_the_last_ingest(tmp_path: Path) -> None:
    former = tmp_path / "former.csv"
    assert find_moves(two("train", "test"), former) == []
    remember_splits(two("train", "test"), former)
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
    former = tmp_path / "former.csv"
    remember_splits(two("train", "test"), former)
    remember_splits(manifest_of([("a", "g", "train")]), former)  # without the second image
    (move,) = find_moves(two("train", "train"), former)
    assert (move.path, move.before, move.now) == ("b/h/1", "test", "train")


def test_each_seed_and_each_set_of_fractions_has_its_own_record(tmp_path: Path) -> None:
    other = SplitParams(train=0.6, validation=0.2, test=0.2)
    files = {
        former_splits_file(tmp_path, seed=0, fractions=SplitParams()),
        former_splits_file(tmp_path, seed=1, fractions=SplitParams()),
        former_splits_file(tmp_path, seed=0, fractions=other),
    }
    assert len(files) == 3


def test_a_damaged_record_is_written_anew(tmp_path: Path) -> None:
    former = tmp_path / "former.csv"
    former.write_bytes(b"\xff\xfe no csv")
    assert find_moves(two("train", "test"), former) == []
