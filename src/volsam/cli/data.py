"""`volsam data`: whether a dataset is sound, other layouts, splits, and invented ones to try things on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volsam.cli.console import Command, Steps, fail, say, table, track
from volsam.cli.options import AsJson

if TYPE_CHECKING:
    from volsam.data.presets import Preset

app = typer.Typer(no_args_is_help=True, help="Datasets: check, convert or split one, or make one up.")

# So many cases take long enough to be told how far it is.
MANY = 20
# The objects of the invented scans, in the order of their values.
ORGANS = ("body", "liver", "spleen", "left_kidney", "right_kidney", "spine", "lesion")


@app.command(cls=Command)
def check(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with dataset.json and imagesTr.")],
) -> None:
    """Name every problem of a dataset in one run; reads every file."""
    from volsam.data.check import check as problems_of
    from volsam.data.dataset import FOLDERS, read_dataset

    parts = [part for part, (images, _) in FOLDERS.items() if part == "training" or (dataset / images).is_dir()]
    problems: list[str] = []
    seen: dict[bytes, str] = {}
    cases = 0
    for part in parts:
        found = read_dataset(dataset, part)
        cases += len(found.cases)
        with Steps()(f"reading {len(found.cases)} cases"):
            progress = (lambda cases: track(cases, "cases")) if len(found.cases) > MANY else iter
            problems += problems_of(found, seen, progress)
    counted = f"{cases} case{'s' * (cases != 1)}"
    for problem in problems:
        typer.echo(problem)
    if problems:
        fail(f"{dataset} has {len(problems)} problem{'s' * (len(problems) > 1)} in {counted}: see above")
    typer.echo(f"{dataset} is sound: {counted}")


@app.command(cls=Command)
def synth(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="A new folder.")],
    cases: Annotated[int, typer.Option("--cases", metavar="N", min=1, help="How many volumes.")] = 8,
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="The same seed makes the same bytes.")] = 0,
    shape: Annotated[str, typer.Option("--shape", metavar="I,J,K", help="Voxels of each volume.")] = "112,112,80",
) -> None:
    """Make a dataset of invented scans with known organs, in nnU-Net layout."""
    from volsam.data.dataset import write_table
    from volsam.data.making import making

    size = _size(shape)
    with making(output) as folder:
        for name in ("imagesTr", "labelsTr"):
            (folder / name).mkdir()
        for number in track(range(cases), "cases"):
            _write_case(folder, number, seed, size)
        labels = {"background": 0, **{name: value for value, name in enumerate(ORGANS, 1)}}
        write_table(folder, output.name, ["CT"], labels, cases)
    typer.echo(f"{output}: {cases} cases, 1 channel, {len(ORGANS)} labels")


@app.command(cls=Command)
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Layout of SAM-Med3D, Decathlon, nnU-Net, EndoVis18; scans with labels/TAG beside them, as the viewer "
            "saves them; with --labels any folder of scans.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", metavar="nnunet|sam-med3d", help="The layout to write.")] = "nnunet",
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="Labels as in a paper: see `volsam data presets`.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="DIR", help="A folder with a label of each scan's name.")
    ] = None,
    names: Annotated[
        str | None, typer.Option("--names", metavar="NAME=VALUE,...", help="Of the values in --labels.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="TAG", help="Which labels beside the scans; final by default.")
    ] = None,
) -> None:
    """Write a dataset in another layout; images that stay as they are are copied byte for byte.

    Example: volsam data convert scans --labels masks --names liver=1,tumour=2 -o my-dataset
    """
    from volsam.data.convert import convert as converted
    from volsam.data.convert import gather, layout_of
    from volsam.data.presets import presets as known
    from volsam.data.studies import FINAL
    from volsam.errors import BadInput

    if names is not None and labels is None:
        raise BadInput("--names are of the values in --labels: give that folder as well")
    loose = labels is not None or layout_of(source) == "studies"
    if loose and (to != "nnunet" or preset is not None):
        raise BadInput("of scans and loose labels a dataset in nnU-Net's layout is made first: leave --to and --preset")
    if tag is not None and (labels is not None or not loose):
        raise BadInput("--tag is of labels that lie beside scans, in labels/TAG: leave it out")
    with Steps()("converting"):
        if loose:
            made = [gather(source, output, labels=labels, names=_values(names), tag=tag or FINAL)]
        else:
            made = converted(source, output, to=to, preset=None if preset is None else known[preset])
    for one in made:
        where = output / one.name if len(made) > 1 else output
        typer.echo(f"{where}: {_count(one.cases, 'case')}, {_count(one.labels, 'label')}")
        for note in one.notes:
            say(f"note: {one.name}: {note}")


@app.command(cls=Command)
def undrawn(
    source: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with dataset.json and imagesTr.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="A new folder.")],
    plane: Annotated[
        str, typer.Option("--plane", metavar="auto|axial|coronal|sagittal", help="In which slices were drawn.")
    ] = "auto",
) -> None:
    """Label what was not drawn as "ignore", where only every so many slices were: nothing is learnt there."""
    from volsam.data.undrawn import PLANES, mark_undrawn
    from volsam.errors import BadInput

    chosen = next((each for each in PLANES if each == plane), None)
    if chosen is None:
        raise BadInput(f"--plane is {', '.join(PLANES)}, got {plane!r}")
    found = mark_undrawn(source, output, chosen, lambda cases: track(cases, "cases"))
    rows = [[each.case, str(each.drawn), str(each.unknown)] for each in found]
    table(("case", "slices drawn", "not known"), rows)


@app.command(cls=Command)
def split(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A folder with dataset.json and imagesTr.")],
    folds: Annotated[int, typer.Option("--folds", metavar="N", min=2, help="How many.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="The same seed makes the same folds.")] = 0,
    patient: Annotated[
        str, typer.Option("--patient", metavar="REGEX", help="The part of a case's name that says whose it is.")
    ] = ".*",
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="Patients and test cases of a published dataset.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a splits file that is there.")] = False,
) -> None:
    """Write splits_final.json: folds of the labelled cases, with all cases of a patient in one part."""
    from volsam.data.dataset import read_dataset
    from volsam.data.presets import presets as known
    from volsam.data.splits import NAME, make_folds, patient_of, write_splits
    from volsam.errors import BadInput

    target = dataset / NAME
    if target.exists() and not force:
        raise BadInput(f"{target} is there already: replace it with --force")
    names = [case.name for case in read_dataset(dataset).cases if case.label is not None]
    if preset is None:
        made = make_folds(names, folds, seed, patient_of(patient, names))
    else:
        made = known[preset].folds(names, folds, seed)
    write_splits(made, target)
    first = made[0]
    tests = f", {len(first.test)} test" if first.test else ""
    typer.echo(f"{target}: {len(made)} folds, the first with {len(first.train)} train, {len(first.val)} val{tests}")


@app.command(cls=Command)
def presets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, with all its numbers.")] = None,
    as_json: AsJson = False,
) -> None:
    """List published datasets as the papers used them: labels, windows, spacing and splits."""
    from dataclasses import asdict

    from volsam.data.presets import presets as known

    chosen = [known[each] for each in ([name] if name else known)]
    if as_json:
        plain = [{**asdict(replace(each, colours={})), "colours": dict(each.colours)} for each in chosen]
        typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))
    elif name is None:
        rows = [
            [each.name, each.modality, str(len(each.scored)), _range(each.window), _times(each.spacing), each.title]
            for each in chosen
        ]
        table(["name", "modality", "objects", "window", "mm", "dataset"], rows)
    else:
        for title, text in _described(chosen[0]):
            typer.echo(f"{title:<10} {text}")


def _described(preset: Preset) -> Iterator[tuple[str, str]]:
    """All that is known of a preset, line by line."""
    yield "dataset", f"{preset.title}, {preset.modality}"
    yield "paper", preset.paper
    yield "labels", ", ".join(f"{value} {label}" for label, value in preset.labels.items())
    scored = (f"{name} ({'+'.join(map(str, values))})" for name, values in preset.scored.items())
    yield "objects", ", ".join(scored)
    if preset.window is not None:
        yield "window", _range(preset.window)
    if preset.percentile is not None:
        yield "clipped", f"at the percentile {preset.percentile:g}"
    if preset.mean is not None and preset.spread is not None:
        yield "z-score", f"mean {preset.mean:g}, spread {preset.spread:g}"
    if preset.spacing is not None:
        yield "spacing", f"{_times(preset.spacing)} mm"
    if preset.axes is not None:
        yield "axes", f"depth, height, width are the file's axes {', '.join(map(str, preset.axes))}"
    yield "split", preset.split
    if preset.sizes is not None:
        train, val, test = preset.sizes
        yield "sizes", f"{train} train, {val} val, {test} test"
    if preset.patient != ".*":
        yield "patient", f"the part of a name that is {preset.patient}"
    if preset.notes:
        yield "notes", preset.notes


def _range(window: tuple[float, float] | None) -> str:
    return "-" if window is None else f"{window[0]:g}..{window[1]:g}"


def _times(spacing: tuple[float, ...] | None) -> str:
    return "-" if spacing is None else " × ".join(f"{size:g}" for size in spacing)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _values(names: str | None) -> dict[str, int]:
    """NAME=VALUE,NAME=VALUE as a table."""
    from volsam.errors import BadInput

    pairs = [each.rpartition("=") for each in names.split(",")] if names else []
    if any(not name.strip() or not value.strip().isdigit() or int(value) == 0 for name, _, value in pairs):
        raise BadInput(f"--names is NAME=VALUE,NAME=VALUE with values from 1, such as liver=1,tumour=2; got {names!r}")
    return {name.strip(): int(value) for name, _, value in pairs}


def _size(text: str) -> tuple[int, int, int]:
    from volsam.errors import BadInput

    words = [word.strip() for word in text.split(",")]
    if len(words) != 3 or not all(word.isdigit() and 8 <= int(word) <= 1024 for word in words):
        raise BadInput(f"--shape {text}: give three whole numbers from 8 to 1024, such as 112,112,80")
    return (int(words[0]), int(words[1]), int(words[2]))


def _write_case(folder: Path, number: int, seed: int, shape: tuple[int, int, int]) -> None:
    import numpy as np

    from volsam.data.io import write_volume
    from volsam.data.synthetic import sample_volume

    # Far apart, so that datasets of neighbouring seeds share no case.
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    scan, labels = sample_volume(own_seed, shape)
    write_volume(scan, folder / "imagesTr" / f"synth_{number:04d}_0000.nii.gz")
    write_volume(labels, folder / "labelsTr" / f"synth_{number:04d}.nii.gz")
