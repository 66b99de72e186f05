"""What every bench needs: a table, targets, and a results file that docs/performance.md reads."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Target:
    """A measured figure beside what it should be. `sense` says on which side it is met."""

    name: str
    value: float
    unit: str
    target: float
    sense: Literal[">=", "<="]
    met: bool = field(init=False)

    def __post_init__(self) -> None:
        met = self.value >= self.target if self.sense == ">=" else self.value <= self.target
        object.__setattr__(self, "met", met)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headers, columns aligned; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(str(h)), *(len(r[i]) for r in cells), 0) for i, h in enumerate(headers)]
    print("  ".join(str(h).ljust(w) for h, w in zip(headers, widths, strict=True)))
    print("  ".join("-" * w for w in widths))
    for raw, row in zip(rows, cells, strict=True):
        print(
            "  ".join(
                c.rjust(w) if isinstance(v, int | float) else c.ljust(w)
                for v, c, w in zip(raw, row, widths, strict=True)
            )
        )
    sys.stdout.flush()


def write_results(
    name: str,
    targets: Sequence[Target],
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    machine: str | None = None,
) -> None:
    """Print the targets and write bench/results/NAME.json."""
    print_table(
        ["target", "value", "unit", "wanted", "met"],
        [
            [t.name, t.value, t.unit, f"{t.sense} {t.target:g}", "yes" if t.met else "NO"]
            for t in targets
        ],
    )
    report: dict[str, Any] = {
        "name": name,
        "machine": machine or describe_machine(),
        "targets": [asdict(t) for t in targets],
        "headers": list(headers),
        "rows": [list(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def keep_others(name: str, targets: list[Target], rows: list[list[object]], n_key: int) -> None:
    """Put recorded figures that were not measured again before the new ones.

    Args:
        n_key: so many first cells of a row say what it is of.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    measured = {target.name for target in targets}
    fields = ("name", "value", "unit", "target", "sense")
    targets[:0] = [
        Target(**{field: old[field] for field in fields})
        for old in before["targets"]
        if old["name"] not in measured
    ]
    keys = {tuple(row[:n_key]) for row in rows}
    rows[:0] = [row for row in before["rows"] if tuple(row[:n_key]) not in keys]


def median_seconds(work: Callable[[], object], repetitions: int = 3) -> float:
    """Median wall-clock seconds of `work` over so many repetitions."""
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def rss_mb() -> float:
    """Resident memory of this process in megabytes."""
    return float(psutil.Process().memory_info().rss) / 1e6


def describe_machine() -> str:
    """Cores, memory and processor flags that matter, in words."""
    flags = (
        Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    )
    bf16 = ", AVX512-BF16" if "avx512_bf16" in flags else ""
    memory_gb = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} CPU cores{bf16}, {memory_gb:.0f} GiB memory"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
