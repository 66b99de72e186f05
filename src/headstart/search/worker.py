"""A worker of a study: it solves linear heads one by one, and trains networks many at a time."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import SearchError, one_line
from headstart.common.progress import progress_bar
from headstart.heads.curve import Curve, curve_metrics, epoch_scores
from headstart.heads.linear import FoldAnswers, LinearHeads
from headstart.heads.metrics import one_of_views, softmax
from headstart.params.search import SearchParams
from headstart.search.plan import StudyPlan
from headstart.search.sampling import first_heads
from headstart.search.selection import AnswerStore
from headstart.search.trials import AskedTrial, Trials

if TYPE_CHECKING:
    from headstart.heads.stack import HeadStack

MOST_FAILURES = 10
# A program compiles in about two seconds, in which two cores do about so many operations.
_COMPILATION_FLOP = 2e11


@dataclass
class _Running:
    asked: AskedTrial
    curve: Curve
    first_epoch: int
    answers: NDArray[np.float32] | None = None


class Worker:
    """Trains the trials that it is given, together; begins none after `deadline`."""

    def __init__(
        self,
        plan: StudyPlan,
        search: SearchParams,
        trials: Trials,
        answers: AnswerStore,
        *,
        deadline: float,
    ) -> None:
        self._plan, self._search, self._trials, self._answers = plan, search, trials, answers
        self._names = curve_metrics(search.metric)
        self._labels = [plan.label_ids[group.validation] for group in plan.groups]
        self._linear = LinearHeads(plan.features, plan.label_ids, plan.n_classes, plan.blocks)
        self._running: dict[int, _Running] = {}
        self._waiting: AskedTrial | None = None
        self._failures = 0
        self._deadline = deadline

    @cached_property
    def _stack(self) -> "HeadStack":
        # Keras is imported where networks are trained, and not where heads are solved alone.
        from headstart.heads.stack import HeadStack, StackData
        from headstart.search.shape import study_shape

        plan, search = self._plan, self._search
        data = StackData(plan.features, plan.label_ids, plan.n_classes, search.judged_on)
        return HeadStack(data, plan.groups, study_shape(plan, search, first_heads(search)))

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
            if asked.config.kind != "network":
                self._run_linear(asked)
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
            if self._note(running, values, [of_group[place] for of_group in logits]):
                self._decide(running)

    def _note(
        self,
        running: _Running,
        values: dict[str, NDArray[np.float64]],
        logits: list[NDArray[np.float32]],
    ) -> bool:
        """Note an epoch's metrics, (n_groups,) by name; False where the trial failed by them."""
        curve, asked = running.curve, running.asked
        if any(not np.isfinite(found).all() for found in values.values()):
            self._fail(asked, f"its loss was no longer a number in epoch {curve.epochs + 1}")
            return False
        if curve.add(values):
            running.answers = self._of_rows(logits)
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
        assert running.answers is not None
        self._answers.write(running.asked.number, running.answers)
        self._trials.complete(running.asked, running.curve.best, _result(running))
        self._succeeded()

    def _run_linear(self, asked: AskedTrial) -> None:
        """Solve a head; of ridge for every penalty of the path, of which the one with the least log
        loss counts: it tells penalties apart that get the same images right.
        """
        try:
            found = self._linear.out_of_fold(asked.config, self._plan.groups, path=True)
        except (ValueError, np.linalg.LinAlgError) as error:
            self._fail(asked, one_line(error))
            return

        def scored(one: FoldAnswers) -> dict[str, NDArray[np.float64]]:
            each = epoch_scores(
                self._names, self._labels, [logits[None] for logits in self._judged(one)]
            )
            return {name: values[:, 0] for name, values in each.items()}

        every = [scored(one) for one in found]
        means = [{name: float(v.mean()) for name, v in values.items()} for values in every]
        best = min(range(len(found)), key=lambda i: means[i]["log_loss"])
        asked = replace(asked, config=found[best].config)
        running = _Running(asked, Curve(self._search.metric), 0)
        self._running[asked.number] = running
        if self._note(running, every[best], self._judged(found[best])):
            self._complete(running)

    def _judged(self, answers: FoldAnswers) -> list[NDArray[np.float32]]:
        """Logits of each group's validation rows, (n, c), from those of all their views."""
        n_views = self._plan.features.shape[1]
        if self._search.judged_on == "mean_of_views":
            return [one_of_views(logits, n_views) for logits in answers.logits]
        return [logits[::n_views] for logits in answers.logits]

    def _of_rows(self, logits: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Probabilities of the judged rows, (n, c), from logits of each group: mean of repeats."""
        rows, n = self._plan.judged_rows, len(self._plan.label_ids)
        total = np.zeros((n, self._plan.n_classes), np.float32)
        times = np.zeros(n, np.float32)
        for group, values in zip(self._plan.groups, logits, strict=True):
            total[group.validation] += softmax(values)
            times[group.validation] += 1
        return total[rows] / times[rows, None]

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
