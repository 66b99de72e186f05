"""The one JSON value that a command with `--json` prints; nothing else is on standard output."""

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TextIO

from headstart.common.secrets import without_secrets

_stream: TextIO | None = None


def reserve_stdout() -> None:
    """From now on, standard output is for `print_json`; all else goes to standard error.

    That of libraries and of commands that this process runs does, too: the file descriptor is
    another one.
    """
    global _stream
    if _stream is None:
        sys.stdout.flush()
        _stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def print_json(value: object) -> None:
    """Print a value of plain values, dataclasses, paths and arrays, after `reserve_stdout`.

    What is no number becomes null. It is ASCII: it steers no terminal, and no locale matters.
    """
    print(json.dumps(_plain(value), indent=2, allow_nan=False), file=_stream, flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | Path):
        return without_secrets(str(value))
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {without_secrets(str(name)): _plain(one) for name, one in value.items()}
    if hasattr(value, "tolist"):  # of numpy, which is not imported here
        return _plain(value.tolist())
    return [_plain(one) for one in value]
