"""What earns the champion alias, against a champion in a real registry."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from headstart.common import files
from headstart.common.paths import Project
from headstart.evaluation.comparison import latency_ratio
from headstart.models.model_file import save_model
from headstart.models.predictions import Predictions, read_predictions_table, write_predictions
from headstart.params.image import ImageParams
from headstart.params.register import RegisterParams
from headstart.stages.register import summary
from headstart.tracking.registration import Decision, Registration, decide, register_model
from headstart.tracking.registry import Registry
from headstart.tracking.store import open_store
from tests.tracking.conftest import new_model_run, record_run

N = 400
LABELS = np.arange(N) % 2


def _predictions(path: Path, n_wrong: int, classes: tuple[str, str] = ("a", "b")) -> Path:
    """The first `n_wrong` images are taken for the other class."""
    right = np.arange(N) >= n_wrong
    own = np.where(right, 0.9, 0.1)
    probabilities = np.where(LABELS[:, None] == np.arange(2), own[:, None], 1 - own[:, None])
    names = tuple(f"{i:064x}" for i in range(N))
    parts = [
        Predictions(classes, split, names, names, LABELS, probabilities)
        for split in ("validation", "test")
    ]
    write_predictions(path, parts)
    return path


def _model(path: Path, n_filters: int) -> Path:
    """A model that takes longer, and more bytes, the more filters it has."""
    pixels = keras.Input((96, 96, 3), dtype="uint8", name="pixels")
    x = keras.layers.Rescaling(1 / 255)(pixels)
    for _ in range(2):
        x = keras.layers.Conv2D(n_filters, 5, padding="same")(x)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    x = keras.layers.Softmax(name="probabilities")(keras.layers.Dense(2, name="logits")(x))
    metadata = {"classes": ["a", "b"], "image": ImageParams(size=96).model_dump(mode="json")}
    save_model(path, keras.Model(pixels, x), metadata)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small, fast model and a large, slow one."""
    folder = tmp_path_factory.mktemp("models")
    return _model(folder / "small.h5", 1), _model(folder / "large.h5", 48)


def _champion(
    project: Project,
    folder: Path,
    model: Path,
    n_wrong: int,
    classes: tuple[str, str] = ("a", "b"),
) -> Registry:
    """A version of the registry "animals", the second of which gets the number 2."""
    serving = folder / "serving"
    (serving / "artifacts").mkdir(parents=True)
    (serving / "MLmodel").write_text("flavors: {}\nmodel_uuid: x\n")
    (serving / "artifacts" / "model.h5").write_bytes(b"model")
    kept = folder / "model.h5"
    kept.write_bytes(model.read_bytes())
    with new_model_run(project, {}) as run:
        run.log_model(serving)
        run.log_artifact(_predictions(folder / "predictions.csv", n_wrong, classes))
        run.log_artifact(kept)
    registry = Registry(run.store, "animals")
    tags = {"model.bytes": str(model.stat().st_size)}
    version = registry.add(run.run_id, f"{n_wrong}", "a description", tags)
    registry.promote(str(version.version), "by hand")
    return registry


def _decide(
    registry: Registry, folder: Path, model: Path, n_wrong: int, gate: Any, optimism: float = 0.0
) -> Decision:
    predictions = _predictions(folder / "new.csv", n_wrong)
    params = RegisterParams(gate=gate)
    return decide(registry, predictions, model, params, groups={}, seed=0, optimism=optimism)


def test_a_lucky_model_does_not_replace_the_champion_and_a_lucky_champion_is_replaced(
    workspace: Project, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    """Accuracy that each shows for being the best of many trials is taken off on both sides."""
    registry = _champion(workspace, tmp_path, models[1], 40)
    assert _decide(registry, tmp_path, models[0], 28, "better").alias == "champion"
    lucky = _decide(registry, tmp_path, models[0], 28, "better", optimism=0.03)
    assert (lucky.alias, "corrected for selection" in lucky.why) == ("challenger", True)
    registry.store.client.set_model_version_tag("animals", "1", "validation.optimism", "0.03")
    assert _decide(registry, tmp_path, models[0], 40, "better").alias == "champion"


@pytest.mark.parametrize(
    ("gate", "n_wrong", "alias"),
    [
        ("better", 10, "champion"),
        ("better", 40, "challenger"),
        ("better", 60, "challenger"),
        ("not_worse_and_smaller", 40, "champion"),
        ("not_worse_and_smaller", 60, "challenger"),
        ("not_worse_and_faster", 40, "champion"),
        ("not_worse_and_faster", 60, "challenger"),
        ("always", 60, "champion"),
    ],
)
def test_a_small_fast_model_against_a_champion_with_40_errors(
    workspace: Project,
    tmp_path: Path,
    models: tuple[Path, Path],
    gate: str,
    n_wrong: int,
    alias: str,
) -> None:
    small, large = models
    registry = _champion(workspace, tmp_path, large, 40)
    decision = _decide(registry, tmp_path, small, n_wrong, gate)
    assert decision.alias == alias, decision.why
    assert decision.validation is not None
    assert decision.validation.n_images == N
    if n_wrong == 40 and alias == "champion":
        word = gate.removeprefix("not_worse_and_")
        assert decision.why.startswith(word)
        assert "and not worse" in decision.why


@pytest.mark.parametrize("gate", ["not_worse_and_smaller", "not_worse_and_faster"])
def test_a_large_slow_model_with_the_same_errors_stays_challenger(
    workspace: Project, tmp_path: Path, models: tuple[Path, Path], gate: str
) -> None:
    small, large = models
    registry = _champion(workspace, tmp_path, small, 40)
    assert _decide(registry, tmp_path, large, 40, gate).alias == "challenger"


def test_an_experiment_makes_a_challenger_only(
    workspace: Project,
    tmp_path: Path,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = _champion(workspace, tmp_path, models[1], 40)
    monkeypatch.setenv("DVC_EXP_NAME", "brave-try")
    decision = _decide(registry, tmp_path, models[0], 10, "better")
    assert decision.alias == "challenger"
    assert "made in the DVC experiment brave-try" in decision.why


@pytest.mark.parametrize("experiment", [None, "brave-try"])
def test_a_model_of_other_classes_takes_the_champions_place_but_for_experiments(
    workspace: Project,
    tmp_path: Path,
    models: tuple[Path, Path],
    experiment: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = _champion(workspace, tmp_path, models[1], 40)
    if experiment:
        monkeypatch.setenv("DVC_EXP_NAME", experiment)
    predictions = _predictions(tmp_path / "new.csv", 200, ("blue sky", "rot"))
    params = RegisterParams(gate="better")
    decision = decide(registry, predictions, models[0], params, groups={}, seed=0)
    assert decision.alias == ("challenger" if experiment else "champion")
    assert decision.why.startswith("the champion so far, version 1, has other classes")
    assert "`headstart rollback`" in decision.why
    assert decision.validation is None


@pytest.mark.parametrize("experiment", [None, "brave-newt"])
@pytest.mark.parametrize(("n_wrong", "is_better"), [(0, True), (80, False)])
def test_back_at_former_classes_their_last_champion_is_compared_with(
    workspace: Project,
    tmp_path: Path,
    models: tuple[Path, Path],
    n_wrong: int,
    is_better: bool,
    experiment: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = _champion(workspace, tmp_path, models[1], 40)
    _champion(workspace, tmp_path / "other", models[0], 0, ("blue sky", "rot"))
    if experiment:
        monkeypatch.setenv("DVC_EXP_NAME", experiment)
    predictions = _predictions(tmp_path / "new.csv", n_wrong)
    params = RegisterParams(gate="better")
    decision = decide(registry, predictions, models[0], params, groups={}, seed=0)
    assert decision.validation is not None
    assert "version 2, the champion so far, has other classes" in decision.why
    assert decision.alias == ("champion" if is_better and not experiment else "challenger")
    assert decision.restored == (None if is_better or experiment else "1")
    again = "version 1, the last champion of these classes, is champion again"
    assert (again in decision.why) == (decision.restored is not None)


def test_the_order_of_classes_does_not_matter(
    workspace: Project, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    registry = _champion(workspace, tmp_path, models[1], 40)
    predictions = _predictions(tmp_path / "new.csv", 0)
    table = read_predictions_table(predictions)
    table[[*table.columns[:-2], "p(b)", "p(a)"]].to_csv(predictions, index=False)
    decision = decide(
        registry, predictions, models[0], RegisterParams(gate="better"), groups={}, seed=0
    )
    assert decision.alias == "champion"
    assert decision.validation is not None
    assert decision.validation.challenger_accuracy == 1


def test_latency_is_measured_side_by_side(models: tuple[Path, Path]) -> None:
    small, large = models
    assert latency_ratio(small, large) < 0.9 < 1.1 < latency_ratio(large, small)


def _register(
    project: Project, folder: Path, model: Path, n_wrong: int, card: str = "# Model card\n"
) -> Registration:
    """Register a model of the classes a and b, as the stage does."""
    with new_model_run(project, {}) as run:
        run.log_model(folder / "serving")
        run.log_artifact(_predictions(project.predictions, n_wrong))
    record_run(project, run.run_id)
    project.model.write_bytes(model.read_bytes())
    files.write_text(project.model_card, card)
    figures = {"accuracy": 0.9, "accuracy_ci95_low": 0.8, "accuracy_ci95_high": 1.0, "n_test": 9}
    return register_model(
        project,
        RegisterParams(model_name="animals"),
        metadata={"classes": ["a", "b"]},
        test_metrics=figures,
        groups={},
        seed=0,
    )


def test_a_model_of_other_classes_is_registered_as_champion_in_one_line(
    workspace: Project, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    registry = _champion(workspace, tmp_path, models[1], 40, ("blue sky", "rot"))
    found = _register(workspace, tmp_path, models[0], 0)
    assert (found.version, found.alias) == ("2", "champion")
    line = summary(found)
    assert "\n" not in line
    assert "version 1, has other classes (`headstart rollback` makes it champion again)" in line
    assert registry.roll_back() == ("2", "1")


def test_back_at_former_classes_their_champion_is_champion_again(
    workspace: Project, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    registry = _champion(workspace, tmp_path / "first", models[1], 10)
    _champion(workspace, tmp_path / "second", models[1], 40, ("blue sky", "rot"))
    found = _register(workspace, tmp_path / "first", models[0], 60)
    assert (found.version, found.alias) == ("3", "challenger")
    assert "version 1, the last champion of these classes, is champion again" in summary(found)
    champion = registry.holder("champion")
    assert champion is not None
    assert str(champion.version) == "1"


@pytest.mark.parametrize(
    ("card", "ending"),
    [
        ("# Model card\n\nA classifier.\n", "Classes: a, b.\n\n# Model card\n\nA classifier.\n"),
        ("word " * 1000, "The model card is model_card.md among the run's artifacts."),
    ],
)
def test_a_version_is_described_by_its_model_card(
    workspace: Project, tmp_path: Path, models: tuple[Path, Path], card: str, ending: str
) -> None:
    _champion(workspace, tmp_path, models[1], 40)
    found = _register(workspace, tmp_path, models[0], 0, card)
    client = open_store(workspace.root).client
    described = str(client.get_model_version("animals", found.version).description)
    assert described.startswith("Test accuracy 90.0 % (95 % interval 80.0 to 100.0) on 9 images.")
    assert described.endswith(ending)
