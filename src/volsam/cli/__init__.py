"""The words a user types. Each subject has its file; whatever is slow to import is imported inside the commands."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

import volsam
from volsam.cli import bench, data, demo, distill, doctor, evaluate, models, predict, segment, serve, train, view
from volsam.cli.console import Command, Group

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"volsam {volsam.__version__}")
        raise typer.Exit


@app.callback()
def start(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error was raised; works anywhere.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Segment Anything for volumes.

    Try: volsam demo
    """


for command in (
    segment.segment,
    view.view,
    predict.predict,
    train.train,
    distill.distill,
    evaluate.evaluate,
    serve.serve,
    demo.demo,
    doctor.doctor,
    bench.bench,
):
    app.command(cls=Command)(command)
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")


def main() -> None:
    """What the console script `volsam` runs."""
    # Waiting threads of OpenMP spin unless told otherwise: two to three times slower where others use the processors.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "--debug" not in sys.argv:
        warnings.simplefilter("ignore")  # of libraries; what a user should know is logged
    app()
