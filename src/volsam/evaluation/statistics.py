"""How sure a mean is, and whether one method is better than another: bootstrap over cases, and paired tests.

The bootstrap is the Bayesian one (Rubin 1981, "The Bayesian bootstrap", Ann. Statist. 9): a draw gives every case a
weight, from Dirichlet(1, ..., 1). Objects of one case go together, since they share a scan. No weight is 0, so that
every object is in every draw; draws of cases with replacement lose objects that few cases have, and the mean of such a
draw is one of other structures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf, isnan, nan
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from volsam.evaluation.rules import Rule
from volsam.evaluation.study import Row

DRAWS = 2000
SEED = 0
# Held at once, 8 bytes each: the weights of all draws for ten thousand cases would be 160 MB.
WEIGHTS = 1 << 20

Values: TypeAlias = Sequence[tuple[str, str, float]]
"""Case, object and value; nan for what does not count."""


@dataclass(frozen=True)
class Mean:
    """A mean and the interval in which it lies in 95 of 100 draws, nan for one case; `left_out` values are infinite."""

    value: float
    low: float
    high: float
    cases: int
    left_out: int = 0


@dataclass(frozen=True)
class Paired:
    """Two methods on the same objects: as the rule takes means, and by the means of cases.

    first, second: their means; difference: second minus first, with the interval `low` to `high`, nan for one case;
    cases: how many have objects in common; left_out: objects of which one value or both were infinite.

    difference_by_case: the mean over cases of the difference of their means, to which belong `p`, how probable
    differences as large would be by chance (Wilcoxon's signed ranks, nan where the two never differ), and `wins` and
    `losses`, the cases in which the second is better and worse.
    """

    first: float = nan
    second: float = nan
    difference: float = nan
    low: float = nan
    high: float = nan
    cases: int = 0
    left_out: int = 0
    difference_by_case: float = nan
    p: float = nan
    wins: int = 0
    losses: int = 0


def values_of(rows: Sequence[Row], rule: Rule, measure: str, step: int | None = None) -> Values:
    """The value of every object in the answer that counts by the rule: of all answers, or of those up to `step`."""
    return [(row.case, row.object, row.scores[measure][row.counted(rule, step)]) for row in rows]


def mean_of(values: Values, rule: Rule, draws: int = DRAWS) -> Mean:
    """The mean as the rule takes it, over what is finite, with an interval."""
    finite = [item for item in values if np.isfinite(item[2])]
    left_out = sum(isinf(value) for _, _, value in values)
    if not finite:
        return Mean(nan, nan, nan, 0, left_out)
    table = _table(finite)
    return Mean(_mean(table, rule), *_interval(table, rule, draws), len(table), left_out)


def paired(first: Values, second: Values, rule: Rule, *, less_is_better: bool = False, draws: int = DRAWS) -> Paired:
    """Compare two methods on the objects that both have a finite value for."""
    (before, after), left_out = common([first, second])
    if not before:
        return Paired(left_out=left_out)
    tables = _table(before), _table(after)
    change = tables[1] - tables[0]
    low, high = _interval(change, rule, draws)
    means = [_mean(table, rule) for table in tables]
    by_case = np.nanmean(change, axis=1)
    better, worse = (by_case < 0, by_case > 0) if less_is_better else (by_case > 0, by_case < 0)
    return Paired(
        first=means[0],
        second=means[1],
        difference=means[1] - means[0],
        low=low,
        high=high,
        cases=len(change),
        left_out=left_out,
        difference_by_case=float(by_case.mean()),
        p=wilcoxon(by_case),
        wins=int(np.count_nonzero(better)),
        losses=int(np.count_nonzero(worse)),
    )


def common(methods: Sequence[Values]) -> tuple[list[Values], int]:
    """Of several methods the values of those objects that all have a finite one for, in one order; and how many objects
    have a value in all, of which one is infinite.
    """
    tables = [{(case, name): value for case, name, value in values if not isnan(value)} for values in methods]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    finite = [key for key in shared if all(np.isfinite(table[key]) for table in tables)]
    return [[(*key, table[key]) for key in finite] for table in tables], len(shared) - len(finite)


def wilcoxon(differences: NDArray[np.float64]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; nan where nothing differs."""
    from scipy.stats import wilcoxon as test

    if not np.any(differences != 0):
        return nan
    return float(test(differences).pvalue)


def adjusted(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction for several comparisons at once; what is nan stays so and does not count."""
    known = sorted((p, name) for name, p in probabilities.items() if not isnan(p))
    found, highest = dict.fromkeys(probabilities, nan), 0.0
    for rank, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        found[name] = highest
    return found


def _table(values: Values) -> NDArray[np.float64]:
    """Cases by objects, nan where a case lacks an object."""
    cases = {case: index for index, case in enumerate(dict.fromkeys(case for case, _, _ in values))}
    names = {name: index for index, name in enumerate(dict.fromkeys(name for _, name, _ in values))}
    table = np.full((len(cases), len(names)), nan)
    for case, name, value in values:
        table[cases[case], names[name]] = value
    return table


def _mean(table: NDArray[np.float64], rule: Rule) -> float:
    return float(_means(table, np.full((1, len(table)), 1 / len(table)), rule)[0])


def _interval(table: NDArray[np.float64], rule: Rule, draws: int) -> tuple[float, float]:
    """In which 95 of 100 means lie; nan for one case, whose weight is the same in every draw."""
    if len(table) < 2:
        return nan, nan
    random, at_once = np.random.default_rng(SEED), max(1, WEIGHTS // len(table))
    blocks = [min(at_once, draws - start) for start in range(0, draws, at_once)]
    means = [_means(table, random.dirichlet(np.ones(len(table)), size=block), rule) for block in blocks]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def _means(table: NDArray[np.float64], weights: NDArray[np.float64], rule: Rule) -> NDArray[np.float64]:
    """The means (n,) of a table (cases, objects) by n weightings (n, cases), each of sum 1.

    Over the cases that have an object and then over objects, or over the objects of a case and then over cases; every
    case and every object has a value somewhere in the table.
    """
    known = ~np.isnan(table)
    filled = np.where(known, table, 0.0)
    if rule.mean == "case":
        return np.asarray(weights @ (filled.sum(axis=1) / known.sum(axis=1)))
    return np.asarray(((weights @ filled) / (weights @ known.astype(np.float64))).mean(axis=1))
