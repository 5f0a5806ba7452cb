"""`volsam bench`: how fast this is, beside the published networks, in one run and with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volsam.cli.console import Steps, fail, say, table
from volsam.cli.options import Engine
from volsam.errors import BadInput, NotSupported

if TYPE_CHECKING:
    from volsam.evaluation.gate import Goal
    from volsam.evaluation.scoreboard import Result
    from volsam.recipes.bench.suites import Settings, Suite

QUICK_ROUNDS, FULL_ROUNDS = 3, 9


def bench(
    suite: Annotated[str, typer.Option(metavar="click|encode|volume|train|start", help="One or more, by commas.")] = "",
    models: Annotated[
        str, typer.Option(metavar="A,B", help="Networks to time; those of a quick look if not given.")
    ] = "",
    against: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="Compare all with one published network, or with a checkout.")
    ] = "",
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where networks run.")] = "cpu",
    threads: Annotated[
        str, typer.Option(metavar="1,2", help="A pass for each: one thread, with --full all cores too.")
    ] = "",
    engine: Engine = None,
    rounds: Annotated[int | None, typer.Option(metavar="N", min=1, help="Of a pass: 3, with --full 9.")] = None,
    size: Annotated[
        int | None, typer.Option(metavar="N", min=16, help="Edge of the cubes of 3D networks: 128.")
    ] = None,
    volume: Annotated[str, typer.Option(metavar="Z,Y,X", help="Of the volume suite: slices, or a whole scan.")] = "",
    dtype: Annotated[str, typer.Option(metavar="fp32|bf16|int8", help="Of our side.")] = "fp32",
    full: Annotated[bool, typer.Option("--full", help="All suites and networks: takes an hour on a CPU.")] = False,
    seed: Annotated[int, typer.Option(metavar="S", help="Of weights and order.")] = 0,
    to: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every sample.")] = None,
    gate: Annotated[Path | None, typer.Option(metavar="FILE", help="Fail unless these goals hold.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Say what can be compared, and run nothing.")] = False,
) -> None:
    """Time our networks beside the published ones: same weights, same input, in one run.

    Without options, a quick look in under a minute: FastSAM3D's first click and further clicks.
    """
    settings = _settings(against, device, size, volume, dtype, engine, seed)
    suites = _suites(suite, full)
    if listing:
        _list(settings)
        return
    goals = _goals(gate)
    chosen = {one: _models(one, models, full, settings) for one in suites}
    passes = _threads(threads, full)
    _check_references(chosen, settings)

    from volsam.evaluation import machine, scoreboard
    from volsam.recipes.bench.race import race

    with Steps()("probing the machine"):
        probes = [machine.probe(count, device) for count in passes]
    about = machine.describe(device)
    typer.echo(machine.headline(about, probes))
    results = []
    for one, names in chosen.items():
        if not names:
            continue
        found = race(one, names, settings, passes, rounds or (FULL_ROUNDS if full else QUICK_ROUNDS), probes, Steps())
        results.append(found)
        _show(found)
    if to is not None:
        content = {"machine": about, "probes": machine.as_data(probes), "suites": [*map(scoreboard.as_data, results)]}
        _write(to, content)
    _conclude(results, goals)


# --- what was asked ------------------------------------------------------------------------------------------------


def _settings(
    against: str, device: str, size: int | None, volume: str, dtype: str, engine: str | None, seed: int
) -> Settings:
    from volsam.evaluation.published.checkout import Checkout
    from volsam.recipes.bench import compared
    from volsam.recipes.bench.suites import Settings
    from volsam.recipes.engine import choose_engine
    from volsam.recipes.recipe import choose_device

    if dtype == "int8":
        raise NotSupported(
            "--dtype int8 needs an engine with int8 networks, which this version has not: use fp32 or bf16"
        )
    if dtype not in ("fp32", "bf16"):
        raise BadInput(f"--dtype is fp32, bf16 or int8, got {dtype!r}")
    if size is not None and size % 16:
        raise BadInput(f"--size must be a multiple of 16, the patch of these networks, got {size}")
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise BadInput(f"--device is cpu or cuda, got {device!r}")
    checkout = Checkout(Path(against)) if against and Path(against).is_dir() else None
    if against and checkout is None and ("/" in against or against not in compared.PAIRS):
        raise BadInput(
            f"--against {against}: neither a folder nor a published network; there are: {', '.join(compared.present())}"
        )
    shape = _numbers(volume, "--volume", 3) if volume else None
    chosen = choose_engine(engine, device)
    if chosen == "graphs":
        raise NotSupported("the engine graphs cannot be raced, since its answers are of bfloat16: take auto or torch")
    return Settings(
        device=choose_device(device),
        size=size,
        volume=None if shape is None else (shape[0], shape[1], shape[2]),
        dtype="bf16" if dtype == "bf16" else "fp32",
        checkout=checkout,
        against=None if checkout or not against else compared.pair_of(against).name,
        engine=chosen,
        seed=seed,
    )


def _numbers(text: str, option: str, count: int | None = None) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or (count is not None and len(found) != count):
        raise BadInput(f"{option} wants {count or 'one or more'} whole numbers with commas between, got {text!r}")
    return found


def _suites(text: str, full: bool) -> list[Suite]:
    from volsam.recipes.bench.suites import SUITES

    wanted = [word for word in text.split(",") if word] or (list(SUITES) if full else ["click"])
    for word in wanted:
        if word not in SUITES:
            raise BadInput(f"--suite is one of {', '.join(SUITES)}, got {word!r}")
    return [suite for suite in SUITES if suite in wanted]


def _models(suite: Suite, text: str, full: bool, settings: Settings) -> list[str]:
    """The networks of a suite; with a checkout those that it holds."""
    from volsam.recipes.bench.compared import OWN
    from volsam.recipes.bench.suites import QUICK, SUITES, models_of

    able = models_of(suite)
    if settings.checkout is not None:
        able = [name for name in able if name in settings.checkout.fits]
    named = [word for word in text.split(",") if word]
    if named:
        known = {name for each in SUITES for name in models_of(each)}
        for word in named:
            if word not in known:
                raise BadInput(f"--models: no network is called {word!r}; there are: {', '.join(sorted(known))}")
        return [name for name in able if name in named]
    if suite == "start" and settings.checkout is not None:
        return []
    if full or settings.checkout is not None:
        return able
    return [name for name in able if name in QUICK[suite] and (settings.against is None or name != OWN)]


def _threads(text: str, full: bool) -> list[int]:
    from volsam.evaluation.machine import cores

    return list(dict.fromkeys(_numbers(text, "--threads") if text else [1, *([cores()] if full else [])]))


def _goals(path: Path | None) -> list[Goal]:
    if path is None:
        return []
    from volsam.evaluation.gate import read_goals
    from volsam.recipes.bench.compared import OWN, PAIRS
    from volsam.recipes.bench.suites import TASKS

    return read_goals(path, {task for tasks in TASKS.values() for task in tasks}, {*PAIRS, OWN})


def _check_references(chosen: dict[Suite, list[str]], settings: Settings) -> None:
    """No ratio without the published network's weight and cost; a checkout is checked when it is built."""
    from volsam.recipes.bench import compared

    names = {name for some in chosen.values() for name in some}
    if not names:
        raise BadInput("nothing is left to time: the suites and models that were named have none in common")
    peers = {settings.against} if settings.against else set()
    if compared.OWN in names:
        peers.add(compared.OWN_PEER)
    with Steps()("weighing the references"):
        for name in sorted((names | peers) - {compared.OWN}):
            compared.check(compared.pair_of(name))


def _list(settings: Settings) -> None:
    """What there is; files of a checkout are looked at, none is run."""
    from volsam.evaluation.published.figures import PUBLISHED
    from volsam.recipes.bench import compared
    from volsam.recipes.bench.suites import SUITES, models_of

    rows = []
    for name in [*compared.present(), compared.OWN]:
        suites = ", ".join(suite for suite in SUITES if name in models_of(suite))
        parts = [] if name == compared.OWN else [PUBLISHED[part] for part in compared.PAIRS[name].figures]
        rows.append(
            (
                name,
                suites,
                " + ".join(part.parameters for part in parts) or "-",
                " + ".join(part.gflop or "?" for part in parts) or "-",
            )
        )
    table(("model", "suites", "published: params M", "GFLOP"), rows)
    if settings.checkout is not None:
        typer.echo(f"{settings.checkout.path} holds {' and '.join(settings.checkout.fits)}")


# --- what was found ------------------------------------------------------------------------------------------------


def _show(result: Result) -> None:
    from volsam.evaluation.scoreboard import rows

    for which, measured in enumerate(result.passes):
        kind = "x: processor seconds" if measured.threads == 1 else "x: wall, for information"
        typer.echo(f"\n{result.suite}, {measured.threads} thread{'s' if measured.threads > 1 else ''} ({kind})")
        table(*rows(result, which))


def _write(path: Path, content: dict[str, Any]) -> None:
    from volsam.data.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {path}")


def _conclude(results: list[Result], goals: list[Goal]) -> None:
    """Print verdicts; end with status 1 where two networks differ or a goal is missed."""
    from volsam.evaluation.benchmark import TOLERANCE
    from volsam.evaluation.gate import Verdict

    verdicts = []
    for goal in goals:
        values = [value for result in results if (value := result.found(goal)) is not None]
        verdicts.append(Verdict(goal, values[0] if values else None))
    if verdicts:
        typer.echo("")
    for verdict in verdicts:
        typer.echo(str(verdict))
    different = {name for result in results for name in result.agreements if result.differs(name)}
    if different:
        fail(f"{', '.join(sorted(different))}: not within {TOLERANCE:g} of the published network with the same weights")
    if goals and all(verdict.value is None for verdict in verdicts):
        fail("none of the goals was measured: choose --suite and --models that they speak of")
    missed = [verdict for verdict in verdicts if verdict.value is not None and not verdict.holds]
    if missed:
        fail(f"{len(missed)} of {len(goals)} goals are missed, first: {missed[0].goal.text}")
