"""A finished search as MLflow runs: what each trial is called and what is said of the study."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from headstart.common.errors import one_line
from headstart.common.paths import Project
from headstart.common.secrets import without_secrets
from headstart.params.search import SearchParams
from headstart.params.whole_file import load_params
from headstart.search.search_heads import StudyResult, TrialResult
from headstart.tracking.lineage import flatten, gather
from headstart.tracking.run_names import head_in_words, run_name
from headstart.tracking.runs import curve_names
from headstart.tracking.store import answering, open_store, tracking_uri
from headstart.tracking.study_runs import StudyRecord, TrialRecord, log_study


def check_store(project: Project) -> None:
    """Find out before the search whether its result can be logged.

    Raises:
        TrackingError: the tracking store does not answer.
    """
    open_store(project.root)


@contextlib.contextmanager
def failures_logged(project: Project, fingerprint: str) -> Iterator[None]:
    """Leave a FAILED run with the error where a search fails: its study has no run before its end.

    A search that is interrupted goes on later and fails nothing.
    """
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Exception):
            _log_failure(project, fingerprint, error)
        raise


def _log_failure(project: Project, fingerprint: str, error: Exception) -> None:
    store = open_store(project.root)
    lineage = gather(project, "search", {"headstart.kind": "study", "fingerprint": fingerprint})
    text = without_secrets(one_line(error, 5000))
    tags = {
        **lineage.tags,
        "error": text,
        "error.type": type(error).__name__,
        "mlflow.note.content": f"A search that ended with an error: {text}",
    }
    run = store.client.create_run(store.experiment_id, tags=tags, run_name="failed search")
    store.client.set_terminated(run.info.run_id, status="FAILED")


def log_search(
    project: Project,
    result: StudyResult,
    search: SearchParams,
    *,
    fingerprint: str,
    artifacts: Sequence[Path],
) -> None:
    """Log the study and its trials; those logged before are left as they are.

    Raises:
        TrackingError: the store went away; the study itself is kept, and a new run of the stage
            logs it without searching again.
    """
    facts = {"headstart.kind": "study", "fingerprint": fingerprint}
    lineage = gather(project, "search", facts)
    best = result.best
    assert best.value is not None
    params = flatten({"search": search.model_dump(mode="json")})
    study = StudyRecord(
        name=result.study_name,
        run_name=run_name(load_params(project.params), "search"),
        params={name: value for name, value in params.items() if len(value) < 6000},
        metrics={f"best_{result.metric}": best.value, "n_trials": float(len(result.trials))},
        tags={
            "study": result.study_name,
            "best.trial": str(best.number),
            "optuna.storage": without_secrets(result.storage),
            "mlflow.note.content": _note(result),
        },
        trials=_records(result),
        artifacts=artifacts,
    )
    with answering(tracking_uri(project.root)):
        log_study(project, study, lineage)


def _records(result: StudyResult) -> Iterator[TrialRecord]:
    for trial in result.trials:
        value = {} if trial.value is None else {"value": trial.value}
        metrics = {f"val_{name}": number for name, number in trial.at_best().items()}
        yield TrialRecord(
            number=trial.number,
            state=trial.state,
            params={name: str(number) for name, number in trial.params.items()},
            metrics={**value, **metrics},
            epochs=_epochs(trial),
            reason=without_secrets(trial.reason),
            note=_trial_note(result, trial),
        )


def _epochs(trial: TrialResult) -> list[dict[str, float]]:
    return [
        curve_names(dict(zip(trial.curve, row, strict=True)))
        for row in zip(*trial.curve.values(), strict=True)
    ]


def _trial_note(result: StudyResult, trial: TrialResult) -> str:
    head = head_in_words(trial.config) if trial.config is not None else "no head"
    if trial.value is not None:
        outcome = f"{result.metric} {trial.value:.4f} at epoch {trial.best_epoch}"
    elif trial.reason:
        outcome = f"failed: {without_secrets(trial.reason)}"
    else:
        outcome = f"{trial.state.lower()} after {len(trial.curve.get(result.metric, []))} epochs"
    return f"Trial {trial.number} of {result.study_name}: {head}; {outcome}."


def _note(result: StudyResult) -> str:
    best = result.best
    return (
        f"Best {result.metric} **{best.value:.4f}** by trial {best.number} of "
        f"{len(result.trials)} of study `{result.study_name}`. The trials are nested below; select "
        "them all and press Compare for parallel coordinates. `search/index.html` among the "
        "artifacts explains the search."
    )
