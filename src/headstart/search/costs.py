"""What the model of a head would cost: its encoder up to the blocks that it uses, and the head."""

from collections.abc import Mapping
from itertools import pairwise

from headstart.common.cost import Cost
from headstart.heads.config import HeadConfig, chosen_layers
from headstart.params.search import SearchParams


def model_cost(
    config: HeadConfig, blocks: Mapping[str, slice], costs: Mapping[str, Cost], n_classes: int
) -> Cost | None:
    """The cost of an encoder and one head; None where the encoder's is not known.

    Args:
        blocks: layer → its columns of a row of features.
        costs: of the encoder up to each layer. Blocks of one encoder are nested: the deepest of
            those that a head uses is what the encoder costs.
    """
    used = chosen_layers(config.layers, tuple(blocks))
    if not all(layer in costs for layer in used):
        return None
    deepest = max((costs[layer] for layer in used), key=lambda cost: cost.mflops)
    dim = sum(blocks[layer].stop - blocks[layer].start for layer in used)
    hidden = [config.width] * config.hidden_layers if config.kind == "network" else []
    sizes = [dim, *hidden, n_classes]
    kernels = sum(n_in * n_out for n_in, n_out in pairwise(sizes))
    is_standardised = config.kind == "ridge" or config.normalisation == "standardise"
    statistics = 2 * dim if is_standardised else 0
    return deepest + Cost.of_kernels(kernels, kernels + sum(sizes[1:]) + statistics)


def excess(search: SearchParams, cost: Cost | None) -> str:
    """Why a model of this cost is over the limits, or nothing."""
    if cost is None:
        return ""
    limits = (
        ("max_mflops", search.max_mflops, cost.mflops, "MFLOPs"),
        ("max_model_mb", search.max_model_mb, cost.megabytes, "MB"),
    )
    over = [
        f"{value:,.4g} {unit}, over search.{name} {most:,.4g}"
        for name, most, value, unit in limits
        if most is not None and value > most
    ]
    return " and ".join(over)
