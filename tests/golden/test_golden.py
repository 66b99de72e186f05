"""The golden values hold, whatever is rebuilt below them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.pictures import CLASSES, PER_CLASS
from tests.golden.record import GOLDEN
from tests.golden.results import (
    golden_results,
    golden_server,
    probabilities,
    run_golden_project,
    versions,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADSTART_CACHE", str(root / "cache"))
        run_golden_project(root)
    return root


@pytest.fixture(scope="module")
def results(project: Path) -> dict[str, Any]:
    return golden_results(project)


@pytest.mark.parametrize("column", ["label", "split", "group"])
def test_labels_splits_and_groups(
    golden: dict[str, Any], results: dict[str, Any], column: str
) -> None:
    found = {path: row[column] for path, row in results["rows"].items()}
    assert len(found) == len(CLASSES) * PER_CLASS
    assert found == {path: row[column] for path, row in golden["rows"].items()}


def test_input_pixels(golden: dict[str, Any], results: dict[str, Any]) -> None:
    same_libraries = versions() == golden["made_with"]
    for path, row in golden["rows"].items():
        found = results["rows"][path]
        # Other versions of Pillow and libjpeg may round otherwise, but no more than that.
        assert found["pixels_mean"] == pytest.approx(row["pixels_mean"], abs=0.5), path
        if same_libraries:
            assert found["pixels_sha256"] == row["pixels_sha256"], path


def test_features(golden: dict[str, Any], results: dict[str, Any]) -> None:
    """To float32's precision: kinds of processor differ in the last bits of sums."""
    for name in ("features", "other_blocks"):
        expected = np.array([row[name] for row in golden["rows"].values()])
        found = np.array([results["rows"][path][name] for path in golden["rows"]])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3, err_msg=name)


def test_out_of_fold_logits(golden: dict[str, Any], results: dict[str, Any]) -> None:
    assert set(results["out_of_fold_logits"]) == set(golden["out_of_fold_logits"])
    for head, rows in golden["out_of_fold_logits"].items():
        assert set(results["out_of_fold_logits"][head]) == set(rows)
        found = np.array([results["out_of_fold_logits"][head][path] for path in rows])
        np.testing.assert_allclose(found, list(rows.values()), rtol=0, atol=5e-3, err_msg=head)


def test_probabilities_of_the_test_split(golden: dict[str, Any], results: dict[str, Any]) -> None:
    assert set(results["probabilities"]) == set(golden["probabilities"])
    for path, expected in golden["probabilities"].items():
        assert results["probabilities"][path] == pytest.approx(expected, abs=5e-3), path


def test_served_answers(golden: dict[str, Any], project: Path) -> None:
    """The server gives, for the same files, what evaluate wrote and what golden.json holds."""
    offline = probabilities(project)
    with golden_server(project) as ask:
        for path, expected in golden["probabilities"].items():
            served = ask(project / "data/fetched" / path)
            assert served == pytest.approx(offline[path], abs=1e-5), path
            assert served == pytest.approx(expected, abs=5e-3), path
