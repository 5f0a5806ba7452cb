"""`volsam train`: a method on a dataset, to a folder that is a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer

from volsam.cli.console import fail, say, table, track
from volsam.cli.options import Device
from volsam.cli.telling import board, conclude, progress_of, prospect
from volsam.errors import BadFile, BadInput, MissingExtra

if TYPE_CHECKING:
    from volsam.data.dataset import Dataset
    from volsam.recipes.methods.runs import Job

MethodName = Annotated[str, typer.Argument(metavar="RECIPE", help="How to train; --list shows all.")]
DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="A folder in the layout of nnU-Net v2.")]
RunOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="RUN", help="A folder for the run; a stopped run goes on there.")
]
InitOption = Annotated[
    str | None,
    typer.Option("--init", metavar="NAME|FILE", help="Weights to begin with, or `none`; each recipe has its own."),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="Window, spacing and object of a dataset as its paper had them."),
]
TrainCases = Annotated[
    int | None, typer.Option("--train-cases", metavar="N", min=1, help="Learn from so many of the training cases.")
]
FoldNumber = Annotated[str, typer.Option("--fold", metavar="K|all", help="Which cases are left out; all: none.")]
PatientOption = Annotated[
    str, typer.Option("--patient", metavar="REGEX", help="What of a case's name tells the patient; else all of it.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE.yaml", help="Settings, a line each.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeatable.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and stop.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Write the log for TensorBoard as well, into RUN.")]


def show_recipes(wanted: bool) -> None:
    """Print every recipe, and end the command."""
    if not wanted:
        return
    from volsam.recipes.methods.method import load_methods

    known = load_methods()
    rows = [[name, known[name].title, known[name].init or "nothing", known[name].source] for name in known]
    table(["recipe", "method", "begins with", "source"], rows)
    raise typer.Exit


def show_settings(name: str | None) -> None:
    """Print the settings of a recipe with their defaults, and end the command."""
    if name is None:
        return
    from volsam.errors import VolsamError
    from volsam.recipes.methods.method import load_methods
    from volsam.training.config import described

    try:
        fields = described(load_methods()[name].config)
    except VolsamError as error:
        fail(str(error))
    rows = [[key, str(default), meaning] for key, (default, meaning) in fields.items()]
    table(["setting", "default", "meaning"], rows)
    raise typer.Exit


def train(
    recipe: MethodName,
    dataset: DatasetFolder,
    output: RunOutput,
    init: InitOption = None,
    preset: PresetOption = None,
    train_cases: TrainCases = None,
    fold: FoldNumber = "0",
    patient: PatientOption = "",
    config: ConfigFile = None,
    settings: SetOption = None,
    device: Device = "auto",
    tensorboard: Board = False,
    dry: Dry = False,
    recipes: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=show_recipes, help="Show all recipes, and stop.")
    ] = False,
    of: Annotated[
        str | None,
        typer.Option(
            "--settings", metavar="RECIPE", is_eager=True, callback=show_settings, help="Show its settings, and stop."
        ),
    ] = None,
) -> None:
    """Train a model on a dataset; what comes out is a model for predict, evaluate and segment.

    Example: volsam train adapt Dataset004_Hippocampus -o runs/hippocampus
    """
    require_extra()
    given = gathered(config, settings or [], of_preset(preset, recipe))
    begin(Order(recipe, dataset, output, given, init, train_cases, fold, patient, device), tensorboard, dry)


@dataclass(frozen=True)
class Order:
    """What is to be trained, from what, and where it goes, as the command line has it."""

    recipe: str
    dataset: Path
    output: Path
    settings: dict[str, Any]
    init: str | None = None
    train_cases: int | None = None
    fold: str = "0"
    patient: str = ""
    device: str = "auto"


def begin(order: Order, tensorboard: bool, dry: bool) -> None:
    """Choose cases, make the run ready, and carry it out."""
    from volsam.data.dataset import read_dataset
    from volsam.data.splits import NAME as SPLITS
    from volsam.data.splits import patient_of
    from volsam.recipes.methods import runs
    from volsam.recipes.methods.method import load_methods
    from volsam.recipes.recipe import choose_device

    found = read_dataset(order.dataset)
    seed = int(order.settings.get("seed", 0)) if str(order.settings.get("seed", 0)).lstrip("-").isdigit() else 0
    names = [case.name for case in found.cases if case.label is not None]
    whose = patient_of(order.patient, names) if order.patient else str
    if order.patient and (found.folder / SPLITS).is_file():
        say(f"warning: --patient has no effect, since {SPLITS} of {found.name} says which case is where")
    if order.fold != "all" and not order.fold.isdigit():
        raise BadInput(f"--fold is a number from 0, or all to learn from every case, got {order.fold}")
    labelled = load_methods()[order.recipe].labelled
    fold = None if order.fold == "all" else int(order.fold)
    cases = runs.choose_cases(found, fold, order.train_cases, seed, whose, labelled)
    with TemporaryDirectory() if dry else nullcontext() as away:
        job = runs.start(
            order.recipe,
            found,
            order.output if away is None else Path(away) / order.output.name,
            settings=order.settings,
            fold=cases,
            init=order.init,
            device=choose_device(order.device),
            progress=lambda items, what: track(items, what) if len(items) > 5 else items,
        )
        _warn(job, found)
        carry_out(job, order.dataset, tensorboard, dry, test=len(cases.test))


def _warn(job: Job, dataset: Dataset) -> None:
    """Say what of a dataset a method does not learn from."""
    if job.plan.channels < len(dataset.channels):
        say(
            f"warning: {job.method.name} sees one channel, {dataset.channels[0]}, of the {len(dataset.channels)} that "
            f"{dataset.name} has; unet, dynunet and their like see all"
        )
    if dataset.regions:
        say(
            f"{dataset.name} has regions, {', '.join(dataset.regions)}: the labels that make them up are learnt, "
            "a class each; `volsam evaluate` scores the regions"
        )
    others = [name for name in dataset.objects if name not in job.plan.labels]
    if others and "object" in type(job.config).model_fields:
        say(
            f"{job.method.name} learns one object, {job.plan.labels[1]}; with --set object=NAME it may be "
            f"{', '.join(others)}"
        )


def carry_out(job: Job, dataset: Path, tensorboard: bool, dry: bool, test: int = 0) -> None:
    """Say what a run takes, train, and say what came out."""
    from volsam.recipes.methods import runs
    from volsam.training import processes

    first = processes.is_first()
    record = job.folder.record()
    if first:
        for line in prospect(job, record, runs.prospect(job), test):
            typer.echo(line)
    if dry:
        return
    if first and job.folder.resumes:
        say(f"{job.folder.path} goes on where it was stopped")
    began = progress_of(job.folder.path) if first else None
    try:
        done = runs.train(job, began, board(job.folder.path) if tensorboard and first else None)
    except KeyboardInterrupt:
        then = "goes on from its last save" if job.folder.resumes else "begins anew, since nothing was saved yet"
        say(f"stopped; the same command {then}")
        raise
    if first:
        conclude(job, done, dataset, test)


def of_preset(name: str | None, recipe: str) -> dict[str, Any]:
    """What a preset tells a recipe, and a line about it."""
    if name is None:
        return {}
    from volsam.data.presets import presets
    from volsam.recipes.methods.method import load_methods

    preset = presets[name]
    fields = load_methods()[recipe].config.model_fields
    found = preset.settings(fields)
    kind: Any = fields["spacing"].annotation if "spacing" in found else None
    if any(get_origin(each) is tuple for each in (kind, *get_args(kind))):  # one for each axis
        found["spacing"] = [found["spacing"]] * 3
    told = ", ".join(f"{key}={value}" for key, value in found.items()) or f"nothing that {recipe} could be told"
    say(f"as in {preset.paper}: {told}")
    return found


def gathered(config: Path | None, pairs: Iterable[str], first: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of a preset, of a file and of the command line; what comes later wins."""
    import yaml

    given = dict(first or {})
    if config is not None:
        try:
            content = yaml.safe_load(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadFile(f"--config {config}: {error.strerror or 'it cannot be read'}") from None
        except yaml.YAMLError as error:
            raise BadInput(f"--config {config} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content or {}, dict):
            raise BadInput(f"--config {config} must hold lines such as `max_steps: 500`")
        given |= content or {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(f"--set {pair}: write KEY=VALUE, such as max_steps=500")
        try:
            given[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadInput(f"--set {pair}: the value is not valid YAML") from None
    if given.get("minutes") and "max_steps" in given:
        say(f"warning: max_steps={given['max_steps']} has no effect beside minutes={given['minutes']}")
    return given


def require_extra() -> None:
    """Say what to install where the libraries of training are missing."""
    from importlib.util import find_spec

    if find_spec("lightning") is None:
        raise MissingExtra("training", "train")
