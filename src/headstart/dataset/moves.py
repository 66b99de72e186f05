"""Which images an ingest moved to another split than the one before it put them in.

A stage's outputs are gone before it runs again, so former placements are kept in the main
checkout's `.headstart/`, one file for each seed and set of fractions. It keeps images that are
gone: `data.source` may name another set of images, and then the first one again.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from headstart.common.files import sha256_of_json, write_csv
from headstart.dataset.manifest import Manifest
from headstart.params.split import SplitParams


@dataclass(frozen=True, slots=True)
class Move:
    """An image that is in another split than before, and the group that took it there."""

    path: str
    label: str
    sha256: str
    before: str
    now: str
    group: str


def placements_file(state_folder: Path, *, seed: int, fractions: SplitParams) -> Path:
    """Where the placements of this seed and these fractions are kept."""
    key = sha256_of_json({"seed": seed, "split": fractions.model_dump()})
    return state_folder / "placements" / f"{key[:16]}.csv"


def find_moves(manifest: Manifest, former: Path) -> list[Move]:
    """Images that `former` places in another split, in the manifest's order."""
    before = _read(former)
    columns = ("path", "label", "sha256", "split", "group")
    rows = zip(*(manifest.table[name].astype(str) for name in columns), strict=True)
    return [
        Move(path, label, sha256, before[sha256], split, group)
        for path, label, sha256, split, group in rows
        if before.get(sha256, split) != split
    ]


def remember_placements(manifest: Manifest, path: Path) -> None:
    """Keep where every image is, for the next ingest."""
    places = _read(path) | dict(zip(manifest.sha256, manifest.splits, strict=True))
    write_csv(path, ("sha256", "split"), sorted(places.items()))


def write_moves(path: Path, moves: list[Move]) -> None:
    """Write the moves as CSV; none give a file with a header alone."""
    rows = [(m.path, m.label, m.sha256, m.before, m.now, m.group) for m in moves]
    write_csv(path, ("path", "label", "sha256", "before", "now", "group"), rows)


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return {row["sha256"]: row["split"] for row in csv.DictReader(stream)}
    except (FileNotFoundError, KeyError, csv.Error, UnicodeDecodeError):
        return {}  # nothing to compare with; a damaged record is written anew
