"""What a model would cost: its encoder up to the blocks that its heads use, and the heads."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from headstart.common.cost import Cost
from headstart.heads.config import HeadConfig, chosen_layers
from headstart.params.search import SearchParams


def model_cost(
    heads: Sequence[HeadConfig],
    blocks: Mapping[str, slice],
    costs: Mapping[str, Cost],
    n_classes: int,
) -> Cost | None:
    """The cost of an encoder and heads; None where the encoder's is not known.

    Args:
        blocks: layer → its columns of a row of features.
        costs: of the encoder up to each layer. Blocks of one encoder are nested: the deepest of
            those that some head uses is what the encoder costs.
    """
    used = [chosen_layers(head.layers, tuple(blocks)) for head in heads]
    if not all(layer in costs for own in used for layer in own):
        return None
    total = max((costs[layer] for own in used for layer in own), key=lambda cost: cost.mflops)
    for head, own in zip(heads, used, strict=True):
        dim = sum(blocks[layer].stop - blocks[layer].start for layer in own)
        hidden = [head.width] * head.hidden_layers if head.kind == "network" else []
        sizes = [dim, *hidden, n_classes]
        kernels = sum(n_in * n_out for n_in, n_out in pairwise(sizes))
        is_standardised = head.kind == "ridge" or head.normalisation == "standardise"
        statistics = 2 * dim if is_standardised else 0
        total += Cost.of_kernels(kernels, kernels + sum(sizes[1:]) + statistics)
    return total


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
