"""Write src/headstart/encoders/costs.csv: what each encoder costs at its default input size.

Counted from its graph with random weights; `headstart encoders` shows it. Only encoders that the
file lacks are built, unless named: `python -m tools.encoder_costs [NAME…]`.
"""

import csv
import sys
from pathlib import Path

from headstart.encoders.builders import build
from headstart.encoders.catalogue import ENCODERS
from headstart.encoders.costs import block_costs
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

COSTS = Path(__file__).resolve().parent.parent / "src/headstart/encoders/costs.csv"


def cost_of(name: str) -> tuple[int, float]:
    """Return the number of parameters, and millions of operations, of all blocks."""
    size = ENCODERS[name].default_size_px
    model = build(ExtractParams(encoders=(name,), weights="random"), ImageParams(size=size))
    return int(model.count_params()), max(cost.mflops for cost in block_costs(model).values())


def main() -> None:
    known: dict[str, list[str]] = {}
    if COSTS.exists():
        with COSTS.open(encoding="utf-8") as stream:
            known = {name: rest for name, *rest in list(csv.reader(stream))[1:]}
    for name in ENCODERS:
        if name not in known or name in sys.argv[1:]:
            parameters, mflops = cost_of(name)
            known[name] = [str(parameters), f"{mflops:.1f}"]
            print(name, *known[name], flush=True)
        lines = [[name, *known[name]] for name in ENCODERS if name in known]
        with COSTS.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerows([["encoder", "parameters", "mflops"], *lines])


if __name__ == "__main__":
    main()
