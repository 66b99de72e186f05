"""Checks of all of params.yaml before a stage: what it asks for must be possible.

The stage that needs it would find out only after the expensive work of those before. Nothing here
changes an output, so dvc.yaml does not name this module and its imports as dependencies.
"""

from collections.abc import Callable

from headstart.common.errors import HeadstartError, ParamsError
from headstart.common.paths import Project
from headstart.common.terminal import say
from headstart.encoders.catalogue import ENCODERS, check_size, chosen_encoder, shown_layers
from headstart.encoders.runtimes import resolve
from headstart.encoders.weights import weights_identity
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from headstart.params.whole_file import Params, former_names, load_params
from headstart.projects.recipes import check_recipes

STAGES = (
    "fetch", "ingest", "pack", "extract", "search", "train", "package", "evaluate", "register",
)  # fmt: skip


def check_possible(project: Project, stage: str) -> None:
    """Check params.yaml for `stage` and those after it, as far as can be known now.

    Raises:
        ParamsError: naming every mistake, or that headstart.lock is of another version.
    """
    check_recipes(project)
    params = load_params(project.params)
    if former := former_names(project.params):
        say(
            f"warning: {project.params.name} has former parameters: {', '.join(former)}; "
            "the next version will refuse them",
            error=True,
        )
    found: list[str] = []

    def holds(check: Callable[..., object], *given: object) -> bool:
        try:
            check(*given)
        except HeadstartError as error:
            found.append(str(error).replace("\n", "\n  "))
            return False
        return True

    extract, search, fine_tune = params.extract, params.search, params.train.fine_tune
    ahead = STAGES[STAGES.index(stage) :]
    are_known = "train" in ahead
    for one in extract.each() if are_known else ():
        if one.in_onnx and "extract" not in ahead:
            continue
        is_known = holds(chosen_encoder, one, project.root)
        if is_known and "extract" in ahead:
            encoder = chosen_encoder(one, project.root)
            is_known = holds(check_size, encoder, params.image)
            holds(weights_identity, one, encoder.imagenet, project.root)
            is_known = is_known and holds(shown_layers, encoder, one)
        if is_known and "extract" in ahead and not one.in_onnx and _is_other_layer(one):
            is_known = holds(_check_layers, one, params.image)
        are_known = are_known and is_known
    if "extract" in ahead:
        holds(resolve, extract)
    if are_known and fine_tune.enabled:
        holds(_check_fine_tuning, params)
    if "search" in ahead:
        if search.sampler in ("grid", "cmaes"):
            holds(_check_sampler, params)
        if search.storage is not None:
            holds(_check_storage, params, project)
        if stage in ("pack", "extract"):
            holds(_check_metric, params, project)
    if "train" in ahead and fine_tune.enabled and {"train", "validation"} - {*params.pack.splits}:
        found.append(
            "fine-tuning needs the pixels of the training and validation images, but pack.splits "
            f"is [{', '.join(params.pack.splits)}]: set pack.splits to [train, validation], or "
            "train.fine_tune.enabled to false"
        )
    if found:
        count = "1 mistake" if len(found) == 1 else f"{len(found)} mistakes"
        raise ParamsError("\n  ".join([f"{count} in {project.params.name}:", *found]))


def _is_other_layer(extract: ExtractParams) -> bool:
    """Whether a layer is named that is no block of the catalogue."""
    return not set(extract.layers or ()) <= ENCODERS[extract.encoder].blocks.keys()


def _check_fine_tuning(params: Params) -> None:
    """Build the network without its weights: only it knows the names of its layers."""
    from headstart.encoders.builders import layer_names
    from headstart.training.unfreeze import first_layer

    if params.extract.each()[0].in_onnx:
        raise ParamsError(
            "fine-tuning trains an encoder of Keras, but extract.weights says that "
            f"{params.extract.encoder} is an .onnx file, which stays frozen: set "
            "train.fine_tune.enabled to false"
        )
    if len(params.extract.encoders) > 1:
        raise ParamsError(
            "fine-tuning works with one encoder, but extract.encoders names "
            f"{', '.join(params.extract.encoders)}: name one, or set train.fine_tune.enabled to "
            "false"
        )
    first_layer(layer_names(params.extract, params.image), params.train.fine_tune)


def _check_layers(params: ExtractParams, image: ImageParams) -> None:
    from headstart.encoders.builders import layer_names

    layer_names(params, image)


def _check_sampler(params: Params) -> None:
    from headstart.search.space import check_grid
    from headstart.search.study import make_sampler

    make_sampler(params.search, seed=0)
    if params.search.sampler == "grid":
        check_grid(params.search.space)


def _check_storage(params: Params, project: Project) -> None:
    from headstart.search.study import open_storage

    if params.search.storage:
        open_storage(params.search, project.root / ".headstart")


def _check_metric(params: Params, project: Project) -> None:
    """Hold the metric against the manifest's classes, on which stages after ingest may rely."""
    from headstart.dataset.manifest import read_manifest
    from headstart.heads.metrics import check_metric

    if params.search.metric == "top_3_accuracy":
        check_metric(params.search.metric, len(read_manifest(project.manifest).classes))
