"""Seed the source with one plausible fault at a time, and see that the tests named for it fail.

python tools/seeded_faults.py                     every fault; exit status 1 when one is not caught
python tools/seeded_faults.py --list              what there is, and what is wrong with the list
python tools/seeded_faults.py --only swapped-labels --only no-alpha -n 2

A fault is a small change of text, made in a scratch copy of the checkout. A fragment is looked for
in all of src/headstart and a test by its name in all of tests/, so that both may move; each must be
there exactly once. Before anything is seeded, the tests must pass in an unchanged copy.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_SOURCE = Path("src") / "headstart"
_TIMEOUT_S = 900
_ANOTHER_PACKAGE = 90
# pytest, unless the package that tests would import is the installed one and not the copy's.
_PYTEST = f"""
import importlib.util, pathlib, sys
origin = pathlib.Path(importlib.util.find_spec("headstart").origin).resolve()
if not origin.is_relative_to(pathlib.Path.cwd().resolve()):
    print(f"headstart would be imported from {{origin}}")
    sys.exit({_ANOTHER_PACKAGE})
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Fault:
    """One bug to seed.

    Attributes:
        breaks: what a user would meet.
        old, new: the fragment of the source that is replaced, and what comes in its place.
        tests: names of test functions; at least one of them must fail.
    """

    name: str
    breaks: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    Fault(
        "swapped-labels",
        "label ids count the classes from the last one",
        "ids = {name: index for index, name in enumerate(self.classes)}",
        "ids = {name: index for index, name in enumerate(reversed(self.classes))}",
        ("test_predictions_list_every_image_once_under_its_class",),
    ),
    Fault(
        "dropped-image",
        "an image that was accepted is not in the manifest",
        "for i in range(len(entries)) if i not in reading.rejected",
        "for i in range(1, len(entries)) if i not in reading.rejected",
        ("test_a_clean_folder",),
    ),
    Fault(
        "dropped-row",
        "each split lacks its first image",
        '(self._encoded["splits"] == split.encode()).astype(np.int64)',
        '(self._encoded["splits"] == split.encode())[1:].astype(np.int64)',
        ("test_a_split_holds_its_rows_in_the_manifests_order",),
    ),
    Fault(
        "rows-of-others",
        "rows from the cache come in its order, not in that of the images",
        "self._mapped[name][rows[chosen]]",
        "self._mapped[name][np.sort(rows[chosen])]",
        ("test_a_row_follows_its_image_to_another_name",),
    ),
    Fault(
        "leaked-near-copies",
        "near copies are in groups of their own, so that they straddle splits",
        "for rows in groups_of_equals(near_of):",
        "for rows in groups_of_equals(copy_of):",
        ("test_mirrored_copies_share_a_split_and_conflict_only_with_copies_as_they_are",),
    ),
    Fault(
        "leaked-user-groups",
        "the groups that the user gave straddle splits",
        "[e.group for e in entries]",
        "[None for e in entries]",
        ("test_groups_of_the_user_share_a_split",),
    ),
    Fault(
        "leaked-folds",
        "a group straddles folds",
        "return np.asarray(fold_of_group[group_of])",
        "return np.asarray(fold_of_group[np.arange(len(group_of)) % len(fold_of_group)])",
        ("test_no_group_straddles_two_folds",),
    ),
    Fault(
        "movers",
        "thresholds are chosen anew when images are added",
        "if own and keys[label] not in thresholds:",
        "if own:",
        ("test_a_class_keeps_the_thresholds_that_it_was_first_given",),
    ),
    Fault(
        "unchecked-shard",
        "a cached shard is read without a look at its checksum",
        "is_sound = self._shards[name].is_sound()",
        "is_sound = bool(self._shards[name])",
        ("test_a_shard_with_a_flipped_bit_is_set_aside",),
    ),
    Fault(
        "unchecked-weights-path",
        "a weights file of another hash than params.yaml says is taken",
        "if digest != sha256:",
        "if not digest:",
        ("test_a_path_with_another_hash",),
    ),
    Fault(
        "unchecked-weights-package",
        "a weights file of an installed package is taken whatever it holds",
        "found = sha256_of_file(path)\n    if found != sha256:",
        "found = sha256_of_file(path)\n    if not found:",
        ("test_the_installed_package_is_found_and_checked",),
    ),
    Fault(
        "unchecked-cached-model",
        "rows are computed by a model in the cache that is not what was written there",
        "name == path.name and sha256_of_file(path) == noted",
        "name == path.name and path.exists()",
        ("test_a_model_in_the_cache_that_was_changed_computes_no_row",),
    ),
    Fault(
        "recipe-without-resampling",
        "rows of one resampling are taken for those of another",
        '"resampling": image.resampling,',
        "",
        ("test_each_image_field_changes_it",),
    ),
    Fault(
        "rows-by-batch",
        "a prediction depends on what shares its batch",
        "rows = [model.predict_on_batch(pixels[i : i + 1]) for i in range(len(pixels))]",
        "rows = [model.predict_on_batch(pixels)]",
        ("test_only_one_batch_size_is_computed",),
    ),
    Fault(
        "exif-ignored",
        "photographs taken upright are seen lying",
        "_TRANSPOSE.get(orientation)",
        "_TRANSPOSE.get(1)",
        ("test_exif_orientation_is_applied",),
    ),
    Fault(
        "alpha-ignored",
        "what is transparent shows the colour behind it",
        "white.paste(rgb, mask=alpha)",
        "white.paste(rgb)",
        ("test_transparency_is_laid_over_white",),
    ),
    Fault(
        "bombs-accepted",
        "a file of a few bytes that claims hundreds of megapixels is decoded",
        "if width * height > max(_HARMLESS_PIXELS, most):",
        "if width * height > max(max_pixels, most):",
        ("test_flat_pictures_of_absurd_size_are_bombs",),
    ),
    Fault(
        "sizes-accepted",
        "images above ingest.max_pixels are decoded",
        "if width * height > max_pixels:",
        "if width > max_pixels:",
        ("test_sizes_are_refused_by_header",),
    ),
    Fault(
        "archive-escapes",
        "an archive writes beside the folder that it is unpacked into",
        'if ".." in parts:',
        'if parts == [".."]:',
        ("test_names_that_lead_out_are_refused",),
    ),
    Fault(
        "rejected-unlisted",
        "files beside the class folders vanish without a word",
        "for path in layout.without_class]",
        "for path in layout.without_class[:0]]",
        ("test_a_dirty_folder",),
    ),
    Fault(
        "manifest-unordered",
        "the manifest's rows are in another order each time",
        'table.sort_values("path", ignore_index=True)',
        "table.sample(frac=1, ignore_index=True)",
        ("test_the_same_folder_gives_the_same_bytes",),
    ),
    Fault(
        "typos-accepted",
        "an unknown parameter is ignored",
        'extra="forbid", frozen=True',
        'extra="ignore", frozen=True',
        ("test_the_first_stage_tells_of_a_later_section",),
    ),
    Fault(
        "written-in-place",
        "a file is written under its own name, and half of it is read after a kill",
        "temporary = Path(name)",
        "temporary = path",
        ("test_a_failed_save_leaves_the_old_file",),
    ),
    Fault(
        "same-first-weights",
        "every seed begins with the same weights",
        "np.random.default_rng([seed, layer, 2])",
        "np.random.default_rng([layer, 2])",
        ("test_each_seed_begins_with_weights_of_its_own",),
    ),
    Fault(
        "same-row-order",
        "every seed shuffles alike",
        "np.random.default_rng([seed, epoch, 1])",
        "np.random.default_rng([epoch, 1])",
        ("test_each_seed_and_each_epoch_has_an_order_of_rows_of_its_own",),
    ),
    Fault(
        "search-reads-test",
        "heads are chosen on the test split",
        'train, validation = store.indices("train"), store.indices("validation")',
        'train, validation = store.indices("train"), store.indices("test")',
        ("test_a_search_knows_nothing_of_the_test_split",),
    ),
    Fault(
        "train-reads-test",
        "heads are stopped and calibrated on the test split",
        'batch = store.split("train", "validation")\n    labels',
        'batch = store.split("train", "test")\n    labels',
        ("test_training_knows_nothing_of_the_test_split",),
    ),
    Fault(
        "doubled-trials",
        "a search that is started again repeats its trials",
        "if essence(head) not in tried][:room]",
        "][:room]",
        ("test_more_trials_go_on_and_the_same_number_adds_none",),
    ),
    Fault(
        "dead-trials-run-on",
        "trials of a killed worker stay running, and the search waits for them",
        "(worker and lock.may_live(worker))",
        "worker",
        ("test_no_trial_of_a_dead_worker_is_left_running",),
    ),
    Fault(
        "dead-trials-lost",
        "what a killed worker was at is not asked for again",
        "study.enqueue_trial(trial.params, {**kept, RETRY_OF: trial.number})",
        "study.set_user_attr(RETRY_OF, trial.number)",
        ("test_trials_of_dead_workers_are_failed_and_asked_again",),
    ),
    Fault(
        "temperature-left-out",
        "the saved model is as sure of itself as before its calibration",
        "keras.layers.Rescaling(1 / temperature,",
        "keras.layers.Rescaling(1.0,",
        ("test_every_kind_of_head_survives_its_file",),
    ),
    Fault(
        "answers-in-another-order",
        "served probabilities stand under the names of other classes",
        "zip(classes, values, strict=True)",
        "zip(classes, values[::-1], strict=True)",
        ("test_the_answer_has_a_column_a_class",),
    ),
    Fault(
        "bootstrap-of-images",
        "intervals count the images of a group as if each were drawn alone",
        "keys = np.unique(np.asarray(groups), return_inverse=True)[1]",
        "keys = np.arange(len(groups))",
        ("test_repeated_images_do_not_count_as_evidence_when_grouped",),
    ),
    Fault(
        "champion-by-chance",
        "a model that is merely not worse becomes champion",
        'elif validation.verdict == "better":',
        "elif validation.not_worse:",
        ("test_a_large_slow_model_with_the_same_errors_stays_challenger",),
    ),
    Fault(
        "dirty-called-clean",
        "a run of uncommitted code says that it is the commit's",
        "str(bool(git.diff)).lower()",
        "str(git.commit is None).lower()",
        ("test_a_run_of_uncommitted_code_says_so",),
    ),
    Fault(
        "secret-in-tag",
        "a password in the address of the source is a tag of the run",
        "return {key: without_secrets(value)[:_MAX_TAG] for key, value in tags.items()}",
        "return {key: value[:_MAX_TAG] for key, value in tags.items()}",
        ("test_no_tag_holds_the_password_of_the_source",),
    ),
    Fault(
        "database-of-the-worktree",
        "an experiment in a worktree logs to a database of its own",
        'return chosen or sqlite_uri(main_checkout(root) / "mlflow.db")',
        'return chosen or sqlite_uri(root / "mlflow.db")',
        ("test_a_worktree_uses_the_main_checkouts_database",),
    ),
    Fault(
        "second-run",
        "a training that `mlflow run` started opens a run beside its own",
        'run_id = os.environ.get("MLFLOW_RUN_ID")\n    if not',
        'run_id = os.environ.get("MLFLOW_RUN")\n    if not',
        ("test_an_open_run_is_resumed",),
    ),
    Fault(
        "second-model-on-sync",
        "a sync that is repeated logs the model once more",
        "if tags.get(_PACKAGE_SHA256_TAG) == ",
        "if tags.get(MODEL_TAG) == ",
        ("test_a_model_that_is_sent_twice_is_logged_once",),
    ),
)


def fragment_file(root: Path, fragment: str) -> Path:
    """Return the one source file that holds a fragment, once.

    Raises:
        LookupError: there is none, or more than one place.
    """
    places = [
        (path, count)
        for path in sorted((root / _SOURCE).rglob("*.py"))
        if (count := path.read_text(encoding="utf-8").count(fragment))
    ]
    if sum(count for _, count in places) == 1:
        return places[0][0]
    listed = ", ".join(f"{path.relative_to(root)} ({count} times)" for path, count in places)
    raise LookupError(
        f"the fragment {fragment!r} must be in {_SOURCE.as_posix()} exactly once, but is in "
        f"{listed or 'no file'}: correct it in tools/seeded_faults.py"
    )


def node_id(root: Path, test: str) -> str:
    """Return pytest's id of the one test function of that name.

    Raises:
        LookupError: there is none, or more than one.
    """
    definition = re.compile(rf"^def {re.escape(test)}\(", re.MULTILINE)
    found = [
        path.relative_to(root).as_posix()
        for path in sorted((root / "tests").rglob("test_*.py"))
        for _ in definition.finditer(path.read_text(encoding="utf-8"))
    ]
    if len(found) == 1:
        return f"{found[0]}::{test}"
    raise LookupError(
        f"the test {test} must be in tests exactly once, but is in {', '.join(found) or 'no file'}"
        ": correct it in tools/seeded_faults.py"
    )


def mistakes_in_list(root: Path, faults: Sequence[Fault]) -> list[str]:
    """Say of every fault whose fragment or tests are not there exactly once what is wrong."""
    mistakes = []
    for fault in faults:
        try:
            fragment_file(root, fault.old)
            for test in fault.tests:
                node_id(root, test)
        except LookupError as error:
            mistakes.append(f"{fault.name}: {error}")
    return mistakes


@dataclass(frozen=True)
class Outcome:
    """What pytest said: its exit status, the tests that failed, and the seconds it took."""

    status: int
    failed: tuple[str, ...]
    seconds: float
    output: str


def copy_checkout(root: Path, copy: Path) -> None:
    """Copy what git tracks, and what it does not know and does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    listed = subprocess.run([*command, "--exclude-standard"], check=True, capture_output=True)
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)


def run_tests(copy: Path, tests: Sequence[str], *options: str) -> Outcome:
    """Run tests in a copy of the checkout, on the package that lies in it."""
    environment = os.environ | {"PYTHONPATH": str(copy / "src")}
    environment.setdefault("HEADSTART_TEST_ASSETS", str(ROOT.parent / "shared" / "assets"))
    command = [sys.executable, "-c", _PYTEST, *tests, "-rfE", "--tb=short", *options]
    command += [
        "--timeout",
        "300",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(copy.with_name(f"{copy.name}.tmp")),
    ]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        status, output = -1, f"no end after {_TIMEOUT_S} s"
    failed = re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", output, re.MULTILINE)
    return Outcome(status, tuple(dict.fromkeys(failed)), time.monotonic() - started, output)


def seed(root: Path, fault: Fault, folder: Path) -> Outcome:
    """Run the fault's tests in a copy of the checkout that has the fault."""
    copy = folder / fault.name
    copy_checkout(root, copy)
    path = fragment_file(copy, fault.old)
    path.write_text(path.read_text(encoding="utf-8").replace(fault.old, fault.new), "utf-8")
    outcome = run_tests(copy, [node_id(copy, test) for test in fault.tests], "-x")
    shutil.rmtree(copy)
    return outcome


def _row(fault: Fault, outcome: Outcome) -> tuple[bool, str]:
    """Whether a fault was caught, and its line of the table."""
    if outcome.status == 1 and outcome.failed:
        return True, f"{fault.name:<28}{', '.join(outcome.failed):<82}{outcome.seconds:>6.1f}"
    what = {0: "NOT CAUGHT", _ANOTHER_PACKAGE: "NOT SEEN", -1: "NO END"}
    said = what.get(outcome.status, f"PYTEST ENDED WITH {outcome.status}")
    return False, f"{fault.name:<28}{said + ' by ' + ', '.join(fault.tests):<82}" + (
        f"{outcome.seconds:>6.1f}\n    it breaks: {fault.breaks}\n    "
        + "\n    ".join(outcome.output.splitlines()[-8:])
    )


def _passes_unchanged(root: Path, faults: Sequence[Fault], folder: Path, jobs: int) -> bool:
    copy = folder / "unchanged"
    copy_checkout(root, copy)
    tests = sorted({node_id(root, test) for fault in faults for test in fault.tests})
    print(f"{len(tests)} tests in an unchanged copy …", flush=True)
    spread = ("-n", str(jobs), "--dist", "loadfile") if jobs > 1 and len(tests) > 1 else ()
    outcome = run_tests(copy, tests, *spread)
    if outcome.status != 0:
        print(f"{outcome.output}\nwithout any fault these tests must pass", file=sys.stderr)
        return False
    print(f"they pass ({outcome.seconds:.0f} s)", flush=True)
    return True


def main() -> int:
    """Seed the chosen faults, and print what caught each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true", help="name the faults, and seed none")
    parser.add_argument("--only", action="append", metavar="NAME", help="seed this one; repeatable")
    parser.add_argument("-n", type=int, default=2, metavar="JOBS", help="copies at a time")
    arguments = parser.parse_args()
    unknown = sorted({*(arguments.only or ())} - {fault.name for fault in FAULTS})
    if unknown:
        parser.error(f"no fault is called {', '.join(unknown)}: see --list")
    faults = [f for f in FAULTS if arguments.only is None or f.name in arguments.only]
    if arguments.list:
        for fault in faults:
            print(f"{fault.name:<28}{fault.breaks}\n{'':<28}{', '.join(fault.tests)}")
    if mistakes := mistakes_in_list(ROOT, faults):
        print("\n".join(mistakes), file=sys.stderr)
        return 1
    if arguments.list:
        return 0
    uncaught = []
    with tempfile.TemporaryDirectory(prefix="seeded-faults-") as name:
        folder = Path(name)
        if not _passes_unchanged(ROOT, faults, folder, arguments.n):
            return 1
        print(f"{'fault':<28}{'caught by':<82}{'s':>6}", flush=True)
        with ThreadPoolExecutor(arguments.n) as pool:
            seeded = pool.map(lambda fault: seed(ROOT, fault, folder), faults)
            for fault, outcome in zip(faults, seeded, strict=True):
                is_caught, row = _row(fault, outcome)
                print(row, flush=True)
                if not is_caught:
                    uncaught.append(fault.name)
    print(f"{len(faults) - len(uncaught)} of {len(faults)} faults were caught")
    return 1 if uncaught else 0


if __name__ == "__main__":
    sys.exit(main())
