"""Stage search: the best head over the cached features, data/best_head.json.

Also writes reports/search/: trials.csv, one row per trial, and a page with plots of what was found.
The study itself lives outside of DVC's outputs, so that a search that was killed is resumed.
"""

import contextlib

from headstart.common.paths import Project, state_folder
from headstart.common.progress import begin_step
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import write_head
from headstart.params.base import Section, Seed
from headstart.params.search import SearchParams
from headstart.reports.search_report import write_search_report
from headstart.search.plan import with_blocks
from headstart.search.results import StudyResult
from headstart.search.search_heads import run_study
from headstart.search.space import is_exhausted
from headstart.stages.run_stage import run_stage
from headstart.tracking.store import open_store
from headstart.tracking.study_runs import log_search
from headstart.tracking.training_runs import describe_ensemble, describe_head


class Sections(Section):
    seed: Seed = 0
    search: SearchParams


def run(project: Project, params: Sections) -> str:
    """Search for the best head and write what was found."""
    begin_step("opening the study")
    # Before the search, so that its result can be logged.
    open_store(project.root)
    with FeatureStore(project.features) as store:
        fingerprint = store.fingerprint
        search = with_blocks(params.search, store.layers)
        try:
            result = run_study(
                store,
                search,
                seed=params.seed,
                storage_folder=state_folder(project.root) / "studies",
            )
        except Exception as error:
            with contextlib.suppress(Exception):
                log_search(project, error, search, fingerprint=fingerprint)
            raise
    begin_step("writing the report")
    write_head(project.best_head, result.best_head())
    write_search_report(project.search_report, result, search)
    begin_step("logging the trials")
    log_search(project, result, search, fingerprint=fingerprint, reports=[project.search_report])
    return summary(result, search)


def summary(result: StudyResult, search: SearchParams) -> str:
    """Say which head is best, and whether every head of the space was tried."""
    best = result.best
    assert best.config is not None
    text = (
        f"{len(result.trials)} trials, best {result.metric} {best.value:.4f} "
        f"(trial {best.number}, {describe_head(best.config)})"
    )
    if result.estimate is not None:
        text += f", {result.estimate:.4f} expected on new images"
    if result.ensemble is not None:
        text += f"; {describe_ensemble(result.ensemble)}"
    tried = [trial.config for trial in result.trials if trial.config is not None]
    if len(tried) < search.n_trials and is_exhausted(search, tried):
        text += "; every head of search.space was tried"
    return text


if __name__ == "__main__":
    run_stage("search", Sections, run)
