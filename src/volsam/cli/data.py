"""`volsam data`: whether a dataset is sound, and invented ones to try things on."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated

import typer

from volsam.cli.console import Command, Steps, fail, track

app = typer.Typer(no_args_is_help=True, help="Datasets: check one, or make one up.")

# The objects of the invented scans, in the order of their values.
ORGANS = ("body", "liver", "spleen", "left_kidney", "right_kidney", "spine", "lesion")


@app.command(cls=Command)
def check(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with dataset.json and imagesTr.")],
) -> None:
    """Name every problem of a dataset in one run; reads every file."""
    from volsam.data.dataset import FOLDERS, read_dataset
    from volsam.data.dataset import check as problems_of

    parts = [part for part, (images, _) in FOLDERS.items() if part == "training" or (dataset / images).is_dir()]
    problems, cases = [], 0
    for part in parts:
        found = read_dataset(dataset, part)
        cases += len(found.cases)
        with Steps()(f"reading {len(found.cases)} cases"):
            problems += problems_of(found)
    for problem in problems:
        typer.echo(problem)
    if problems:
        fail(f"{dataset} has {len(problems)} problem{'s' if len(problems) > 1 else ''} in {cases} cases: see above")
    typer.echo(f"{dataset} is sound: {cases} cases")


@app.command(cls=Command)
def synth(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="A new folder.")],
    cases: Annotated[int, typer.Option("--cases", metavar="N", min=1, help="How many volumes.")] = 8,
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="The same seed makes the same bytes.")] = 0,
    shape: Annotated[str, typer.Option("--shape", metavar="I,J,K", help="Voxels of each volume.")] = "112,112,80",
) -> None:
    """Make a dataset of invented scans with known organs, in nnU-Net layout."""
    size = _size(shape)
    folder = _new_folder(output)
    try:
        for number in track(range(cases), "cases"):
            _write_case(folder, number, seed, size)
        _write_table(folder, output, cases)
        if output.exists():  # an empty folder, which some systems do not replace
            output.rmdir()
        folder.rename(output)
    finally:
        _remove(folder)
    typer.echo(f"{output}: {cases} cases, 1 channel, {len(ORGANS)} labels")


def _size(text: str) -> tuple[int, int, int]:
    from volsam.errors import BadInput

    words = [word.strip() for word in text.split(",")]
    if len(words) != 3 or not all(word.isdigit() and 8 <= int(word) <= 1024 for word in words):
        raise BadInput(f"--shape {text}: give three whole numbers from 8 to 1024, such as 112,112,80")
    return (int(words[0]), int(words[1]), int(words[2]))


def _new_folder(output: Path) -> Path:
    """A folder beside `output` to work in; it takes that name when all cases are there."""
    from volsam.errors import BadInput

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"-o {output} exists and is not an empty folder: give the name of a new one")
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix=f".{output.name}.", dir=output.absolute().parent))
        folder.chmod(0o755)
    except OSError as error:
        raise BadInput(f"-o {output}: the folder cannot be made ({error.strerror}): give another one") from None
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    return folder


def _write_case(folder: Path, number: int, seed: int, shape: tuple[int, int, int]) -> None:
    import numpy as np

    from volsam.data.io import write_volume
    from volsam.data.synthetic import sample_volume

    # Far apart, so that datasets of neighbouring seeds share no case.
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    scan, labels = sample_volume(own_seed, shape)
    write_volume(scan, folder / "imagesTr" / f"synth_{number:04d}_0000.nii.gz")
    write_volume(labels, folder / "labelsTr" / f"synth_{number:04d}.nii.gz")


def _write_table(folder: Path, output: Path, cases: int) -> None:
    table = {
        "name": output.name,
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: value for value, name in enumerate(ORGANS, 1)}},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _remove(folder: Path) -> None:
    from shutil import rmtree

    rmtree(folder, ignore_errors=True)
