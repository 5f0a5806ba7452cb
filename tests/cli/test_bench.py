"""`volsam bench` on networks of toy size; what it finds is not looked at, only that it measures and judges."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import Result

from volsam.evaluation import processes
from volsam.evaluation.gate import read_goals
from volsam.evaluation.published import figures, sam
from volsam.recipes.bench import child, compared, suites

pytestmark = pytest.mark.slow

Type = Callable[..., Result]
TASKS = {task for tasks in suites.TASKS.values() for task in tasks}
GOALS = Path(__file__).parents[2] / "benchmarks" / "originals" / "goals.txt"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM-Med3D at 32³ with two narrow blocks; no processes."""

    def build(edge: int) -> sam.Sam:
        return sam.Sam(3, edge, width=48, encoder={"width": 24, "depth": 2, "heads": 2, "wide": (1,)})

    monkeypatch.setitem(compared.PAIRS, "sam-med3d", replace(compared.PAIRS["sam-med3d"], size=32, build=build))
    monkeypatch.setattr(processes, "MEASURABLE", False)


def one_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    return lines[0]


RUN = ("bench", "--suite", "encode", "--models", "sam-med3d", "--threads", "1", "--rounds", "2")


@pytest.mark.usefixtures("toy")
def test_a_table_and_every_sample(type_: Type, tmp_path: Path) -> None:
    result = type_(*RUN, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    head, ours, theirs = result.stdout.splitlines()[-3:]
    assert head.split()[0] == "model"
    assert ours.split()[0] == theirs.split()[0] == "sam-med3d"
    assert "GFLOP/s" in result.stdout
    data = json.loads((tmp_path / "out.json").read_text())
    suite = data["suites"][0]
    assert suite["candidates"]["sam-med3d"]["agreement"]["holds"]
    assert len(suite["passes"][0]["seconds"]["sam-med3d (published)"]["encode"]) == 2
    assert data["machine"]["cores"] >= 1


@pytest.mark.usefixtures("toy")
def test_goals_that_hold_and_goals_that_do_not(type_: Type, tmp_path: Path) -> None:
    gate = tmp_path / "goals.txt"
    gate.write_text("encode.cpu_ratio(sam-med3d, sam-med3d) >= 0.0001\nclick.warm.cpu_ratio(sam, sam) >= 5\n")
    result = type_(*RUN, "--gate", gate)
    assert result.exit_code == 0, result.output
    assert "holds         encode.cpu_ratio" in result.stdout
    assert "not measured  click.warm" in result.stdout
    gate.write_text("encode.cpu_ratio(sam-med3d, sam-med3d) >= 100000\n")
    assert "1 of 1 goals are missed, first: encode.cpu_ratio" in one_line(type_(*RUN, "--gate", gate))
    gate.write_text("click.warm.cpu_ratio(sam, sam) >= 5\n")
    assert "none of the goals was measured" in one_line(type_(*RUN, "--gate", gate))


@pytest.mark.usefixtures("toy")
def test_a_network_that_computes_something_else_gets_no_ratio(type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    build = compared.build

    def spoilt(pair: compared.Pair, *sizes: int, **more: object) -> compared.Built:
        found = build(pair, *sizes, **more)  # type: ignore[arg-type]
        assert found.ours is not None
        found.ours.get_parameter("encoder.neck.norm2.bias").data += 0.01
        return found

    monkeypatch.setattr(compared, "build", spoilt)
    result = type_(*RUN)
    assert "sam-med3d: not within 0.0001 of the published network" in one_line(result)
    assert "NOT THE SAME" in result.stdout


@pytest.mark.usefixtures("toy")
def test_a_reference_that_is_not_the_published_network_gets_no_ratio(
    type_: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(figures.PUBLISHED, "sam-med3d.encoder", figures.Printed("90.0", "368.6"))
    result = type_(*RUN)
    assert "the reference sam-med3d.encoder has 92.925 M parameters, the original 90.0" in one_line(result)
    assert "ms" not in result.stdout


def test_help_names_the_numbers(type_: Type) -> None:
    said = type_("bench", "--help").stdout
    assert "<int" not in said
    assert {line.split()[2] for line in said.splitlines() if "--rounds" in line or "--size" in line} == {"N"}


def test_the_list_runs_nothing(type_: Type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("built while listing")

    monkeypatch.setattr(compared, "build", refuse)
    monkeypatch.setattr(figures, "count", refuse)
    home = tmp_path / "segment_anything" / "modeling"
    home.mkdir(parents=True)
    for name in ("image_encoder", "prompt_encoder", "mask_decoder", "transformer"):
        (home / f"{name}.py").write_text("raise RuntimeError('this was executed')\n")
    result = type_("bench", "--list", "--against", tmp_path)
    assert result.exit_code == 0, result.output
    assert {line.split()[0] for line in result.stdout.splitlines()} >= {"fastsam3d", "sam-med3d", "sam", "volsam-s"}
    assert "holds sam and sam-256" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--suite", "speed"), "--suite is one of click, encode"),
        (("--models", "sam4"), "no network is called 'sam4'; there are: "),
        (("--threads", "two"), "--threads wants one or more whole numbers"),
        (("--volume", "1,2"), "--volume wants 3 whole numbers"),
        (("--size", "100"), "--size must be a multiple of 16"),
        (("--dtype", "int8"), "--dtype int8 needs an engine"),
        (("--dtype", "fp64"), "--dtype is fp32, bf16 or int8"),
        (("--device", "tpu"), "--device is cpu or cuda"),
        (("--against", "nowhere"), "neither a folder nor a published network"),
        (("--gate", "nowhere.txt"), "the gate nowhere.txt cannot be read"),
        (("--suite", "train", "--models", "autosam"), "nothing is left to time"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(type_: Type, words: tuple[str, ...], said: str) -> None:
    assert said in one_line(type_("bench", *words))


def test_the_goals_of_this_project_are_understood() -> None:
    goals = read_goals(GOALS, TASKS, {*compared.PAIRS, compared.OWN})
    assert {(goal.task, goal.ours) for goal in goals} >= {("train", "sam-med3d"), ("click.warm", "fastsam3d")}
    for goal in goals:
        assert goal.ours in suites.models_of(goal.task.partition(".")[0])  # type: ignore[arg-type]


def test_a_quick_look_takes_only_what_its_suite_has() -> None:
    for suite, names in suites.QUICK.items():
        assert set(names) <= set(suites.models_of(suite))


# --- in processes of their own -------------------------------------------------------------------------------------


def test_memory_is_that_of_one_network_alone(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {
        "suite": "encode",
        "name": "fastsam3d",
        "which": "ours",
        "device": "cpu",
        "size": 32,
        "volume": None,
        "dtype": "fp32",
        "against": None,
    }
    child.main(["memory", json.dumps(asked)])
    assert json.loads(capsys.readouterr().out)["peak"] > 100


@pytest.mark.slow
@pytest.mark.skipif(not processes.MEASURABLE, reason="this system does not tell what a process took")
def test_processes_go_from_their_start_to_the_same_mask(type_: Type, tmp_path: Path) -> None:
    file = tmp_path / "start.json"
    result = type_("bench", "--suite", "start", "--models", "fastsam3d", "--threads", 1, "--rounds", 1, "--json", file)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())["suites"][0]
    assert set(found["candidates"]) == {"fastsam3d", "fastsam3d (published)"}
    assert all(side["memory_mib"]["peak"] > 100 for side in found["candidates"].values())
