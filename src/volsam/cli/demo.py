"""`volsam demo`: an invented scan, one click, a mask and a picture, by the way that `volsam segment` goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volsam.cli.console import Steps
from volsam.cli.options import Device, Model

Folder = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Made if it does not exist.")]

# The organ that is clicked: its value among the labels of the sample.
ORGAN = 4


def demo(output: Folder = Path("demo"), model: Model = None, device: Device = "auto") -> None:
    """Make a sample volume, segment one organ with one click, write mask and picture."""
    import numpy as np

    from volsam.cli.job import Job, carry_out
    from volsam.data.io import write_volume
    from volsam.data.synthetic import sample_volume
    from volsam.evaluation.metrics import dice

    _make(output)
    steps = Steps()
    with steps("sample"):
        scan, labels = sample_volume()
        organ = labels.data[0] == ORGAN
        image = output / "sample.nii.gz"
        write_volume(scan, image)
        write_volume(labels, output / "sample_labels.nii.gz")
    point = ",".join(map(str, np.argwhere(organ).mean(axis=0).round().astype(int)))
    picture = output / "sample.png"
    job = Job(image, points=(point,), model=model, device=device, output=output / "sample_mask.nii.gz", preview=picture)
    typer.echo(f"volsam segment {image} -p {point} -o {job.mask_file} --preview {picture}")
    outcome = carry_out(job, steps)
    for line in outcome.lines():
        typer.echo(line)
    typer.echo(f"Dice         {dice(outcome.mask.data[0] > 0, organ):.2f} with the known object")
    typer.echo(f"seconds      {steps}")


def _make(folder: Path) -> None:
    from volsam.errors import BadInput

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"-o {folder}: the folder cannot be made ({error.strerror}): give another one") from None
