"""`volsam distill`: a small promptable network that learns from a large one."""

from __future__ import annotations

from typing import Annotated

import typer

from volsam.cli.options import Device
from volsam.cli.train import (
    Board,
    ConfigFile,
    DatasetFolder,
    Dry,
    FoldNumber,
    Order,
    PatientOption,
    RunOutput,
    SetOption,
    TrainCases,
    begin,
    gathered,
    require_extra,
)
from volsam.errors import BadInput

STUDENTS = ("fastsam3d",)

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="Of the student: fastsam3d.")]
Teacher = Annotated[
    str, typer.Option("--teacher", metavar="MODEL", help="A promptable 3D model, by name, file or folder of a run.")
]


def distill(
    recipe: Recipe,
    dataset: DatasetFolder,
    teacher: Teacher,
    output: RunOutput,
    train_cases: TrainCases = None,
    fold: FoldNumber = "0",
    patient: PatientOption = "",
    config: ConfigFile = None,
    settings: SetOption = None,
    device: Device = "auto",
    tensorboard: Board = False,
    dry: Dry = False,
) -> None:
    """Let a student imitate its teacher layer by layer, and then learn from simulated clicks.

    Example: volsam distill fastsam3d Dataset001_CT --teacher sam-med3d-turbo -o runs/student
    """
    require_extra()
    if recipe not in STUDENTS:
        raise BadInput(f"a student is trained as {', '.join(STUDENTS)}, got {recipe!r}; see also `volsam train`")
    given = {**gathered(config, settings or []), "teacher": teacher}
    order = Order(recipe, dataset, output, given, None, train_cases, fold, patient, device)
    begin(order, tensorboard, dry)
