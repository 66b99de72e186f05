"""Where a project's own database says that artifacts lie, after the checkout was moved or copied.

MLflow records the location of every experiment, run and model as an absolute address. A database
whose artifacts came along names the former folder for ever: its models cannot be loaded, and new
runs of the old experiments are written there. MLflow's own `Default` experiment moreover records a
plain path, which it later reads as an address: with `%`, `?` or `#` in it that is another folder.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_MLRUNS = re.compile(r"(.*/mlruns)(?:/\d+)?")
_MEANS_SOMETHING_IN_AN_ADDRESS = re.compile("[%?#]")
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def repair_artifact_locations(database: Path, artifacts: Path) -> list[Path]:
    """Make `database` name `artifacts` in place of folders that were moved or copied to there.

    A folder is replaced if something that the database says to be in it lies below `artifacts`, or
    if the checkout it belonged to is gone; artifacts that are kept elsewhere stay as they are.

    Args:
        database: an MLflow database in SQLite.
        artifacts: the folder `mlruns` beside it, which need not exist.

    Returns:
        The folders that another one was named in place of.
    """
    home = artifacts.as_uri()
    replaced: set[Path] = set()
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        locations = connection.execute("SELECT DISTINCT artifact_location FROM experiments")
        matches = [_MLRUNS.fullmatch(location or "") for (location,) in locations.fetchall()]
        for former in {match.group(1) for match in matches if match} - {home}:
            is_address = former.startswith("file:")
            folder = Path(url2pathname(urlsplit(former).path) if is_address else former)
            if folder == artifacts:
                is_stale = bool(_MEANS_SOMETHING_IN_AN_ADDRESS.search(former))
            else:
                is_stale = not folder.parent.exists() or _lies_below(connection, former, artifacts)
            if is_stale:
                for table, column in _COLUMNS:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE substr({column}, 1, ?) = ?",
                        (home, len(former) + 1, len(former) + 1, f"{former}/"),
                    )
                connection.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
                    (home, former),
                )
                replaced.add(folder)
    return sorted(replaced - {artifacts})


def _lies_below(connection: sqlite3.Connection, former: str, artifacts: Path) -> bool:
    """Whether the artifacts of a run or a model, recorded below `former`, lie below `artifacts`."""
    recorded = connection.execute(
        "SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM logged_models"
    )
    below = f"{former}/"
    return any(
        (artifacts / location.removeprefix(below)).exists()
        for (location,) in recorded
        if location and location.startswith(below)
    )
