"""What a training run tells on the terminal: what it takes, how far it is, and what came out."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from volsam.cli.console import on_terminal, say, table

if TYPE_CHECKING:
    from volsam.recipes.methods.runs import Job
    from volsam.training.loop import Progress
    from volsam.training.run import Record


def prospect(job: Job, record: Record, found: Any, test: int) -> list[str]:
    """What a run sees, learns and takes, in lines."""
    plan, config = job.plan, job.config
    spacing = plan.preparation.spacing
    seen = "their own voxels" if spacing is None else " × ".join(f"{size:.2f}" for size in spacing) + " mm"
    schedule = f"{config.minutes:g} minutes" if config.minutes else f"{config.max_steps:,} steps"
    return [
        f"{job.method.title} on {record.dataset}: {len(plan.labels) - 1} class{'es' * (len(plan.labels) > 2)} "
        f"({', '.join(plan.labels[1:6])}{', …' * (len(plan.labels) > 6)})",
        f"cases: {len(record.training)} to learn from, {len(record.validation)} to choose the best weights by"
        + (f", {test} left for the test" if test else ""),
        f"seen in {seen}, {' × '.join(map(str, plan.patch))} at once, {config.batch_size} per step, {schedule}",
        f"weights: {found.trained:,} learn, {found.frozen:,} are frozen"
        + (f"; begins with {record.init.name}" if record.init.name else ""),
        "expected: "
        + ("" if found.memory is None else f"about {found.memory:.1f} GB of memory, ")
        + f"{_minutes(found.seconds)} on {job.device}",
    ]


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_of(folder: Path) -> Callable[[Progress], None]:
    """Progress: a bar on a terminal, and a line for every tenth of the way otherwise."""
    if on_terminal():
        return _bar()
    told = [-1]

    def tell(now: Progress) -> None:
        tenth = int(10 * now.part)
        if tenth > told[0] or now.part >= 1:
            told[0] = tenth
            say(
                f"step {now.step:,}: loss {now.loss:.3f}, {now.step / max(now.seconds, 1e-9):.2f} steps/s, "
                f"{_minutes(now.left)} left"
            )

    return tell


def _bar() -> Callable[[Progress], None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}"),
        BarColumn(),
        TextColumn("{task.fields[rate]:.1f} steps/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    line = bar.add_task("training", total=1.0, step=0, loss=0.0, rate=0.0)

    def tell(now: Any) -> None:
        rate = now.step / max(now.seconds, 1e-9)
        bar.update(line, completed=min(1.0, now.part), step=now.step, loss=now.loss, rate=rate)
        if now.part >= 1:
            bar.stop()

    return tell


def board(folder: Path) -> Callable[[Mapping[str, float], int], None]:
    """Figures of every step for TensorBoard."""
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(str(folder))

    def board(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return board


def conclude(job: Job, done: Record, dataset: Path, test: int) -> None:
    """Say what came out, and how to score it."""
    rows = [["steps", f"{done.steps:,}"], ["minutes", f"{done.minutes:.1f}"]]
    if done.best is not None:
        rows.append([f"Dice of {len(done.validation)} validation cases", f"{done.best:.3f}"])
    table(["trained", job.folder.path.name], rows)
    typer.echo(f"the model: {job.folder.path}")
    if test:
        line = shlex.join(["volsam", "evaluate", str(job.folder.path), str(dataset), "-o", "report"])
        typer.echo(f"score it on the {test} case{'s' * (test > 1)} that it never saw: {line}")
