"""What people read on a terminal: without credentials, and without characters that steer it."""

import re
import sys
from collections.abc import Sequence

from headstart.common.secrets import without_secrets

# Control characters (C0, DEL, C1), line and paragraph separators, marks that turn the direction of
# writing (CVE-2021-42574), and the surrogates by which Python carries bytes that are no text.
_STEERING = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""Return text, a file's name say, on one line that cannot steer a terminal.

    Control characters become `\x1b`, `\n` and the like; a byte that is no text becomes `\udcff`.
    """
    return _STEERING.sub(lambda match: ascii(match.group())[1:-1], str(text))


def say(text: object, *, error: bool = False) -> None:
    """Print one or more lines to standard output or, with `error`, to standard error."""
    lines = without_secrets(str(text)).split("\n")
    stream = sys.stderr if error else sys.stdout
    print("\n".join(map(printable, lines)), file=stream, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are aligned."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def size_text(n_bytes: float) -> str:
    """Bytes in the largest decimal unit that leaves a whole number before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
