"""Learn the weights of fusion from what queries want. Pure numpy, no I/O.

What a query scores depends on its own ranking only, so each setting is tried once on all queries; cross-validation then
compares means over different queries. The learning begins at equal weights and moves, one weight at a time, only where
that gains more than chance would: in doubt, weights stay equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mg_milvus.errors import QueryError
from mg_milvus.evaluation.questions import Setting, goals_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from mg_milvus.evaluation.questions import Floats, Goal, Method, Questions

RRF_KS = (5, 20, 60, 200, 1000)
DEPTHS = (50, 100, 200, 500, 1000)
DEPTH_LOSS = 0.001
"""So much of the goal, or a standard error of the difference if that is more, is noise where depths are compared."""
QUERIES_PER_FOLD = 2
"""With fewer there is nothing to tell chance from gain by."""

_STAGES = ((0.0, 0.25, 4.0), (0.5, 2.0), (0.8, 1.25))
"""What one weight is multiplied by, coarse steps first."""
_STEP = 1e-4
"""A step that gains less is not worth it."""
_SEED = 7


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was learned, and what it is worth on queries that it was not learned from.

    Attributes:
        goal: see ``GOALS``.
        queries: asked.
        candidates: pictures that a query chooses from.
        weights: granularity -> learned weight; the largest is 1.
        rrf_k: learned; as before in score fusion.
        depth: the smallest of ``DEPTHS`` that orders the results as well as the best of them, within noise; as before
            where there are too few pictures to tell.
        equal: the goal with equal weights and the old rrf_k.
        before: the goal with the old weights and rrf_k.
        tuned: mean over the folds, each with weights learned from the others.
        gains: ``tuned`` less ``equal``, fold by fold.
    """

    goal: Goal
    queries: int
    candidates: int
    weights: dict[str, float]
    rrf_k: int
    depth: int
    equal: float
    before: float
    tuned: float
    gains: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Mean gain over equal weights on unseen queries."""
        return float(np.mean(self.gains))

    @property
    def standard_error(self) -> float:
        """Standard error of the gain, over the folds."""
        return _standard_error(np.array(self.gains))

    @property
    def better(self) -> bool:
        """Whether the gain over equal weights is beyond one standard error, and the old weights do not do as well."""
        return self.gain > max(self.standard_error, _STEP) and self.tuned > self.before


def folds_of(strata: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Deal queries into folds of equal size, each stratum evenly: (q,) from 0 to folds - 1; always the same.

    Args:
        strata: (q,) the class of each query.
        folds: how many.

    Raises:
        QueryError: there are too few queries.
    """
    if folds < 2 or len(strata) < QUERIES_PER_FOLD * folds:
        raise QueryError(
            f"there are {len(strata)} queries for {folds} folds, expected at least 2 folds and {QUERIES_PER_FOLD} "
            "queries in each; give more pictures that belong together, or fewer folds"
        )
    shuffled = np.random.default_rng(_SEED).permutation(len(strata))
    by_stratum = shuffled[np.argsort(strata[shuffled], kind="stable")]
    dealt = np.empty(len(strata), np.int64)
    dealt[by_stratum] = np.arange(len(strata)) % folds
    return dealt


def learn(
    questions: Questions,
    goal: Goal,
    folds: NDArray[np.int64],
    *,
    weights: Mapping[str, float],
    rrf_k: int,
    depth: int,
    method: Method = "rank",
) -> Tuning:
    """Learn weights, ``rrf_k`` and ``depth``, and what they are worth on queries they were not learned from.

    Args:
        questions: at least two granularities.
        goal: what to make large.
        folds: (q,) as ``folds_of`` deals them.
        weights: granularity -> weight so far.
        rrf_k: so far; equal weights are tried with it.
        depth: so far.
        method: of the fusion; the method itself stays.
    """
    trials = _Trials(questions, goal, method)
    equal = Setting((1.0,) * len(questions.bits), rrf_k)
    before = Setting.of(tuple(weights[name] for name in questions.bits), rrf_k)
    numbers = range(int(folds.max()) + 1)
    unseen = [trials.of(trials.best(equal, folds != number))[folds == number].mean() for number in numbers]

    def over_folds(values: Floats) -> Floats:
        return np.array([values[folds == number].mean() for number in numbers])

    learned = trials.best(equal, np.ones(len(questions), bool))
    return Tuning(
        goal=goal,
        queries=len(questions),
        candidates=questions.relevance.shape[1],
        weights=dict(zip(questions.bits, learned.weights, strict=True)),
        rrf_k=learned.rrf_k,
        depth=_depth(questions, goal, method, learned, over_folds) or depth,
        equal=float(over_folds(trials.of(equal)).mean()),
        before=float(over_folds(trials.of(before)).mean()),
        tuned=float(np.mean(unseen)),
        gains=tuple((np.array(unseen) - over_folds(trials.of(equal))).tolist()),
    )


class _Trials:
    """Every setting is tried once, on all queries, and remembered."""

    def __init__(self, questions: Questions, goal: Goal, method: Method) -> None:
        self._questions, self._goal, self._method = questions, goal, method
        self._tried: dict[Setting, Floats] = {}

    def of(self, setting: Setting) -> Floats:
        """The goal of every query: (q,)."""
        if setting not in self._tried:
            scores = self._questions.scores(setting, self._method)
            self._tried[setting] = goals_of(self._goal, scores, self._questions.relevance)
        return self._tried[setting]

    def best(self, start: Setting, chosen: NDArray[np.bool_]) -> Setting:
        """The best setting for the chosen queries that steps uphill lead to; of equals the nearest to equal weights.

        A step has to gain more than its standard error over these queries.
        """
        here = start
        for factors in _STAGES:
            while True:
                steps = sorted(_steps(here, factors, self._method), key=_unevenness)
                place = int(np.argmax([round(self.of(step)[chosen].mean(), 9) for step in steps]))
                gains = (self.of(steps[place]) - self.of(here))[chosen]
                if gains.mean() <= max(_standard_error(gains), _STEP):
                    break
                here = steps[place]
        return here


def _steps(setting: Setting, factors: tuple[float, ...], method: Method) -> set[Setting]:
    """The settings that one step leads to: another weight, or another ``rrf_k``."""
    found = {Setting(setting.weights, rrf_k) for rrf_k in RRF_KS if method == "rank"}
    for place, weight in enumerate(setting.weights):
        values = [weight * factor for factor in factors] if weight else [0.25, 1.0]
        changed = [(*setting.weights[:place], value, *setting.weights[place + 1 :]) for value in values]
        found |= {Setting.of(weights, setting.rrf_k) for weights in changed if any(weights)}
    return found - {setting}


def _unevenness(setting: Setting) -> tuple[float, tuple[float, ...], int]:
    """0 for equal weights; then what makes the order of settings the same in every run."""
    shares = np.array(setting.weights) / sum(setting.weights)
    return round(float(np.abs(shares - 1 / len(shares)).sum()), 9), setting.weights, setting.rrf_k


def _depth(
    questions: Questions, goal: Goal, method: Method, setting: Setting, over_folds: Callable[[Floats], Floats]
) -> int | None:
    """The smallest of ``DEPTHS`` that is as good as the best, within noise; None: too few pictures to tell."""
    # A depth that takes most of the pictures says nothing about larger collections.
    depths = [depth for depth in DEPTHS if 2 * depth <= questions.relevance.shape[1]]
    reached = [
        over_folds(goals_of(goal, questions.scores_at(setting, method, depth), questions.relevance)) for depth in depths
    ]
    if not reached:
        return None
    best = max(reached, key=np.mean)
    return next(
        depth
        for depth, values in zip(depths, reached, strict=True)
        if (best - values).mean() <= max(_standard_error(best - values), DEPTH_LOSS)
    )


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
