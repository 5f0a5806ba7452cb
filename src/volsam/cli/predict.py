"""`volsam predict`: one model over many images, one file of labels or of a mask for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volsam.cli.console import Steps, explained, fail, no_room, say
from volsam.cli.options import Device
from volsam.errors import BadInput

if TYPE_CHECKING:
    from volsam.data.dataset import Case
    from volsam.inference.automatic import AutomaticModel
    from volsam.volume import Volume

# Files of nnU-Net end in the number of a channel, in folders of these names.
CHANNEL, FIRST = re.compile(r"(.+)_(\d{4})"), "_0000"
OF_NNUNET = ("imagesTr", "imagesTs", "imagesVa")
# Names of files in a warning.
SHOWN = 5
# Beside the labels: what made them.
MADE_BY = "made_by.json"
# In it: that labels were there before, so that those older than this file are of something else.
ANEW = "anew"

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name from `volsam models list`, a weights file, or the file or folder of a run."
    ),
]
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

    After --overwrite was stopped, the same command without it makes only what was not yet made anew.

    Example: volsam predict my-ma-sam scans/*.nii.gz -o labels
    """
    from volsam.cli.asking import fingerprint

    if output.is_file():
        raise BadInput(f"-o {output} is a file: give a folder, where NAME.nii.gz goes for each image")
    if prompts is not None and not prompts.is_dir():
        raise BadInput(f"--prompts {prompts} is no folder: give one with a file NAME.json for each image")
    steps = Steps()
    with steps("model"):
        make, channels = _maker(model, device, prompts, plane, stride)
        made_by = {"model": model, "weights": fingerprint(model), "plane": plane, "stride": stride}
    cases = cases_of(images, channels)
    targets = {case: output / f"{case.name}.nii.gz" for case in cases}
    _require_apart(targets)
    begun = _require_own(output, made_by, overwrite)
    if more := next((case for case in cases if len(case.images) > channels), None):
        say(f"warning: {model} looks at {channels} of the {len(more.images)} channels of {more.name}, the first")
    failed = 0
    for number, (case, target) in enumerate(targets.items(), start=1):
        place = f"{number}/{len(targets)}"
        if not overwrite and target.exists() and target.stat().st_mtime >= begun:
            typer.echo(f"{place} {target} is there already")
            continue
        try:
            with steps("images"):
                said = make(case, target)
        except Exception as error:  # one image that cannot be read must not end the work on the others
            if no_room(error):
                raise
            failed += 1
            say(f"{place} error: {' '.join(explained(error).split())}")
        else:
            typer.echo(f"{place} {target} {said}")
    if failed == len(targets):
        fail(f"{'the image' if failed == 1 else f'all {failed} images'} failed, see above")
    if failed:
        fail(f"{failed} of {len(targets)} images failed, see above; the others are in {output}")


def cases_of(images: Sequence[Path], channels: int) -> list[Case]:
    """Images as cases: each file one, but `CASE_0000`, `CASE_0001`, ... are the channels of one.

    That is so in folders of nnU-Net, whose files are all named so; elsewhere such a number may well be the patient's,
    so there it is a channel only to a model that looks at several. What a folder holds besides is named in a warning.
    """
    from volsam.data.dataset import Case
    from volsam.data.io import volume_name

    found: dict[tuple[Path, str], list[Path]] = {}
    for given in images:
        files, numbered = _in_folder(given) if given.is_dir() else ([given], False)
        for path in files:
            name, number = volume_name(path), CHANNEL.fullmatch(volume_name(path))
            if number and (numbered or channels > 1 or path.resolve().parent.name in OF_NNUNET):
                name = number.group(1)
            found.setdefault((path.parent, name), []).append(path)
    return [Case(name, tuple(sorted(paths))) for (_, name), paths in found.items()]


def _in_folder(folder: Path) -> tuple[list[Path], bool]:
    """The images in a folder, and whether their names end in the number of a channel; a series is its folder."""
    from volsam.data.dicom import is_slice
    from volsam.data.io import READABLE, volume_name

    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    slices = {file for file in files if is_slice(file)}
    volumes = [file for file in files if file not in slices and file.name.lower().endswith(READABLE)]
    # The second half of a pair is read with its header.
    volumes = [file for file in volumes if file.suffix != ".img" or not file.with_suffix(".hdr").exists()]
    named = [(file, CHANNEL.fullmatch(volume_name(file))) for file in volumes]
    cases = {number[1] for _, number in named if number and f"_{number[2]}" == FIRST}
    if cases:
        taken = [file for file, number in named if number and number[1] in cases]
        why = "they are channels of no CASE_0000"
    elif slices:
        taken, why = [folder], "the folder is that of a DICOM series"
    else:
        # Beside volumes, pictures are drawn of them.
        taken = [file for file in volumes if file.suffix.lower() != ".png"] or volumes
        why = "pictures beside volumes are no images"
    left = [file.name for file in sorted({*volumes, *(slices if cases else ())} - {*taken})]
    if left:
        shown = ", ".join(left[:SHOWN]) + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
        say(f"warning: {folder}: left out, as {why}: {shown}; give such files by their names")
    return taken or [folder], bool(cases)


def _require_apart(targets: Mapping[Case, Path]) -> None:
    """No two images of one name, and no image replaced by its labels."""
    seen: dict[Path, Path] = {}
    for case, target in targets.items():
        if target in seen:
            raise BadInput(
                f"{seen[target]} and {case.images[0]} would both be written to {target}: give them one after the other"
            )
        if target.resolve() in {image.resolve() for image in case.images}:
            raise BadInput(f"{target} would be replaced by its own labels: give another folder with -o")
        seen[target] = case.images[0]


def _require_own(folder: Path, made_by: Mapping[str, Any], anew: bool) -> float:
    """No labels of another model are taken for those of this one.

    Returns since when labels are those of this one, as a file's time of change; 0 if all are.
    """
    from volsam.data.files import read_json, write_json

    file = folder / MADE_BY
    there = any(folder.glob("*.nii.gz"))
    before = read_json(file) if file.is_file() else {}
    if before and there and not anew:
        if key := next((key for key in made_by if before.get(key) != made_by[key]), None):
            raise BadInput(
                f"{folder} holds labels with another {key} ({before.get(key)}, now {made_by[key]}): give another "
                "folder with -o, or make them anew with --overwrite"
            )
        return file.stat().st_mtime if before.get(ANEW) else 0.0
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {**made_by, ANEW: anew and there})
    return 0.0


def _maker(
    name: str, device: str, prompts: Path | None, plane: str, stride: int
) -> tuple[Callable[[Case, Path], str], int]:
    """What makes one file of one image and says what is in it, and how many channels it looks at."""
    from volsam.recipes.importing import load_automatic
    from volsam.recipes.recipe import choose_device, load_model, shipped

    automatic = None if name in shipped() else load_automatic(name, choose_device(device))
    if automatic is not None:
        if prompts is not None:
            raise BadInput(f"{name} is automatic and takes no prompts: leave --prompts out")
        return lambda case, target: _labelled(automatic, case, target, plane, stride), automatic.channels
    if prompts is None:
        raise BadInput(f"{name} needs prompts: give a folder with a file NAME.json for each image by --prompts")
    asked = load_model(name, device=device)

    def masked(case: Case, target: Path) -> str:
        from volsam.cli.job import Job, carry_out
        from volsam.data.io import volume_name

        image = case.images[0]
        named = [prompts / f"{each}.json" for each in (case.name, volume_name(image))]
        file = next((path for path in named if path.exists()), named[0])
        outcome = carry_out(Job(image=image, prompts=file, output=target, plane=plane), Steps(), asked)
        return f"{outcome.millilitres:,.2f} ml, expected Dice {outcome.quality:.2f}"

    return masked, 1


def _labelled(model: AutomaticModel, case: Case, target: Path, plane: str, stride: int) -> str:
    """Labels of a volume; the names of the labels lie beside them, once."""
    from volsam.data.dataset import read_image
    from volsam.data.files import write_json
    from volsam.data.io import read_grid, write_volume
    from volsam.data.memory import require_room

    grid = read_grid(case.images[0])
    require_room(grid, case.name, channels=model.channels, beside=model.room(grid))
    labels = model.segment(read_image(case, model.channels), plane, stride=stride)
    write_volume(labels, target)
    write_json(target.parent / "labels.json", dict(zip(model.labels, model.values, strict=True)))
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
