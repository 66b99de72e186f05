"""The page of `headstart compare --html`: what differs, with pictures of what changed sides."""

import hashlib
from pathlib import Path

from headstart.common.errors import DataError
from headstart.images.decode import decode
from headstart.reports.html import render_page, thumbnail_uri
from headstart.tracking.compare_runs import ChangedPrediction, RunComparison

_MAX_PICTURES = 60


def comparison_page(comparison: RunComparison, fetched: Path) -> str:
    """A self-contained page; pictures are those of `fetched` that still have the same content."""
    pairs = [
        {
            "run_id": pair.run_id,
            "sentence": pair.test.sentence if pair.test else "They share too few test images.",
            "data": pair.data.sentence if pair.data else "One of them recorded no manifest.",
            "n_changed": len(pair.changed),
            "changed": [
                {"change": change, "picture": _picture(fetched, change)}
                for change in pair.changed[:_MAX_PICTURES]
            ],
        }
        for pair in comparison.pairs
    ]
    return render_page("compare.html.jinja", comparison=comparison, pairs=pairs)


def _picture(fetched: Path, change: ChangedPrediction) -> str | None:
    try:
        data = (fetched / change.path).read_bytes()
        if hashlib.sha256(data).hexdigest() != change.sha256:
            return None
        return thumbnail_uri(decode(data))
    except (OSError, DataError):
        return None
