"""`volsam segment`: one object of one volume, from a few clicks to a mask beside the image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volsam.cli.console import Steps
from volsam.cli.options import Device, Engine, InPlane, Model, Space

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="NIfTI, NRRD, MetaImage, MGH, DICOM file or folder.")]
Points = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        "--point",
        metavar="I,J,K[,-]",
        help="A point in the object, or outside it with ',-' behind. In voxels of the file, from 0, fractions allowed; "
        "see --space. May be given several times.",
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option("--box", metavar="I0,J0,K0,I1,J1,K1", help="Two opposite corners of a box around the object."),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE.json",
        help='{"space": "voxel|ras|lps", "prompts": [{"type": "point|box|scribble|mask", ...}, ...]}. These come '
        "before --box, and --box before -p.",
    ),
]
InSpace = Annotated[Space, typer.Option("--space", help="What -p and --box mean: voxels, or mm in RAS+ or LPS+.")]
MaskFile = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="MASK", help="By default <name>_mask.nii.gz beside IMAGE.")
]
ProbabilityFile = Annotated[
    Path | None,
    typer.Option(
        "--uncertainty",
        metavar="FILE",
        help="Also write the probability of the object in each voxel: float32, 0 to 1, on the image's grid, the mean "
        "over 24 clicks drawn from the mask. The spread among them, and where one more click would tell most, are "
        "printed.",
    ),
]
PictureFile = Annotated[
    Path | None, typer.Option("--preview", metavar="FILE.png", help="Also draw three planes with the mask's outline.")
]
Frame = Annotated[
    int | None,
    typer.Option(
        "--frame",
        metavar="N",
        help="Which time point of a file with several, from 0; without it such a file is refused.",
    ),
]
Channel = Annotated[
    int | None,
    typer.Option("--channel", metavar="N", help="Which channel of a file with several, from 0; without it the first."),
]


def segment(
    image: Image,
    point: Points = None,
    box: Boxes = None,
    prompts: Prompts = None,
    space: InSpace = Space.voxel,
    model: Model = None,
    device: Device = "auto",
    engine: Engine = None,
    output: MaskFile = None,
    uncertainty: ProbabilityFile = None,
    preview: PictureFile = None,
    frame: Frame = None,
    channel: Channel = None,
    plane: InPlane = "auto",
) -> None:
    """Segment one object from clicks, boxes, scribbles or a starting mask.

    Example: volsam segment ct.nii.gz -p 120,88,40 -p 131,90,44,- --preview ct.png
    """
    steps = Steps()
    with steps("start"):
        from volsam.cli.job import Job, carry_out

    job = Job(
        image=image,
        points=tuple(point or ()),
        boxes=tuple(box or ()),
        prompts=prompts,
        space=space.value,
        model=model,
        device=device,
        engine=engine,
        output=output,
        uncertainty=uncertainty,
        preview=preview,
        frame=frame,
        channel=channel,
        plane=plane,
    )
    outcome = carry_out(job, steps)
    for line in outcome.lines():
        typer.echo(line)
    typer.echo(f"seconds      {steps}")
