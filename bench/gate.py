"""How often the champion's gate is wrong, and how often it sees a better model.

    python -m bench.gate [--quick]

Champion and challenger are each the best of 1, 8 or 64 heads of equal skill, chosen on the same
1,275 development images on which they are then compared: a gate that knows nothing of the choice
takes the luck of the best of many for skill. Images are generated: each has a difficulty, and heads
are right or wrong on it by chance. Beside it the comparison without the correction, and one on a
validation split of 15 % on which nothing was chosen.
"""

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bench.common import Target, print_table, write_results
from headstart.evaluation.comparison import compare_models
from headstart.search.selection import correct_for_selection

N_IMAGES, N_SPLIT, ACCURACY = 1275, 191, 0.95
COUNTS = (1, 8, 64)
HEADERS = ["champion of", "challenger of", "better by", "plain", "corrected", "split of 15 %"]
Right = NDArray[np.bool_]


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run that writes no results")
    quick = parser.parse_args().quick
    n_rounds = 4 if quick else 400
    rows: list[list[object]] = []
    targets: list[Target] = []
    # Two standard errors of what is measured are allowed over the nominal 2.5 %.
    limit = 0.025 + 2 * (0.025 * 0.975 / n_rounds) ** 0.5
    for champion, challenger in itertools.product(COUNTS, COUNTS):
        plain, corrected, split = _rates(champion, challenger, 0.0, n_rounds)
        rows.append([champion, challenger, "0 points", plain, corrected, split])
        name = f"wrong champions, best of {challenger} against best of {champion}"
        targets.append(Target(name, corrected, "fraction", limit, "<="))
    for champion, challenger in ((1, 1), (16, 16)):
        found = _rates(champion, challenger, 0.02, n_rounds)
        rows.append([champion, challenger, "2 points", *found])
        targets.append(
            Target(
                f"power at 2 points less the split's, best of {challenger} against {champion}",
                found[1] - found[2],
                "fraction",
                0.0,
                ">=",
            )
        )
    print_table(HEADERS, rows)
    if not quick:
        write_results("gate", targets, HEADERS, rows)


def _rates(champion: int, challenger: int, gain: float, n_rounds: int) -> tuple[float, ...]:
    """Fractions of rounds in which the challenger is called better, by each way to compare."""
    one = partial(_round, champion, challenger, gain)
    with ProcessPoolExecutor() as pool:
        called = np.array(list(pool.map(one, range(n_rounds), chunksize=4)))
    return tuple(float(value) for value in called.mean(axis=0))


def _round(champion: int, challenger: int, gain: float, number: int) -> list[bool]:
    chance = np.random.default_rng([number, champion, challenger, round(gain * 1000)])
    skill = _difficulties(chance)
    old = _heads(chance, champion, skill)
    new = _heads(chance, challenger, skill + (1 - skill) * gain / (1 - ACCURACY))
    pairs = [_answers(heads[int(heads.mean(axis=1).argmax())]) for heads in (old, new)]
    unseen = [_answers(heads[0][:N_SPLIT]) for heads in (old, new)]
    labels = np.zeros(N_IMAGES, np.int64)
    optimism = _optimism(old, number), _optimism(new, number)
    found = [
        compare_models(pairs[0], pairs[1], labels, seed=0, n_resamples=1000),
        compare_models(
            pairs[0], pairs[1], labels, seed=0, n_resamples=1000, optimism=optimism
        ),
        compare_models(unseen[0], unseen[1], labels[:N_SPLIT], seed=0, n_resamples=1000),
    ]  # fmt: skip
    return [comparison.verdict == "better" for comparison in found]


def _difficulties(chance: np.random.Generator) -> NDArray[np.float64]:
    """How likely a head of the one skill is right on each image: most are easy, some are not."""
    return chance.beta(ACCURACY * 2, (1 - ACCURACY) * 2, N_IMAGES)


def _heads(chance: np.random.Generator, n: int, skill: NDArray[np.float64]) -> Right:
    return np.asarray(chance.random((n, N_IMAGES)) < skill)


def _answers(right: Right) -> NDArray[np.float64]:
    """Probabilities of two classes, of which the first is true."""
    own = np.where(right, 0.9, 0.1)
    return np.stack([own, 1 - own], axis=1)


def _optimism(heads: Right, seed: int) -> float:
    labels = np.zeros(N_IMAGES, np.int64)
    groups = [str(image) for image in range(N_IMAGES)]
    answers = {number: _answers(right) for number, right in enumerate(heads)}
    found = correct_for_selection("accuracy", labels, groups, answers, seed=seed)
    assert found is not None
    return found.optimism


if __name__ == "__main__":
    main()
