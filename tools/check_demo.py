"""Assert on what `make demo` left in a clone.

python tools/check_demo.py FOLDER            every output, the run, the champion
python tools/check_demo.py --again FOLDER    a second `dvc repro` runs nothing
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

OUTPUTS = (
    "data/manifest.csv",
    "data/images.h5",
    "data/features.h5",
    "data/best_head.json",
    "models/backbone.h5",
    "models/model.h5",
    "models/run.json",
    "models/serving/MLmodel",
    "models/serving/artifacts/model.h5",
    "reports/data/index.html",
    "reports/search/index.html",
    "reports/evaluation/index.html",
    "reports/predictions.csv",
    "reports/metrics.json",
    "reports/registration.json",
    "mlflow.db",
)
LOWEST_ACCURACY = 0.92


def main() -> int:
    """Check, and say what is wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args()
    wrong = _again(arguments.folder) if arguments.again else _first(arguments.folder)
    for sentence in wrong:
        print(f"demo: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def _first(folder: Path) -> list[str]:
    wrong = [f"{name} is missing" for name in OUTPUTS if not (folder / name).exists()]
    if wrong:
        return wrong
    metrics = json.loads((folder / "reports" / "metrics.json").read_text(encoding="utf-8"))
    registration = json.loads((folder / "reports/registration.json").read_text(encoding="utf-8"))
    if metrics["accuracy"] < LOWEST_ACCURACY:
        wrong.append(f"test accuracy is {metrics['accuracy']}, below {LOWEST_ACCURACY}")
    if registration["alias"] != "champion":
        wrong.append(f"the model is {registration['alias']}: {registration['why']}")
    if metrics["run_id"] != registration["run_id"]:
        wrong.append("metrics and registration are of different runs")
    return wrong


def _again(folder: Path) -> list[str]:
    binaries = folder / ".venv" / "bin"
    path = f"{binaries.resolve()}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    done = subprocess.run(
        ["dvc", "repro"],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    print(f"demo: a second `dvc repro` took {time.perf_counter() - started:.1f} s")
    if done.returncode != 0:
        return [f"a second `dvc repro` failed: {done.stderr}"]
    ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
    return [f"a second `dvc repro` ran something: {line}" for line in ran]


if __name__ == "__main__":
    sys.exit(main())
