"""Files written atomically: written aside, flushed, renamed; and YAML read in one way.

Knows nothing of what the files hold.
"""

import contextlib
import csv
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import yaml

from headstart.common.errors import of_the_disk

_CHUNK_BYTES = 1 << 20
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
T = TypeVar("T")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    A reader never sees half a file. On any exception the temporary file is removed and `path` is
    left as it was. The temporary name begins with a dot and ends with `.tmp` and the suffix of
    `path`, so that writers that look at the suffix still work.

    Raises:
        DiskError: there is no room, no permission, or something else in the place.
    """
    with writing(path), _replacing(path) as temporary:
        yield temporary


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of errors of the disk that come up inside that they are about `path`.

    Raises:
        DiskError: for every one of them.
    """
    try:
        yield
    except Exception as error:
        told = of_the_disk(error, path)
        if told is None:
            raise
        raise told from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _flush_to_disk(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's parser, with the plain scalars of YAML 1.2, which DVC writes, and numbers of 1.1.

    PyYAML knows YAML 1.1 alone: it takes 1e-05 for text, 010 for 8, 1:30 for 90 and no for false.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_PLAIN_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (
        r"[-+]?(?:0b[01][01_]*|0o[0-7][0-7_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|[0-9][0-9_]*)",
        list("-+0123456789"),
    ),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
# The first that matches a scalar counts, so that whole numbers are no floats.
for _name, (_pattern, _first) in _PLAIN_SCALARS.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first
    )


def _whole_number(_: object, node: Any) -> int:
    digits = node.value.replace("_", "")
    try:
        # int() itself knows 0x, 0o and 0b, but refuses the zero of 010.
        return int(digits, 0 if re.match("[-+]?0[box]", digits) else 10)
    except ValueError as error:
        # Python converts no more than some thousand digits.
        raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text says, with numbers in any notation of YAML 1.1 and 1.2.

    Where the two differ, 1.2 counts, as for DVC: `010` is ten; `yes`, `1:30` and dates are text.

    Raises:
        yaml.YAMLError: the text is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; see `parse_yaml`."""
    return parse_yaml(path.read_text(encoding="utf-8"))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV with Unix line ends, as an atomic write; no cell runs in a spreadsheet."""
    lines: list[str] = []
    # With lines that end in \n, the writer would leave a \r in a cell unquoted.
    ended = SimpleNamespace(write=lambda line: lines.append(line[:-2] + "\n"))
    writer = csv.writer(ended, lineterminator="\r\n")
    writer.writerow(map(as_cell, header))
    writer.writerows(map(as_cell, row) for row in rows)
    write_text(path, "".join(lines))


def as_cell(value: T) -> T | str:
    """Return a value as it stands in a CSV file that people open.

    Spreadsheets run text that begins like a formula (OWASP, "CSV Injection"): such text gets an
    apostrophe before it, also where it has some already. Numbers stay what they are, as text too.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def of_cell(text: str) -> str:
    """Return what `as_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def sha256_of_file(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON that depends on the value alone: sorted keys, no spaces. What gets hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def sha256_of_json(value: Any) -> str:
    """Hexadecimal sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _flush_to_disk(path: Path) -> None:
    if os.name == "nt":  # where neither a folder nor what is open for reading can be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@cache
def _umask() -> int:
    # There is no call that reads the umask without setting it; mkstemp's 0600 would otherwise stay.
    current = os.umask(0o022)
    os.umask(current)
    return current
