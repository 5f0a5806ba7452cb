"""Which images a command was given: files, folders of DICOM series, and folders of volumes, and what each is called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from volsam.cli.console import say
from volsam.errors import BadInput

if TYPE_CHECKING:
    from volsam.data.dataset import Case

# Files of nnU-Net end in the number of a channel, in folders of these names.
CHANNEL, FIRST = re.compile(r"(.+)_(\d{4})"), "_0000"
OF_NNUNET = ("imagesTr", "imagesTs", "imagesVa")
LABELS_OF_NNUNET = ("labelsTr", "labelsTs", "labelsVa")
# Names of files in a warning.
SHOWN = 5
PART = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")


def cases_of(images: Sequence[Path], channels: int, output: Path | None = None) -> list[Case]:
    """Images as cases: each file one, but `CASE_0000`, `CASE_0001`, ... are the channels of one.

    That is so in folders of nnU-Net, whose files are all named so; elsewhere such a number may well be the patient's,
    so there it is a channel only to a model that looks at several. What a folder holds besides is named in a warning.
    Of a folder that holds no image itself, every volume and series below it is one, called by its path there; but
    for labels of nnU-Net, and for what is in `output`.
    """
    from volsam.data.dataset import Case
    from volsam.data.io import volume_name

    found: dict[tuple[Path, str], list[Path]] = {}
    for given in images:
        if given.is_dir() and (nested := _nested(given, output)):
            for path, name in nested:
                number = CHANNEL.fullmatch(name) if path.parent.name in OF_NNUNET else None
                found.setdefault((path.parent, number[1]) if number else (path, name), []).append(path)
            continue
        files, numbered = _in_folder(given) if given.is_dir() else ([given], False)
        for path in files:
            name, number = volume_name(path), CHANNEL.fullmatch(volume_name(path))
            if number and (numbered or channels > 1 or path.resolve().parent.name in OF_NNUNET):
                name = number.group(1)
            found.setdefault((path.parent, name), []).append(path)
    return [Case(name, tuple(sorted(paths))) for (_, name), paths in found.items()]


def _nested(folder: Path, output: Path | None) -> list[tuple[Path, str]]:
    """The images below a folder that holds none itself, with their paths there without endings."""
    from volsam.data.dicom import is_slice
    from volsam.data.io import READABLE
    from volsam.data.studies import scans, stem

    files = [entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    if any(file.name.lower().endswith(READABLE) or is_slice(file) for file in files):
        return []
    there = [folder / path for path in scans(folder, linked=True)]
    there = [path for path in there if output is None or output.resolve() not in path.resolve().parents]
    there = [path for path in there if path.parent.name not in LABELS_OF_NNUNET]
    # Beside volumes, pictures are drawn of them.
    beside = {path.parent for path in there if path.suffix.lower() != ".png"}
    there = [path for path in there if path.suffix.lower() != ".png" or path.parent not in beside]
    return [(path, stem(path.relative_to(folder).as_posix())) for path in there]


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


def require_apart(targets: Mapping[Case, Path]) -> None:
    """No two images of one name, and no image replaced by its labels."""
    seen: dict[Path, Path] = {}
    for case, target in targets.items():
        if target in seen:
            raise BadInput(
                f"{seen[target]} and {case.images[0]} would both be written to {target}: give them one after the "
                "other, or the folder above them, whose paths the output then has"
            )
        if target.resolve() in {image.resolve() for image in case.images}:
            raise BadInput(f"{target} would be replaced by its own labels: give another folder with -o")
        seen[target] = case.images[0]


def part_of(cases: Sequence[Case], part: str | None) -> list[Case]:
    """The K-th of N parts of the cases, "K/N". It follows from their names alone, so that others may be added."""
    if part is None:
        return list(cases)
    numbers = PART.fullmatch(part)
    if numbers is None or int(numbers[1]) > int(numbers[2]):
        raise BadInput(f"--part is K/N, such as 1/8, 2/8 and so on to 8/8; got {part!r}")
    return [case for case in cases if crc32(case.name.encode()) % int(numbers[2]) == int(numbers[1]) - 1]
