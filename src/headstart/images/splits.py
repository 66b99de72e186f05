"""Which split an image belongs to: a hash of its group's key and the seed against the fractions.

Nothing else counts, neither order, nor paths, nor how many images there are; so adding images moves
none that is there.
"""

import hashlib

from headstart.params.images import Split, SplitParams


def split_of(group: str, *, seed: int, fractions: SplitParams) -> Split:
    """The split of all members of a group."""
    place = position(group, seed=seed)
    if place < fractions.train:
        return "train"
    if place < fractions.train + fractions.validation:
        return "validation"
    return "test"


def position(group: str, *, seed: int) -> float:
    """A number in [0, 1), uniform over groups and independent between seeds."""
    digest = hashlib.sha256(f"{seed}\n{group}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
