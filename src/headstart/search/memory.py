"""What a search will take of memory, estimated before it starts."""

from headstart.common.errors import SearchError
from headstart.common.machine import available_memory
from headstart.params.search import SearchParams
from headstart.search.plan import StudyPlan
from headstart.search.space import extremes

# Libraries, TensorFlow's among them where networks are trained.
_BASE, _BASE_OF_NETWORKS = 0.3e9, 0.8e9


def memory_needed(plan: StudyPlan, search: SearchParams) -> float:
    """About how many bytes one worker will hold at most, on heads of all blocks.

    Of each kind of head the largest arrays that exist at once, as `heads/` makes them.
    """
    n_images, n_views, dim = plan.features.shape
    n, classes, folds = n_images * n_views, plan.n_classes, len(plan.folds)
    smallest = min(len(fold.validation) for fold in plan.folds) * n_views
    kinds = {search.default_head.kind, *extremes(search.space, "kind")}
    rows = 4.0 * n * dim
    most = 0.0
    if "ridge" in kinds:
        if dim <= smallest:  # the Gram matrix of all rows and of each fold
            solving = 8.0 * dim**2 * (folds + 4)
        elif dim < n:  # centred rows and their eigenvectors
            solving = 8.0 * (3 * n * dim + 2 * dim**2)
        else:  # products of rows, by block, and their eigenvectors
            solving = 8.0 * n**2 * (len(plan.blocks) + 4)
        scores = 8.0 * n * classes * 8
        most = max(most, rows + solving + scores)
    if "logistic_regression" in kinds:
        most = max(most, rows + 2 * 8.0 * n * min(dim, n) + 8.0 * n * classes * 4)
    if "network" in kinds:
        width = max(extremes(search.space, "width"))
        weights = 4.0 * (dim * width + width**2 + width * classes)
        # Weights and Adam's moments, before and after a step; the rows once more, normalised.
        most = max(most, 2 * rows + 6 * folds * weights + _BASE_OF_NETWORKS)
    # Answers of all trials are compared in the end.
    answers = 4.0 * search.n_trials * len(plan.judged_rows) * classes
    return float(_BASE + rows + max(most, answers))


def check_memory(plan: StudyPlan, search: SearchParams) -> None:
    """Refuse a search that would not fit.

    Raises:
        SearchError: it needs more memory than there is.
    """
    needed, available = memory_needed(plan, search), available_memory()
    n_workers = search.workers
    if needed * n_workers <= available:
        return
    n_images, n_views, dim = plan.features.shape
    views = f" of {n_views} views" if n_views > 1 else ""
    workers = f" by each of {n_workers} workers" if n_workers > 1 else ""
    raise SearchError(
        f"a search must fit into memory, but {n_images:,} images{views} with {dim:,} features need "
        f"about {needed / 1e9:.1f} GB{workers}, and {available / 1e9:.1f} GB are free: "
        + ("lower search.workers, or " if n_workers > 1 else "")
        + "name fewer extract.layers, or set extract.pooling: avg"
    )
