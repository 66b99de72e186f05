"""The page of `headstart compare --html`: what differs, and images that changed sides."""

import hashlib
from pathlib import Path

from headstart.common.errors import DataError
from headstart.images.decode import decode_preview
from headstart.reports.html import THUMBNAIL_PX, render_page, thumbnail_uri
from headstart.tracking.compare_runs import RunComparison

_MAX_PICTURES = 60


def comparison_page(comparison: RunComparison, fetched: Path) -> str:
    """Return a self-contained page; its pictures are files of `fetched` with unchanged content."""
    pairs = []
    for pair in comparison.pairs:
        changed = []
        for change in pair.changed[:_MAX_PICTURES]:
            picture = None
            try:
                data = (fetched / change.path).read_bytes()
                if hashlib.sha256(data).hexdigest() == change.sha256:
                    picture = thumbnail_uri(decode_preview(data, THUMBNAIL_PX))
            except (OSError, DataError):
                pass  # the page says what changed without it
            changed.append({"change": change, "picture": picture})
        pairs.append(
            {
                "run_id": pair.run_id,
                "sentence": pair.test.sentence if pair.test else "They share too few test images.",
                "data": pair.data.sentence if pair.data else "One of them recorded no manifest.",
                "n_changed": len(pair.changed),
                "changed": changed,
            }
        )
    return render_page("compare.html.jinja", comparison=comparison, pairs=pairs)
