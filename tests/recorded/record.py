"""Record a project of version 0.1.0: round1.tar.xz, which tests/e2e/test_recorded.py goes on with.

Made once, on a checkout of 0.1.0 with its environment (git and `make setup` suffice):

    cd CHECKOUT_OF_0.1.0 && make setup && .venv/bin/python HERE/record.py round1.tar.xz

It clones the checkout to /tmp/headstart-round1, adds 144 generated pictures of three classes, runs
`dvc repro` twice, the second time with more trials, and packs what git does not hold: the project
as its user has it (params.yaml, dvc.lock, DVC's cache, reports, models, study, mlflow.db, mlruns)
beside the feature cache. The backbone ends at an early layer, so that the archive stays small.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PROJECT, CACHE = Path("/tmp/headstart-round1"), Path("/tmp/headstart-round1-cache")
CLASSES = ("disc", "square", "stripes")
IMAGES_PER_CLASS = 48
# Of what git ignores or has changed, all but the caches of tools.
KEPT = (
    "params.yaml", "dvc.lock", "data", "models", "reports", ".headstart", "mlflow.db", "mlruns",
    ".dvc/cache",
)  # fmt: skip
CHOICES = {
    "source: data/sources/animal-silhouettes.yaml": "source: data/own",
    "size_px: 224": "size_px: 64",
    "layer: null": "layer: block4_add",
    "n_trials: 32": "n_trials: 4",
    "n_bootstrap: 2000": "n_bootstrap: 500",
}


def draw(kind: str, chance: np.random.Generator) -> Image.Image:
    """A shape at a random place on a random smooth background, 96 × 96 pixels."""
    coarse = Image.fromarray(chance.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    picture = coarse.resize((96, 96), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    colour = tuple(int(v) for v in chance.integers(0, 256, 3))
    x, y = (int(v) for v in chance.integers(8, 48, 2))
    side = int(chance.integers(28, 44))
    box = (x, y, x + side, y + side)
    if kind == "disc":
        pen.ellipse(box, fill=colour)
    elif kind == "square":
        pen.rectangle(box, fill=colour)
    else:
        for offset in range(0, side, 8):
            pen.rectangle((x, y + offset, x + side, y + offset + 3), fill=colour)
    return picture


def write_pictures(folder: Path) -> None:
    """The pictures, one exact copy, and one file that is no picture."""
    chance = np.random.default_rng(0)
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            draw(kind, chance).save(folder / kind / f"{number:02}.jpg", quality=85)
    shutil.copy2(folder / "disc" / "00.jpg", folder / "disc" / "copy.jpg")
    (folder / "square" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")


def main(archive: Path) -> None:
    checkout = subprocess.check_output(["git", "rev-parse", "--show-toplevel"], text=True).strip()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DVC_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HEADSTART_CACHE": str(CACHE),
        **dict.fromkeys(("USER", "LOGNAME", "USERNAME"), "user"),
        **{f"GIT_{who}_NAME": "user" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "user@example.invalid" for who in ("AUTHOR", "COMMITTER")},
    }

    def run(*command: str) -> None:
        subprocess.run(command, cwd=PROJECT, env=environment, check=True)

    subprocess.run(["git", "clone", "-q", checkout, str(PROJECT)], check=True)
    run("git", "remote", "remove", "origin")
    params = PROJECT / "params.yaml"
    text = params.read_text(encoding="utf-8")
    for old, new in CHOICES.items():
        assert old in text, old
        text = text.replace(old, new, 1)
    params.write_text(text, encoding="utf-8")
    write_pictures(PROJECT / "data" / "own")
    run("dvc", "add", "-q", "data/own")
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "my own images")
    run("dvc", "repro")
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "first results")
    params.write_text(text.replace("n_trials: 4", "n_trials: 6"), encoding="utf-8")
    run("dvc", "repro")
    run("git", "add", "-A")
    run("git", "commit", "-q", "-m", "more trials")
    database = sqlite3.connect(PROJECT / "mlflow.db")
    database.execute("VACUUM")
    database.close()
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for name in KEPT:
            tar.add(PROJECT / name, f"project/{name}", filter=_anonymous)
        tar.add(CACHE, "cache", filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
