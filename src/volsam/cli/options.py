"""Options that several commands share, so that they read and behave alike."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Space(str, Enum):
    """What the numbers of a prompt mean."""

    voxel = "voxel"
    ras = "ras"
    lps = "lps"


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|PATH",
        help="A name from `volsam models list`, a weights file, or the file or folder of a run; without it volsam-s.",
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where the network runs; cuda:1 is the second card."),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="auto|torch|openvino|graphs",
        help="What computes the clicks of published 3D models: auto is openvino on a CPU where that is installed; "
        "graphs are recorded CUDA graphs.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
InPlane = Annotated[
    str,
    typer.Option(
        "--plane",
        metavar="auto|axial|coronal|sagittal",
        help="For models of slices: the plane they look at; auto is the one in which the scan was taken.",
    ),
]
Stride = Annotated[
    int,
    typer.Option(
        "--stride", metavar="N", help="For models of stacks: slices from one stack to the next, 1 as published."
    ),
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name from `volsam models list`, a weights file, or the file or folder of a run."
    ),
]
