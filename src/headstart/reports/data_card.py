"""reports/data/: what the images are, before anything is learned from them.

One self-contained index.html, metrics.json with flat numbers, and tables for DVC's plots.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.common import files
from headstart.common.errors import HeadstartError
from headstart.dataset.duplicates import groups_of_equals, straddling
from headstart.dataset.image_statistics import FLAG_MEANINGS
from headstart.dataset.ingest import Ingested
from headstart.dataset.manifest import FLAGS, Manifest
from headstart.dataset.splits import Move, write_moves
from headstart.images.decode import decode_preview
from headstart.images.image_files import decode_what_is_left
from headstart.params.split import SPLITS
from headstart.reports.html import render_page, thumbnail_uri

_THUMBNAIL_PX = 96
_MOST_CONTACTS, _CONTACTS_A_CLASS = 240, 12
_MOST_GROUPS, _MEMBERS_A_GROUP = 12, 6
_MOST_REJECTED, _EXAMPLES_A_FLAG, _MOST_MOVES = 24, 6, 100
_BINS = 16


@dataclass(frozen=True)
class DataCard:
    """What the page is made from; `fetched` is the folder that paths are relative to."""

    ingested: Ingested
    moves: list[Move]
    fetched: Path

    @property
    def manifest(self) -> Manifest:
        return self.ingested.manifest


def write_data_card(folder: Path, card: DataCard) -> None:
    """Write index.html, metrics.json, counts.csv and moves.csv."""
    manifest, rejected = card.manifest, card.ingested.rejected
    table, thumbnails = manifest.table, _Thumbnails(card)
    files.write_json(folder / "metrics.json", metrics(card))
    pairs = Counter(zip(table["label"].astype(str), manifest.splits, strict=True))
    counts: list[dict[str, Any]] = []
    for label in manifest.classes:
        found = {str(split): pairs[label, split] for split in SPLITS}
        counts.append({"label": label, "images": sum(found.values()), **found})
    rows = [[row["label"], *(row[split] for split in SPLITS), row["images"]] for row in counts]
    files.write_csv(folder / "counts.csv", ("label", *SPLITS, "images"), rows)
    write_moves(folder / "moves.csv", card.moves)

    # Duplicate groups, by path; of each a bounded number of members.
    equals = groups_of_equals(np.array(card.ingested.duplicates, dtype=np.int64))
    groups = sorted(rows[:_MEMBERS_A_GROUP].tolist() for rows in equals)
    conflicting = [rows for rows in groups if table["label_conflict"].iloc[rows].any()]
    agreeing = [rows for rows in groups if not table["label_conflict"].iloc[rows].any()]
    width, height = table["width"].to_numpy(float), table["height"].to_numpy(float)
    reasons = Counter(rejection.reason for rejection in rejected)
    sentences = {rejection.reason: rejection.sentence for rejection in reversed(rejected)}
    # Some images of each class, chosen by hash: the same ones whatever the order.
    each = max(1, min(_CONTACTS_A_CLASS, _MOST_CONTACTS // max(1, len(manifest.classes))))
    by_hash = pd.Series(manifest.sha256).sort_values(kind="stable").index.to_numpy()
    label_ids = manifest.label_ids[by_hash]
    page = {
        "metrics": metrics(card),
        "classes": manifest.classes,
        "counts": counts,
        "flags": [
            {
                "name": flag.replace("_", " "),
                "column": flag,
                "meaning": FLAG_MEANINGS[flag],
                "count": int(table[flag].sum()),
                "examples": thumbnails.of_rows(np.flatnonzero(table[flag])[:_EXAMPLES_A_FLAG]),
            }
            for flag in FLAGS
        ],
        "sizes": histogram(np.sqrt(width * height), "px"),
        "ratios": histogram(width / np.maximum(height, 1), ""),
        "rejected": {
            "reasons": [
                {"reason": reason, "count": count, "sentence": sentences[reason]}
                for reason, count in reasons.most_common()
            ],
            "examples": [
                {"path": r.path, "sentence": r.sentence, "uri": thumbnails.partial(r.path)}
                for r in rejected[:_MOST_REJECTED]
            ],
        },
        "n_conflicts": len(conflicting),
        "conflicts": [thumbnails.of_rows(rows) for rows in conflicting[:_MOST_GROUPS]],
        "n_duplicate_groups": len(agreeing),
        "duplicate_groups": [thumbnails.of_rows(rows) for rows in agreeing[:_MOST_GROUPS]],
        "moves": card.moves[:_MOST_MOVES],
        "n_moves": len(card.moves),
        "contacts": [
            {"label": label, "images": thumbnails.of_rows(by_hash[label_ids == label_id][:each])}
            for label_id, label in enumerate(manifest.classes[:_MOST_CONTACTS])
        ],
    }
    files.write_text(folder / "index.html", render_page("data_card.html.jinja", **page))


def metrics(card: DataCard) -> dict[str, int | float]:
    """Return flat numbers for DVC: counts of images, and leaks, which must be zero."""
    manifest, rejected = card.manifest, card.ingested.rejected
    splits = Counter(manifest.splits)
    return {
        "images": len(manifest),
        "classes": len(manifest.classes),
        **{split: splits[split] for split in SPLITS},
        "rejected": len(rejected),
        "leaks": len(straddling(manifest.groups, manifest.splits)),
        "groups": len(set(manifest.groups)),
        "size_mb": round(int(manifest.table["size_bytes"].sum()) / 1e6, 3),
        **{flag: int(manifest.table[flag].sum()) for flag in FLAGS},
    }


def histogram(values: NDArray[np.float64], unit: str) -> list[dict[str, Any]]:
    """Return a histogram's bars: a text for their range, a count, and a share of the largest."""
    if not len(values):
        return []
    low, high = float(values.min()), float(values.max())
    if low == high:
        return [{"range": _range_text(low, low, unit), "count": len(values), "share": 1.0}]
    # Sizes and ratios are spread over orders of magnitude.
    edges = np.geomspace(low, high, _BINS + 1) if high > 8 * low else np.linspace(low, high, _BINS)
    counts, edges = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return [
        {
            "range": _range_text(float(edges[i]), float(edges[i + 1]), unit),
            "count": int(count),
            "share": float(count / counts.max()),
        }
        for i, count in enumerate(counts)
    ]


def _range_text(low: float, high: float, unit: str) -> str:
    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    text = number(low) if low == high else f"{number(low)} to {number(high)}"
    return f"{text} {unit}".strip()


class _Thumbnails:
    """Thumbnails of images in the manifest, decoded once each, several at a time."""

    def __init__(self, card: DataCard) -> None:
        self._card = card
        self._uris: dict[int, str] = {}

    def of_rows(self, rows: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return the thumbnail, path, label and split of each of these rows of the manifest."""
        chosen = [int(row) for row in rows]
        missing = [row for row in chosen if row not in self._uris]
        with ThreadPoolExecutor() as pool:
            self._uris |= zip(missing, pool.map(self._uri, missing), strict=True)
        table = self._card.manifest.table
        return [
            {
                "uri": self._uris[row],
                **{name: str(table[name].iloc[row]) for name in ("path", "label", "split")},
            }
            for row in chosen
        ]

    def partial(self, path: str) -> str:
        """Return what can be seen of a rejected file; empty if nothing can."""
        pixels = decode_what_is_left(self._card.fetched / path, _THUMBNAIL_PX)
        return "" if pixels is None else thumbnail_uri(pixels, _THUMBNAIL_PX)

    def _uri(self, row: int) -> str:
        manifest = self._card.manifest
        try:
            data = (self._card.fetched / manifest.paths[row]).read_bytes()
            pixels = decode_preview(data, _THUMBNAIL_PX, max_pixels=manifest.max_pixels)
        except (OSError, HeadstartError):
            return ""  # it was there a moment ago; a report is no reason to stop
        return thumbnail_uri(pixels, _THUMBNAIL_PX)
