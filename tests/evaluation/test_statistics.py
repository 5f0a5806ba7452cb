"""Means with intervals, and paired comparisons."""

from math import inf, isnan, nan

import numpy as np
import pytest

from volsam.evaluation import statistics
from volsam.evaluation.rules import STANDARD, rules
from volsam.evaluation.statistics import adjusted, mean_of, paired, wilcoxon


def values(*table):
    """Values of cases (rows) by objects."""
    return [(f"case {i}", f"object {j}", value) for i, row in enumerate(table) for j, value in enumerate(row)]


def test_each_object_counts_once_by_the_standard_rule_and_each_case_by_that_of_the_challenge():
    table = values((1.0, 0.0), (0.5, nan), (0.3, nan))
    assert mean_of(table, STANDARD).value == pytest.approx((0.6 + 0.0) / 2)
    assert mean_of(table, rules["cvpr2025"]).value == pytest.approx((0.5 + 0.5 + 0.3) / 3)


def test_what_is_infinite_is_counted_and_left_out():
    mean = mean_of(values((1.0,), (inf,), (3.0,), (nan,)), STANDARD)
    assert (mean.value, mean.cases, mean.left_out) == (2.0, 2, 1)
    nothing = mean_of(values((inf,), (nan,)), STANDARD)
    assert isnan(nothing.value)
    assert (nothing.cases, nothing.left_out) == (0, 1)


def test_the_interval_holds_the_mean_and_shrinks_with_more_cases():
    rng = np.random.default_rng(0)
    few, many = (mean_of(values(*rng.normal(0.7, 0.1, (count, 1))), STANDARD) for count in (8, 200))
    for mean in (few, many):
        assert mean.low < mean.value < mean.high
    assert many.high - many.low < (few.high - few.low) / 2
    # Of a normal mean the interval is 1.96 standard errors to each side.
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(200), rel=0.2)


def test_objects_of_one_case_are_drawn_together():
    """Ten objects of each of three cases are no thirty cases."""
    alike = mean_of(values([0.2] * 10, [0.5] * 10, [0.8] * 10), STANDARD)
    single = mean_of(values([0.2], [0.5], [0.8]), STANDARD)
    assert (alike.low, alike.high) == pytest.approx((single.low, single.high))


def test_an_object_of_few_cases_is_in_every_draw():
    """One hard object in one of twenty cases: no mean is that of the easy one alone."""
    easy = [(f"case {number}", "organ", 0.95) for number in range(20)]
    mean = mean_of([*easy, ("case 3", "tumour", 0.15)], STANDARD)
    assert mean.value == pytest.approx(0.55)
    assert (mean.low, mean.high) == pytest.approx((0.55, 0.55))
    twice = mean_of([*easy, ("case 3", "tumour", 0.1), ("case 9", "tumour", 0.2)], STANDARD)
    # Of two cases the share of the first is even between 0 and 1, so that of 0.1 and 0.2 the mean is, too.
    assert (twice.low, twice.high) == pytest.approx(((0.95 + 0.1025) / 2, (0.95 + 0.1975) / 2), abs=2e-3)


def test_the_interval_is_that_of_weights_from_a_dirichlet():
    drawn = [0.2, 0.5, 0.9]
    mean = mean_of(values(*([value] for value in drawn)), STANDARD)
    weights = np.random.default_rng(5).exponential(size=(200_000, 3))
    low, high = np.percentile(weights @ drawn / weights.sum(axis=1), (2.5, 97.5))
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=0.015)


def test_objects_and_cases_are_weighted_together_by_the_challenges_rule():
    table = values((1.0, 0.0), (0.5, nan), (0.3, nan))
    single = values((0.5,), (0.5,), (0.3,))
    two, one = (mean_of(each, rules["cvpr2025"]) for each in (table, single))
    assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high))


def test_draws_take_memory_by_cases_and_not_by_objects_as_well():
    import tracemalloc

    table = values(*np.random.default_rng(0).uniform(0, 1, (60, 100)))
    tracemalloc.start()
    mean_of(table, STANDARD)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 60 * 100 * 8 / 4


def test_one_case_has_no_interval():
    assert isnan(mean_of(values((0.5,)), STANDARD).low)


def test_a_method_that_is_better_everywhere_is_told():
    rng = np.random.default_rng(1)
    before = rng.uniform(0.4, 0.8, (12, 1))
    result = paired(values(*before), values(*(before + rng.uniform(0.01, 0.1, (12, 1)))), STANDARD)
    assert result.difference == pytest.approx(result.second - result.first)
    assert 0 < result.low < result.difference < result.high
    assert result.p == pytest.approx(2 / 2**12)
    assert (result.wins, result.losses, result.cases) == (12, 0, 12)
    assert result.difference_by_case == pytest.approx(result.difference)


def test_what_is_told_by_case_goes_with_the_wins():
    """Better by structures, for the sake of a rare one, and worse in nearly every case."""
    organ = [(f"case {number}", "organ", 0.9) for number in range(12)]
    before = [*organ, ("case 3", "tumour", 0.1)]
    after = [*((case, name, value - 0.01 - 0.001 * k) for k, (case, name, value) in enumerate(organ))]
    after += [("case 3", "tumour", 0.2)]
    result = paired(before, after, STANDARD)
    assert result.difference > 0
    assert result.difference_by_case == pytest.approx(
        np.mean([-0.01 - 0.001 * k for k in range(12) if k != 3] + [0.0435])
    )
    assert result.difference_by_case < 0
    assert (result.wins, result.losses) == (1, 11)
    assert result.p < 0.05


def test_less_is_better_of_distances():
    rng = np.random.default_rng(1)
    before = rng.uniform(4, 8, (9, 1))
    after = before - rng.uniform(0.1, 1, (9, 1))
    result = paired(values(*before), values(*after), STANDARD, less_is_better=True)
    assert result.difference < 0
    assert (result.wins, result.losses) == (9, 0)
    assert paired(values(*after), values(*before), STANDARD, less_is_better=True).losses == 9


def test_only_what_both_have_is_compared():
    result = paired(values((0.5,), (0.9,), (inf,)), values((0.6,), (nan,), (0.7,)), STANDARD)
    assert result.cases == 1
    assert result.difference == pytest.approx(0.1)
    assert result.left_out == 1
    assert isnan(result.low)
    nothing = paired(values((inf,), (2.0,)), values((3.0,), (inf,)), STANDARD)
    assert (nothing.cases, nothing.left_out) == (0, 2)
    assert isnan(nothing.difference)
    assert paired(values((nan,)), values((0.5,)), STANDARD).cases == 0


def test_the_same_method_twice_does_not_differ():
    same = values((0.5,), (0.7,), (0.6,))
    result = paired(same, same, STANDARD)
    assert (result.difference, result.low, result.high) == (0, 0, 0)
    assert isnan(result.p)
    assert isnan(wilcoxon(np.zeros(5)))


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    found = adjusted({"a": 0.01, "b": 0.04, "c": 0.03, "d": nan})
    assert found["a"] == pytest.approx(0.03)
    assert found["c"] == pytest.approx(0.06)
    assert found["b"] == pytest.approx(0.06)
    assert isnan(found["d"])


def test_draws_in_blocks_are_the_same_draws(monkeypatch):
    table = values(*np.random.default_rng(1).random((40, 2)))
    whole = mean_of(table, STANDARD)
    monkeypatch.setattr(statistics, "WEIGHTS", 500)
    assert mean_of(table, STANDARD) == whole
