"""A worker of a study: it keeps one head stack full of trials until there are enough."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import SearchError, one_line
from headstart.common.progress import progress_bar
from headstart.heads.curve import Curve, curve_metrics, epoch_scores
from headstart.heads.probe import ProbeRows
from headstart.heads.stack import HeadStack, StackData
from headstart.params.search import SearchParams
from headstart.search.plan import StudyPlan
from headstart.search.sampling import first_heads
from headstart.search.shape import study_shape
from headstart.search.trials import AskedTrial, Trials

MOST_FAILURES = 10
# A program compiles in about two seconds, in which two cores do about so many operations.
_COMPILATION_FLOP = 2e11


@dataclass
class _Running:
    asked: AskedTrial
    curve: Curve
    first_epoch: int


class Worker:
    """Trains the trials that it is given, together; begins none after `deadline`."""

    def __init__(
        self, plan: StudyPlan, search: SearchParams, trials: Trials, *, deadline: float
    ) -> None:
        self._plan, self._search, self._trials = plan, search, trials
        self._names = curve_metrics(search.metric)
        self._labels = [plan.label_ids[group.validation] for group in plan.groups]
        self._data = StackData(plan.features, plan.label_ids, plan.n_classes, search.judged_on)
        self._probe_rows = [
            ProbeRows(plan.features, plan.label_ids, group.row_weights, plan.n_classes)
            for group in plan.groups
        ]
        self._stack = HeadStack(
            self._data, plan.groups, study_shape(plan, search, first_heads(search))
        )
        self._running: dict[int, _Running] = {}
        self._waiting: AskedTrial | None = None
        self._failures = 0
        self._deadline = deadline

    def run(self) -> None:
        """Work until the study has enough trials, or its time is up.

        Raises:
            SearchError: ten trials in a row failed.
        """
        with progress_bar(total=self._search.n_trials, unit="trials", title="search") as bar:
            self._bar = bar
            while True:
                self._start()
                if not self._running:
                    return
                if self._waiting is None and self._is_compacting_worth_it():
                    self._stack.compact()
                self._stack.run_epoch()
                self._note_epoch()
                waiting = [] if self._waiting is None else [self._waiting]
                self._trials.beat([*waiting, *(r.asked for r in self._running.values())])

    def _start(self) -> None:
        """Fill the stack as far as heads find a place, in the order they are asked in."""
        while True:
            if self._waiting is None and time.monotonic() < self._deadline:
                self._waiting = self._trials.ask()
            asked = self._waiting
            if asked is None:
                return
            if asked.config.kind == "linear_probe":
                self._run_probe(asked)
            elif not self._place(asked):
                return
            else:
                curve = Curve(self._search.metric)
                self._running[asked.number] = _Running(asked, curve, self._stack.epoch)
            self._waiting = None

    def _place(self, asked: AskedTrial) -> bool:
        has_room = len(self._stack) < self._search.population
        return has_room and self._stack.add(asked.number, asked.config)

    def _is_compacting_worth_it(self) -> bool:
        """Whether half the stack, for the epochs to come, costs more than compiling it anew."""
        ages = self._stack.epochs()
        left = [self._running[n].asked.config.epochs - epochs for n, epochs in ages.items()]
        return self._stack.flop_per_epoch / 2 * max(left, default=0) / 2 > _COMPILATION_FLOP

    def _note_epoch(self) -> None:
        numbers, logits = self._stack.validation_logits()
        scored = epoch_scores(self._names, self._labels, logits)
        for place, number in enumerate(numbers):
            values = {name: found[:, place] for name, found in scored.items()}
            running = self._running[number]
            if self._note(running, values):
                self._decide(running)

    def _note(self, running: _Running, values: dict[str, NDArray[np.float64]]) -> bool:
        """Note an epoch's metrics, (n_groups,) by name; False where the trial failed by them."""
        curve, asked = running.curve, running.asked
        if any(not np.isfinite(found).all() for found in values.values()):
            self._fail(asked, f"its loss was no longer a number in epoch {curve.epochs + 1}")
            return False
        curve.add(values)
        self._trials.report(asked, curve.values[curve.metric][-1], curve.epochs)
        return True

    def _decide(self, running: _Running) -> None:
        """End a trial that is done, stalled or to be pruned."""
        curve, asked = running.curve, running.asked
        if curve.epochs >= asked.config.epochs or curve.stalled(self._search.patience):
            self._complete(running)
        elif self._search.pruner != "none" and asked.trial.should_prune():
            self._end(asked)
            self._trials.prune(asked, _result(running))
            self._succeeded()

    def _complete(self, running: _Running) -> None:
        self._end(running.asked)
        self._trials.complete(running.asked, running.curve.best, _result(running))
        self._succeeded()

    def _run_probe(self, asked: AskedTrial) -> None:
        try:
            logits = [
                self._data.judged_logits(rows.fit(asked.config), group.validation)[None]
                for rows, group in zip(self._probe_rows, self._plan.groups, strict=True)
            ]
        except ValueError as error:
            self._fail(asked, one_line(error))
            return
        scored = epoch_scores(self._names, self._labels, logits)
        curve = Curve(self._search.metric)
        self._running[asked.number] = running = _Running(asked, curve, 0)
        if self._note(running, {name: found[:, 0] for name, found in scored.items()}):
            self._complete(running)

    def _end(self, asked: AskedTrial) -> None:
        self._running.pop(asked.number, None)
        if asked.config.kind == "network":
            self._stack.remove([asked.number])

    def _fail(self, asked: AskedTrial, reason: str) -> None:
        self._end(asked)
        self._trials.fail(asked, reason)
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            raise SearchError(
                f"{MOST_FAILURES} trials in a row failed, the last because {reason}: "
                "look at search.space, first at learning_rate"
            )

    def _succeeded(self) -> None:
        self._failures = 0
        self._bar.update(1)


def _result(running: _Running) -> dict[str, Any]:
    """What a trial leaves behind: JSON values, the same names for every trial."""
    curve = running.curve
    return {
        "config": running.asked.config.model_dump(mode="json"),
        "first_epoch": running.first_epoch,
        "best_epoch": curve.best_epoch,
        "value_std": curve.spread[curve.best_epoch - 1],
        "curve": curve.values,
    }
