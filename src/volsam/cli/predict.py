"""`volsam predict`: one model over many images, one file of labels or of a mask for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from volsam.cli.console import Steps, explained, fail, no_room, say
from volsam.cli.options import Device, InPlane, ModelName, Stride
from volsam.errors import BadInput

Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE",
        help="Files, folders of DICOM series, or folders of volumes, named as nnU-Net does or plainly.",
    ),
]
Folder = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        metavar="DIR",
        help="Where NAME.nii.gz goes for each image: NAME is that of the file without its ending, and in a folder of "
        "nnU-Net without the channel (CASE of CASE_0000).",
    ),
]
PromptFolder = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="DIR",
        help="For models that take prompts: a folder with NAME.json for each image, NAME as in the output or as the "
        "image's file.",
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part", metavar="K/N", help="Only the K-th of N parts of the images, for many processes or machines."
    ),
]
Again = Annotated[bool, typer.Option("--overwrite", help="Also make what is there already.")]


def predict(
    model: ModelName,
    images: Images,
    output: Folder,
    prompts: PromptFolder = None,
    plane: InPlane = "auto",
    stride: Stride = 1,
    part: Part = None,
    device: Device = "auto",
    overwrite: Again = False,
) -> None:
    """Label images with an automatic model, or segment them with prompts from files; goes on where it was stopped.

    After --overwrite was stopped, the same command without it makes only what was not yet made anew.

    Example: volsam predict my-ma-sam scans/*.nii.gz -o labels
    """
    from volsam.cli.asking import fingerprint
    from volsam.cli.batch import wanted_of, worked
    from volsam.cli.images import cases_of, part_of, require_apart
    from volsam.cli.journal import Journal
    from volsam.cli.workers import worker_of

    if output.is_file():
        raise BadInput(f"-o {output} is a file: give a folder, where NAME.nii.gz goes for each image")
    if prompts is not None and not prompts.is_dir():
        raise BadInput(f"--prompts {prompts} is no folder: give one with a file NAME.json for each image")
    if prompts is not None and prompts.resolve() == output.resolve():
        raise BadInput(
            f"-o {output} is the folder of the prompts, which NAME.json there would replace: give another one"
        )
    steps = Steps()
    with steps("model"):
        worker = worker_of(model, device, output, prompts, plane, stride)
        made_by = {"model": model, "weights": fingerprint(model), "plane": plane, "stride": stride}
    cases = cases_of(images, worker.channels, output)
    require_apart({case: output / f"{case.name}.nii.gz" for case in cases})
    cases = part_of(cases, part)
    journal = Journal(output, made_by, part, anew=overwrite)
    if more := next((case for case in cases if len(case.images) > worker.channels), None):
        say(f"warning: {model} looks at {worker.channels} of the {len(more.images)} channels of {more.name}, the first")
    failed = 0
    with steps("images"):
        for number, wanted in enumerate(worked(worker, wanted_of(cases, output, worker, journal, overwrite)), start=1):
            place = f"{number}/{len(cases)}"
            if wanted.error is not None:
                if no_room(wanted.error):
                    raise wanted.error
                failed += 1
                why = " ".join(explained(wanted.error).split())
                say(f"{place} error: {why}")
                journal.add(replace(wanted.line, error=why))
            elif wanted.done:
                typer.echo(f"{place} {wanted.target} is there already")
            else:
                typer.echo(f"{place} {wanted.target} {wanted.said}")
                journal.add(wanted.line)
    if failed and failed == len(cases):
        fail(f"{'the image' if failed == 1 else f'all {failed} images'} failed, see above")
    if failed:
        fail(f"{failed} of {len(cases)} images failed, see above; the others are in {output}")
