"""`volsam predict`: one model over many images, one file of labels or of a mask for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volsam.cli.console import Steps, explained, fail, say
from volsam.cli.options import Device
from volsam.errors import BadInput

if TYPE_CHECKING:
    from volsam.inference.automatic import AutomaticModel
    from volsam.volume import Volume

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A name from `volsam models list`, or a weights file.")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Files, or folders of DICOM series.")]
Folder = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where NAME.nii.gz goes, for each image.")]
PromptFolder = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="DIR", help="For models that take prompts: a folder with NAME.json for each."),
]
InPlane = Annotated[
    str, typer.Option("--plane", metavar="auto|axial|coronal|sagittal", help="Of the slices that the model looks at.")
]
Stride = Annotated[
    int,
    typer.Option(
        "--stride", metavar="N", help="For models of stacks: slices from one stack to the next, 1 as published."
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
    device: Device = "auto",
    overwrite: Again = False,
) -> None:
    """Label images with an automatic model, or segment them with prompts from files; goes on where it was stopped.

    Example: volsam predict my-ma-sam scans/*.nii.gz -o labels
    """
    from volsam.data.io import volume_name

    targets = {image: output / f"{volume_name(image)}.nii.gz" for image in images}
    _require_apart(targets)
    steps = Steps()
    with steps("model"):
        make = _maker(model, device, prompts, plane, stride)
    output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number, (image, target) in enumerate(targets.items(), start=1):
        place = f"{number}/{len(targets)}"
        if target.exists() and not overwrite:
            typer.echo(f"{place} {target} is there already")
            continue
        try:
            with steps("images"):
                said = make(image, target)
        except Exception as error:  # one image that cannot be read must not end the work on the others
            failed += 1
            say(f"{place} error: {' '.join(explained(error).split())}")
        else:
            typer.echo(f"{place} {target} {said}")
    if failed:
        fail(f"{failed} of {len(targets)} images failed, see above; the others are in {output}")


def _require_apart(targets: dict[Path, Path]) -> None:
    """No two images of one name, and no image replaced by its labels."""
    seen: dict[Path, Path] = {}
    for image, target in targets.items():
        if target in seen:
            raise BadInput(
                f"{seen[target]} and {image} would both be written to {target}: give them one after the other"
            )
        if target.resolve() == image.resolve():
            raise BadInput(f"{image} would be replaced by its own labels: give another folder with -o")
        seen[target] = image


def _maker(name: str, device: str, prompts: Path | None, plane: str, stride: int) -> Callable[[Path, Path], str]:
    """What makes one file of one image, and says what is in it."""
    from volsam.recipes.importing import load_automatic
    from volsam.recipes.recipe import choose_device, load_model, shipped

    automatic = None if name in shipped() else load_automatic(name, choose_device(device))
    if automatic is not None:
        if prompts is not None:
            raise BadInput(f"{name} is automatic and takes no prompts: leave --prompts out")
        return lambda image, target: _labelled(automatic, image, target, plane, stride)
    if prompts is None:
        raise BadInput(f"{name} needs prompts: give a folder with a file NAME.json for each image by --prompts")
    asked = load_model(name, device=device)

    def masked(image: Path, target: Path) -> str:
        from volsam.cli.job import Job, carry_out
        from volsam.data.io import volume_name

        file = prompts / f"{volume_name(image)}.json"
        outcome = carry_out(Job(image=image, prompts=file, output=target, plane=plane), Steps(), asked)
        return f"{outcome.millilitres:,.2f} ml, expected Dice {outcome.quality:.2f}"

    return masked


def _labelled(model: AutomaticModel, image: Path, target: Path, plane: str, stride: int) -> str:
    """Labels of a volume; the names of the labels lie beside them, once."""
    from volsam.data.files import replacing
    from volsam.data.io import read_grid, read_volume, volume_name, write_volume
    from volsam.data.memory import require_room

    require_room(read_grid(image), volume_name(image))
    labels = model.segment(read_volume(image), plane, stride=stride)
    write_volume(labels, target)
    names = dict(zip(model.labels, model.values, strict=True))
    with replacing(target.parent / "labels.json") as unfinished:
        unfinished.write_text(json.dumps(names, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return _in_words(labels, model)


def _in_words(labels: Volume, model: AutomaticModel) -> str:
    """The volume of each label that was found."""
    import numpy as np

    counts = np.bincount(labels.data.ravel(), minlength=max(model.values) + 1)
    found = [
        f"{name} {counts[value] * labels.grid.voxel_volume / 1000:,.1f} ml"
        for name, value in zip(model.labels, model.values, strict=True)
        if value and counts[value]
    ]
    return ", ".join(found) or "nothing found"
