"""The page of `headstart compare --html`."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from headstart.evaluation.comparison import compare_models
from headstart.reports.compare_report import comparison_page
from headstart.tracking.compare_runs import ChangedPrediction, DataChange, RunComparison, RunPair


def _changed(path: str, sha256: str) -> ChangedPrediction:
    return ChangedPrediction(path, sha256, "cat <b>", "test", "cat <b>", "dog")


def test_the_page_says_what_differs_and_shows_what_changed_sides(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name in ("same.png", "replaced.png"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / "cat" / name)
    sha256 = hashlib.sha256((tmp_path / "cat" / "same.png").read_bytes()).hexdigest()
    right = np.tile([0.9, 0.1], (30, 1))
    test = compare_models(right[:, ::-1], right, np.zeros(30, np.int64), seed=0)
    comparison = RunComparison(
        run_ids=["a" * 32, "b" * 32, "c" * 32],
        names=["first", "second", "third"],
        params={"head.width": ["64", "128", ""]},
        versions={"git.commit": ["c0", "c1", "c1"]},
        metrics={"test_accuracy": [0.5, 0.75, None]},
        pairs=[
            RunPair(
                "b" * 32,
                test,
                DataChange(["cat/new.png"], [], [], []),
                [
                    _changed("cat/same.png", sha256),
                    _changed("cat/replaced.png", "0" * 64),
                    _changed("cat/gone.png", "0" * 64),
                ],
            ),
            RunPair("c" * 32, None, None, []),
        ],
    )
    page = comparison_page(comparison, tmp_path)
    assert "Comparison of 3 runs" in page
    for text in ("first", "third", "0.5000", "0.7500", "head.width", "128", "git.commit", "c1"):
        assert text in page
    assert "Candidate 1 against the baseline" in page
    assert "the challenger is better" in page
    assert "1 images were added" in page
    assert "3 images are predicted differently." in page
    assert "They share too few test images. One of them recorded no manifest." in page
    # only the file that still has the content that was predicted is shown
    assert page.count("data:image/jpeg;base64,") == 1
    assert "cat &lt;b&gt;" in page
    assert "cat <b>" not in page
    assert comparison_page(comparison, tmp_path) == page


def test_of_many_changes_the_first_are_shown(tmp_path: Path) -> None:
    changed = [_changed(f"cat/{number}.png", "0" * 64) for number in range(70)]
    pair = RunPair("b" * 32, None, None, changed)
    comparison = RunComparison(["a" * 32, "b" * 32], ["", ""], {}, {}, {}, [pair])
    page = comparison_page(comparison, tmp_path)
    assert "70 images are predicted differently; the first 60 are shown." in page
    assert page.count("<figcaption>") == 60
