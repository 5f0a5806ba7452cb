"""Datasets that are written: a folder that appears when all went well, and the files of a case in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from volsam.data.dataset import Case, mapped, read_image, read_label
from volsam.data.io import read_volume, write_volume
from volsam.errors import BadInput

ENDING = ".nii.gz"


@dataclass(frozen=True)
class Made:
    """A dataset that was written: its name, cases and labels, and what a user should know."""

    name: str
    cases: int
    labels: int
    notes: tuple[str, ...] = ()


@contextmanager
def making(output: Path) -> Iterator[Path]:
    """A folder beside `output` to work in, which takes its name when all went well; `output` may be an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"-o {output} exists and is not an empty folder: give the name of a new one")
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix=f".{output.name}.", dir=output.absolute().parent))
        folder.chmod(0o755)
    except OSError as error:
        raise BadInput(f"-o {output}: the folder cannot be made ({error.strerror}): give another one") from None
    try:
        yield folder
        if output.exists():  # an empty folder, which some systems do not replace
            output.rmdir()
        folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_images(case: Case, folder: Path) -> None:
    """A file for each channel of a case, as nnU-Net calls them; those that are as they should be are copied."""
    if len(set(case.images)) == len(case.images) and all(path.name.endswith(ENDING) for path in case.images):
        for channel, path in enumerate(case.images):
            shutil.copyfile(path, folder / f"{case.name}_{channel:04d}{ENDING}")
        return
    image = read_image(case)
    for channel in range(image.channels):
        write_volume(image.with_data(image.data[channel]), folder / f"{case.name}_{channel:04d}{ENDING}")


def write_label(source: Path, target: Path, values: Mapping[int, int] | None) -> None:
    """A label with other values, or as it is, then byte for byte where its format may stay."""
    if values is None and source.name.endswith(ENDING):
        shutil.copyfile(source, target)
        return
    volume = read_volume(source)
    labels = read_label(Case(volume.name, (), source))
    if values is not None:
        labels = mapped(labels, values)
    write_volume(volume.with_data(labels), target)
