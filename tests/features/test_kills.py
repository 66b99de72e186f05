"""Killed at any moment, extraction goes on, repeats nothing that is finished, and ends the same.

HEADSTART_KILLS sets how often the slow test kills: fifty times by default, ten where CI runs it.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from headstart.cache.shards import read_shard
from tests.features.samples import write_images

N_IMAGES, SIZE_PX = 480, 128

CHILD = f"""
import dataclasses, sys
from pathlib import Path
from headstart.features.extractor import extract_features
from tests.features.samples import extractor, manifest_of
folder, cache_root, out = map(Path, sys.argv[1:])
small = dataclasses.replace(extractor(cache_root, size={SIZE_PX}), shard_rows=40)
manifest = manifest_of(folder)
print("begin", flush=True)
done = extract_features(small, manifest, folder, out / "features.h5", out / "backbone.h5")
print(done.n_extracted, flush=True)
"""


class Extractions:
    """Runs the extraction in process groups of its own, over one cache."""

    def __init__(self, tmp_path: Path, cache_root: Path, repository: Path) -> None:
        self.cache_root, self.repository = cache_root, repository
        self.images, self.out = tmp_path / "images", tmp_path / "out"
        self.out.mkdir()
        write_images(self.images, N_IMAGES)

    def start(self) -> subprocess.Popen[str]:
        arguments = [str(self.images), str(self.cache_root), str(self.out)]
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            cwd=self.repository,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        return process

    def finish(self) -> int:
        """Run to the end; returns how many rows were extracted."""
        answer, _ = self.start().communicate(timeout=120)
        return int(answer)

    def kill_after(self, seconds: float) -> None:
        process = self.start()
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def finished_rows(self) -> Counter[bytes]:
        shards = (self.cache_root / "features").glob("*/shards/[!.]*.h5")
        return Counter(key for path in shards for key in read_shard(path).keys.tolist())

    def forget(self) -> None:
        for path in (self.cache_root / "features").glob("*/shards/*"):
            path.unlink()


def kill(extractions: Extractions, n_kills: int) -> tuple[bytes, bytes]:
    """features.h5 of an undisturbed extraction, and of one that was killed so often."""
    process = extractions.start()
    started = time.monotonic()
    assert process.communicate(timeout=120)[0] == f"{N_IMAGES}\n"
    seconds = time.monotonic() - started
    undisturbed = (extractions.out / "features.h5").read_bytes()
    extractions.forget()
    chance = random.Random(n_kills)
    n_killed = n_in_the_middle = 0
    # Some moments are before the first shard or after the last one: go on until one was between.
    while n_killed < n_kills or (n_in_the_middle == 0 and n_killed < 5 * n_kills):
        n_killed += 1
        if len(extractions.finished_rows()) == N_IMAGES:
            extractions.forget()
        (extractions.out / "features.h5").unlink(missing_ok=True)
        extractions.kill_after(chance.uniform(0, seconds))
        finished = extractions.finished_rows()
        assert set(finished.values()) <= {1}, "a row of a finished shard was extracted again"
        n_in_the_middle += 0 < len(finished) < N_IMAGES
        if (extractions.out / "features.h5").exists():
            assert (extractions.out / "features.h5").read_bytes() == undisturbed
    already = len(extractions.finished_rows())
    assert extractions.finish() == N_IMAGES - already
    assert n_in_the_middle > 0
    return undisturbed, (extractions.out / "features.h5").read_bytes()


@pytest.fixture
def extractions(tmp_path: Path, cache_root: Path, repository: Path) -> Extractions:
    made = Extractions(tmp_path, cache_root, repository)
    made.finish()
    made.forget()
    return made


def test_killed_three_times(extractions: Extractions) -> None:
    undisturbed, killed = kill(extractions, 3)
    assert killed == undisturbed


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(2400)
def test_killed_many_times(extractions: Extractions) -> None:
    is_ci = os.environ.get("HEADSTART_CI") == "1" or os.environ.get("CI") == "true"
    n_kills = int(os.environ.get("HEADSTART_KILLS", "10" if is_ci else "50"))
    undisturbed, killed = kill(extractions, n_kills)
    assert killed == undisturbed
