import gc
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from volsam.errors import BadInput
from volsam.evaluation import benchmark, machine, processes
from volsam.evaluation.benchmark import Candidate, Pass, Sample
from volsam.evaluation.gate import Goal, judge, read_goals
from volsam.evaluation.scoreboard import Result, as_data, rows
from volsam.evaluation.sides import packed


def test_every_candidate_runs_once_a_round_in_an_order_that_changes() -> None:
    log: list[str] = []
    some = [Candidate(name, [("t", lambda name=name: log.append(name))], 0.0) for name in "abcd"]
    found = benchmark.measure(some, rounds=6, threads=1, warm_ups=2, seed=3)
    rounds = [log[i : i + 4] for i in range(0, len(log), 4)]
    assert len(rounds) == 8
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert all(len(found.samples[name]["t"]) == 6 for name in "abcd")
    again: list[str] = []
    same = [Candidate(name, [("t", lambda name=name: again.append(name))], 0.0) for name in "abcd"]
    benchmark.measure(same, rounds=6, threads=1, warm_ups=2, seed=3)
    assert again == log


def test_a_task_that_comes_several_times_in_a_round_is_one_sample() -> None:
    steps = [("cold", lambda: None), *[("warm", lambda: None)] * 4]
    one = Candidate("a", steps, 0.0)
    assert one.tasks == ["cold", "warm"]
    found = benchmark.measure([one], rounds=3, threads=1, warm_ups=0)
    assert {task: len(samples) for task, samples in found.samples["a"].items()} == {"cold": 3, "warm": 3}


def test_no_garbage_is_collected_within_a_call_and_the_switch_is_put_back() -> None:
    seen: list[bool] = []
    assert gc.isenabled()
    benchmark.timed(lambda: seen.append(gc.isenabled()))
    assert seen == [False]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        benchmark.timed(lambda: 1 / 0)
    assert gc.isenabled()


def test_the_number_of_threads_is_as_wanted_within_and_as_before_afterwards() -> None:
    before, seen = torch.get_num_threads(), []
    one = Candidate("a", [("t", lambda: seen.append(torch.get_num_threads()))], 0.0)
    benchmark.measure([one], rounds=1, threads=3, warm_ups=0)
    assert seen == [3]
    assert torch.get_num_threads() == before


def a_pass(ours: list[float], theirs: list[float], threads: int = 1, wall: float = 1.0) -> Pass:
    """Processor seconds of both sides; the wall takes `wall` times as long."""
    samples = {
        name: {"t": [Sample(wall * value, value) for value in values]}
        for name, values in (("net", ours), ("net (published)", theirs))
    }
    return Pass(threads, samples)


def test_ratios_are_taken_round_by_round() -> None:
    # A neighbour slows the second round tenfold: both sides alike, so the ratio stays.
    found = a_pass([1.0, 10.0, 1.0], [3.0, 30.0, 3.0])
    assert found.ratios("net", "net (published)", "t") == pytest.approx([3.0, 3.0, 3.0])


def test_a_call_that_waited_for_the_processor_is_told() -> None:
    assert a_pass([1.0, 1.0], [1.0, 1.0], wall=2.0).starved("net", "t")
    assert not a_pass([1.0, 1.0], [1.0, 1.0], wall=1.1).starved("net", "t")
    assert a_pass([1.0, 1.0], [1.0, 1.0], threads=2, wall=1.0).starved("net", "t")


def test_quartiles_of_rounds() -> None:
    found = benchmark.spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.low, found.middle, found.high, found.least) == (2.0, 3.0, 4.0, 1.0)
    assert benchmark.spread([2.0]).low == 2.0


def test_arithmetic_is_counted_and_averaged_over_the_calls_of_a_task() -> None:
    a, b = torch.zeros(10, 20), torch.zeros(20, 30)
    q = torch.zeros(1, 2, 5, 4)
    once = Candidate(
        "a",
        [
            ("product", lambda: a @ b),
            ("product", lambda: a[:5] @ b),
            ("attention", lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)),
        ],
        0.0,
    )
    found = benchmark.rehearse([once])["a"]
    assert found["product"] == pytest.approx(1e-9 * (12000 + 6000) / 2)
    assert found["attention"] == pytest.approx(1e-9 * 2 * (2 * 2 * 5 * 5 * 4))


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build has no fused linear layers")
def test_a_fused_linear_layer_counts_as_a_linear_layer() -> None:
    x, weight, bias = torch.zeros(2, 5, 8), torch.zeros(16, 8), torch.zeros(16)
    call = Candidate("a", [("t", lambda: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none"))], 0.0)
    assert benchmark.rehearse([call])["a"]["t"] == pytest.approx(1e-9 * 2 * 10 * 8 * 16)


# --- equality ------------------------------------------------------------------------------------------------------


def test_agreement_tells_the_largest_difference_and_the_voxels_that_differ() -> None:
    mine = {"logits": torch.tensor([1.0, 2.0]), "mask": np.array([True, False, True])}
    theirs = {"logits": torch.tensor([1.0, 2.00005]), "mask": np.array([True, True, True])}
    found = benchmark.agreement(mine, theirs)
    assert found.difference == pytest.approx(5e-5, rel=0.02)
    assert (found.voxels, found.of) == (1, 3)
    assert found.holds
    assert found.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(
    "theirs",
    [
        {"logits": torch.tensor([1.0, 2.001])},
        {"logits": torch.tensor([1.0, math.nan])},
        {"logits": torch.tensor([1.0])},
        {"others": torch.tensor([1.0, 2.0])},
        {},
    ],
)
def test_other_numbers_shapes_names_and_holes_do_not_agree(theirs: dict) -> None:
    assert not benchmark.agreement({"logits": torch.tensor([1.0, 2.0])}, theirs).holds


def test_nothing_does_not_agree_with_nothing() -> None:
    assert not benchmark.agreement({}, {}).holds


def test_a_mask_is_packed_eight_voxels_a_byte() -> None:
    mask = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    bits = packed(mask)
    assert bits.size == math.ceil(mask.numel() / 8)
    unpacked = np.unpackbits(bits, bitorder="little", count=mask.numel()).reshape(mask.shape).astype(bool)
    assert (unpacked == mask.numpy()).all()


# --- goals ---------------------------------------------------------------------------------------------------------

TASKS, NAMES = {"click.cold", "t"}, {"net", "other"}


def goals_in(tmp_path: Path, text: str) -> list[Goal]:
    path = tmp_path / "goals.txt"
    path.write_text(text)
    return read_goals(path, TASKS, NAMES)


def test_goals_are_lines_with_comments(tmp_path: Path) -> None:
    found = goals_in(
        tmp_path, "# why\n\nclick.cold.cpu_ratio(net, other) >= 10  # must\nt.memory_ratio(net,net)>=2.5\n"
    )
    assert [(goal.task, goal.quantity, goal.ours, goal.published, goal.limit) for goal in found] == [
        ("click.cold", "cpu_ratio", "net", "other", 10.0),
        ("t", "memory_ratio", "net", "net", 2.5),
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("click.cold.cpu_ratio(net, other) > 10", "is not a goal"),
        ("click.cold.speed(net, other) >= 10", "is not a goal"),
        ("click.hot.cpu_ratio(net, other) >= 10", "measured nowhere"),
        ("t.cpu_ratio(net, nobody) >= 1", "no model is called 'nobody'"),
        ("# nothing\n", "holds no goal"),
    ],
)
def test_a_line_that_says_nothing_is_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(BadInput, match=word):
        goals_in(tmp_path, text)


def test_goals_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_goals(tmp_path / "none.txt", TASKS, NAMES)


def a_result(ours: list[float], theirs: list[float], same: benchmark.Agreement | None = None, **more: object) -> Result:
    both = [
        Candidate("net", [("t", lambda: None)], 1.0, peer="net (published)", same=True),
        Candidate("net (published)", [("t", lambda: None)], 1.0),
    ]
    agreements = {} if same is None else {"net": same}
    return Result("encode", both, [a_pass(ours, theirs)], agreements=agreements, **more)  # type: ignore[arg-type]


def a_goal(limit: float, quantity: str = "cpu_ratio", ours: str = "net") -> Goal:
    return Goal("text", "t", quantity, ours, "net", limit)  # type: ignore[arg-type]


def test_a_goal_must_hold_at_the_first_quartile() -> None:
    result = a_result([1.0] * 5, [1.0, 2.0, 3.0, 3.0, 3.0])
    assert result.found(a_goal(2.0)) == 2.0
    assert [verdict.holds for verdict in judge([a_goal(2.0), a_goal(2.5)], result.found)] == [True, False]


def test_a_goal_for_what_was_not_run_is_neither_met_nor_missed() -> None:
    verdict = judge([a_goal(1.0, ours="other")], a_result([1.0], [2.0]).found)[0]
    assert verdict.value is None
    assert not verdict.holds
    assert str(verdict).startswith("not measured")


def test_no_ratio_is_given_to_a_network_that_computes_something_else() -> None:
    result = a_result([1.0], [9.0], benchmark.Agreement(0.1, 0.9, 5, 10))
    assert result.ratio("net", "t") is None
    assert result.found(a_goal(1.0)) == 0.0
    head, lines = rows(result, 0)
    assert "NOT THE SAME" in lines[0][head.index("flags")]
    assert lines[0][head.index("x t")] == "-"


def test_memory_is_compared_too() -> None:
    memory = {"net": {"peak": 100.0}, "net (published)": {"peak": 250.0}}
    assert a_result([1.0], [1.0], memory=memory).found(a_goal(2.0, "memory_ratio")) == 2.5


# --- the table -----------------------------------------------------------------------------------------------------


def test_a_line_tells_times_arithmetic_and_what_is_left_to_win() -> None:
    result = a_result(
        [0.5, 0.5],
        [1.5, 1.5],
        benchmark.Agreement(2e-6, 1.0, 3, 1000),
        probes=[machine.Probe(1, 200.0, None, 10.0)],
        gflop={"net": {"t": 50.0}},
    )
    head, lines = rows(result, 0)
    line = dict(zip(head, lines[0], strict=True))
    assert line["x t"] == "3.00 [3.00-3.00]"
    assert line["t cpu-ms"] == "500.0"
    assert line["GFLOP"] == "50"
    assert line["% of floor"] == "50"
    assert line["max|d|"] == "2.0e-06"
    assert line["flags"] == "3 of 1000 voxels differ"


def test_the_data_hold_every_sample() -> None:
    data = json.loads(json.dumps(as_data(a_result([1.0, 2.0], [2.0, 2.0]))))
    seconds = data["passes"][0]["seconds"]["net"]["t"]
    assert [sample["cpu"] for sample in seconds] == [1.0, 2.0]
    assert data["passes"][0]["ratios"]["net"]["t"]["cpu"]["middle"] == 1.5
    assert data["candidates"]["net"]["peer"] == "net (published)"


# --- the machine ---------------------------------------------------------------------------------------------------


def test_the_probe_reports_positive_rates() -> None:
    found = machine.probe(1, seconds=0.01)
    assert found.fp32 > 0
    assert found.copy > 0
    assert found.int8 is None or found.int8 > 0
    about = machine.describe()
    assert about["cores"] >= 1
    text = machine.headline(about, [found])
    assert "GFLOP/s" in text
    assert f"torch {about['versions']['torch']}" in text


@pytest.mark.skipif(not processes.MEASURABLE, reason="this system does not tell what a process took")
def test_a_process_is_measured_with_its_threads() -> None:
    code = (
        "import os; from volsam.evaluation.processes import own_peak; before = own_peak(); x = bytearray(50 << 20);"
        "print(os.environ['OMP_NUM_THREADS'], own_peak() - before > 45, own_peak() < 150)"
    )
    found = processes.run([sys.executable, "-c", code], threads=2)
    assert found.output.split() == ["2", "True", "True"]  # and not what this process holds
    assert found.cpu > 0


@pytest.mark.skipif(not processes.MEASURABLE, reason="this system does not tell what a process took")
def test_a_process_that_fails_is_reported_by_its_last_line() -> None:
    with pytest.raises(BadInput, match="no such luck"):
        processes.run([sys.executable, "-c", "raise SystemExit('no such luck')"])
