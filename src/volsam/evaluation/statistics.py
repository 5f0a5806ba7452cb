"""How sure a mean is, and whether one method is better than another: bootstrap over cases, and paired tests.

Objects of one case go together: they share a scan, so what is drawn anew is always whole cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from volsam.evaluation.rules import Rule
from volsam.evaluation.study import Row

DRAWS = 2000
SEED = 0

Values: TypeAlias = Sequence[tuple[str, str, float]]
"""Case, object and value; nan for what does not count."""


@dataclass(frozen=True)
class Mean:
    """A mean with the interval in which it lies in 95 of 100 draws of the cases; `left_out` values were not finite."""

    value: float
    low: float
    high: float
    cases: int
    left_out: int = 0


@dataclass(frozen=True)
class Paired:
    """Two methods on the same cases: the mean difference (second minus first) with its interval, and how probable one
    as large would be by chance, by Wilcoxon's signed ranks over the cases' means; nan where the two never differ.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    cases: int
    wins: int
    losses: int


def values_of(rows: Sequence[Row], rule: Rule, measure: str, step: int | None = None) -> Values:
    """The value of every object at an answer, or the one that counts by the rule where no answer is named."""
    return [
        (
            row.case,
            row.object,
            rule.counted(row.scores[measure] if step is None else row.scores[measure][: step + 1], measure),
        )
        for row in rows
    ]


def mean_of(values: Values, rule: Rule, draws: int = DRAWS) -> Mean:
    """The mean as the rule takes it, over what is finite, with an interval."""
    finite = [item for item in values if np.isfinite(item[2])]
    if not finite:
        return Mean(nan, nan, nan, 0, sum(not isnan(value) for _, _, value in values))
    table = _table(finite)
    sampled = _means(table[_draws(len(table), draws)], rule)
    low, high = np.nanpercentile(sampled, (2.5, 97.5)) if len(table) > 1 else (nan, nan)
    left_out = sum(bool(np.isinf(value)) for _, _, value in values)
    return Mean(float(_means(table[None], rule)[0]), float(low), float(high), len(table), left_out)


def paired(first: Values, second: Values, rule: Rule, draws: int = DRAWS) -> Paired:
    """Compare two methods on the objects that both have a finite value for."""
    ours = {(case, name): value for case, name, value in second if np.isfinite(value)}
    common = [item for item in first if (item[0], item[1]) in ours and np.isfinite(item[2])]
    if not common:
        return Paired(nan, nan, nan, nan, nan, nan, 0, 0, 0)
    before = _table(common)
    after = _table([(case, name, ours[case, name]) for case, name, _ in common])
    chosen = _draws(len(before), draws)
    sampled = _means(after[chosen], rule) - _means(before[chosen], rule)
    low, high = np.nanpercentile(sampled, (2.5, 97.5)) if len(before) > 1 else (nan, nan)
    by_case = np.nanmean(after, axis=1) - np.nanmean(before, axis=1)
    means = float(_means(before[None], rule)[0]), float(_means(after[None], rule)[0])
    return Paired(
        *means,
        means[1] - means[0],
        float(low),
        float(high),
        wilcoxon(by_case),
        len(before),
        int(np.count_nonzero(by_case > 0)),
        int(np.count_nonzero(by_case < 0)),
    )


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


def _draws(cases: int, draws: int) -> NDArray[np.int64]:
    """Which cases each draw holds (draws, cases)."""
    return np.random.default_rng(SEED).integers(cases, size=(draws, cases))


def _means(tables: NDArray[np.float64], rule: Rule) -> NDArray[np.float64]:
    """The mean of tables (n, cases, objects): over cases and then objects, or over objects and then cases."""
    inner, outer = (1, 1) if rule.mean == "object" else (2, 1)
    known = ~np.isnan(tables)
    counts = known.sum(axis=inner)
    sums = np.where(known, tables, 0.0).sum(axis=inner)
    means = np.divide(sums, counts, out=np.full(sums.shape, nan), where=counts > 0)
    held = ~np.isnan(means)
    total = held.sum(axis=outer)
    return np.divide(np.where(held, means, 0.0).sum(axis=outer), total, out=np.full(len(means), nan), where=total > 0)
