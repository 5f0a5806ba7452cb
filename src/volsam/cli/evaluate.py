"""`volsam evaluate`: a model on the labelled cases of a dataset, to a report; or several reports side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volsam.cli.console import Steps, fail, say
from volsam.cli.options import Device, InPlane, Stride
from volsam.errors import BadInput

if TYPE_CHECKING:
    from volsam.cli.learnt import Learnt
    from volsam.cli.scenes import Source
    from volsam.cli.trials import Question
    from volsam.data.dataset import Case
    from volsam.evaluation.report import Report
    from volsam.evaluation.rules import Rule
    from volsam.evaluation.study import Folder, Trial

What = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL DATASET",
        help="A name from `volsam models list`, a weights file, a folder of `volsam train`, or one of labels as "
        "CASE.nii.gz; then a dataset. With --compare: results.json of several evaluations.",
    ),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="REPORT", help="A folder for the report.")]
Protocol = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        metavar="automatic|clicks|box|cvpr2025",
        help="How the model is asked; without it, automatic for models without prompts, else clicks.",
    ),
]
Clicks = Annotated[
    int | None, typer.Option("--clicks", metavar="N", min=0, help="At most so many: 10, or after a box none.")
]
Where = Annotated[
    str,
    typer.Option(
        "--where",
        metavar="deepest|fastsam3d|random|centre|surround|margin",
        help="Where clicks fall. The first two correct the error of the answer before; the others are drawn in the "
        "object and given together, 1, 3, 5 and 10 of them in turn.",
    ),
]
Per = Annotated[
    str, typer.Option("--per", metavar="volume|slice", help="N clicks on the volume, or on every slice of the object.")
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="test|train|all|FILE",
        help="Which cases, without it those of test; FILE lists names, or is a splits file.",
    ),
]
FoldOption = Annotated[int, typer.Option("--fold", metavar="K", min=0, help="Of splits_final.json.")]
Tolerance = Annotated[
    float | None,
    typer.Option("--tolerance", metavar="MM", min=0, help="Of the surface score; the rule's own, mostly 2."),
]
RuleOption = Annotated[
    str | None,
    typer.Option(
        "--rule",
        metavar="NAME",
        help="standard, or the rule of a paper: 3dsam-adapter, ma-sam, autosam, fastsam3d, or cvpr2025, which its "
        "protocol has by itself.",
    ),
]
ObjectsOption = Annotated[
    str | None, typer.Option("--objects", metavar="A,B", help="Only these labels of the dataset; without it, all.")
]
Name = Annotated[str | None, typer.Option("--name", metavar="TEXT", help="What tables call the method.")]
TrainedOn = Annotated[
    int | None,
    typer.Option("--trained-on", metavar="N", min=0, help="Labelled volumes it was trained on, for --compare."),
]
Pictures = Annotated[int, typer.Option("--pictures", metavar="N", min=0, help="Of the worst objects.")]
Seed = Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Of clicks that are drawn.")]
Again = Annotated[bool, typer.Option("--overwrite", help="Begin anew; without it a run goes on where it was stopped.")]
Compare = Annotated[bool, typer.Option("--compare", help="Compare results: the first against each of the others.")]

Embeddings = Annotated[
    bool, typer.Option("--embeddings", help="Of a MODEL and datasets: where the features of their cases lie, by t-SNE.")
]


def evaluate(
    what: What,
    output: Output,
    protocol: Protocol = None,
    clicks: Clicks = None,
    where: Where = "deepest",
    per: Per = "volume",
    split: Split = None,
    fold: FoldOption = 0,
    tolerance: Tolerance = None,
    rule: RuleOption = None,
    objects: ObjectsOption = None,
    name: Name = None,
    trained_on: TrainedOn = None,
    plane: InPlane = "auto",
    stride: Stride = 1,
    device: Device = "auto",
    pictures: Pictures = 6,
    seed: Seed = 0,
    overwrite: Again = False,
    compare: Compare = False,
    embeddings: Embeddings = False,
) -> None:
    """Score a model on a dataset and write a report; or compare reports, or show what an encoder makes of datasets.

    Example: volsam evaluate volsam-s Dataset042_Spleen -o report --clicks 5
    """
    if compare:
        from volsam.cli.comparing import compare_results

        compare_results([Path(each) for each in what], output)
        return
    if embeddings:
        from volsam.cli.embedding import show_embeddings

        if len(what) < 2:
            raise BadInput("--embeddings takes a MODEL and one DATASET or more")
        show_embeddings(what[0], [Path(each) for each in what[1:]], output, device, plane)
        return
    if len(what) != 2:
        raise BadInput(f"one MODEL and one DATASET are wanted, got {len(what)} words: {' '.join(what)}")
    model, dataset = what[0], Path(what[1])
    steps = Steps()
    with steps("start"):
        from volsam.cli.learnt import learnt_by
        from volsam.cli.scoring import score_all
        from volsam.cli.trials import Question
        from volsam.evaluation.rules import rules
        from volsam.evaluation.study import Folder

        by = rules[rule or ("cvpr2025" if protocol == "cvpr2025" else "standard")]
        learnt = learnt_by(model)
        source = _source(dataset, split, fold, objects, learnt)
    with steps("model"):
        kind = protocol or _protocol(model, device, source.cases, clicks, where, per)
        question = Question(kind, clicks, where, per, by, tolerance, plane, stride, seed)
        if source.of_the_challenge:
            question = question.of_the_challenge()
        trial = _trial(question, by, model, device, source)
    settings = _settings(question, by, model, source)
    settings |= {"name": name, "trained_on": trained_on, "remarks": []}
    if learnt is not None:
        settings |= {"name": name or learnt.method, "steps": learnt.steps}
        settings["trained_on"] = len(learnt.training) if trained_on is None else trained_on
        settings["remarks"] = list(learnt.remarks(source.cases))
    if question.protocol == "automatic" and (pairs := _unlike(model, device, source)):
        settings["remarks"].append(pairs)
    for line in settings["remarks"]:
        say(f"warning: {line}")
    folder = Folder(output)
    folder.open(settings, anew=overwrite)
    failed = score_all(folder, source, trial, by, pictures, _predictions(model, question, source))
    report = _written(folder, source.cases, settings, question.steps, failed)
    for line in _lines(report):
        typer.echo(line)
    if report.answer:
        typer.echo(f"of {report.answer}")
    typer.echo(f"{output / 'report.html'}, report.md, scores.csv, results.json")
    if failed:
        fail(f"{len(failed)} of {len(source.cases)} cases failed, see above; the others are in {output}")


def _source(dataset: Path, split: str | None, fold: int, objects: str | None, learnt: Learnt | None) -> Source:
    """The cases; of a dataset that a run was trained on, those that it left out are its test part, or else those by
    which its weights were chosen, and the objects that it learnt all there are to score.
    """
    from volsam.cli.scenes import source_of

    wanted = None if objects is None else [name.strip() for name in objects.split(",") if name.strip()]
    if learnt is not None and (dataset / "dataset.json").is_file():
        from volsam.data.dataset import FOLDERS, read_dataset

        found = read_dataset(dataset)
        if learnt.is_of(found.cases):
            if wanted is None and set(learnt.objects) < set(found.objects):
                wanted = list(learnt.objects)
            names = {case.name for case in found.cases}
            is_best = learnt.held_out or not (dataset / FOLDERS["test"][1]).is_dir()
            if split in (None, "test") and is_best:
                if learnt.left and learnt.left <= names:
                    return replace(source_of(dataset, str(learnt.splits), 0, wanted), split="test")
                if not learnt.left:  # a run in one file has no names of cases
                    whole = source_of(dataset, "all", 0, wanted)
                    if left := learnt.left_of(whole.cases):
                        return replace(whole, split="test", cases=left)
    return source_of(dataset, split, fold, wanted)


def _protocol(model: str, device: str, cases: Sequence[Case], clicks: int | None, where: str, per: str) -> str:
    """The protocol that suits what was asked for, or the model."""
    from volsam.cli.asking import predictions_in

    if clicks is not None or where != "deepest" or per != "volume":
        return "clicks"
    if predictions_in(Path(model), cases):
        return "automatic"
    return "automatic" if _takes_no_prompts(model, device) else "clicks"


def _takes_no_prompts(model: str, device: str) -> bool:
    """Whether a model is automatic; what a card tells need not be loaded."""
    from volsam.recipes import store
    from volsam.recipes.recipe import choose_device

    if store.is_stored(model):
        return not store.stored(model).card.prompts
    return _automatic_model(model, choose_device(device)) is not None


@lru_cache(maxsize=1)
def _automatic_model(model: str, device: str) -> Any:
    """The model if it takes no prompts, else None; loaded once."""
    from volsam.recipes.importing import load_automatic
    from volsam.recipes.recipe import shipped

    return None if model in shipped() else load_automatic(model, device)


def _trial(question: Question, rule: Rule, model: str, device: str, source: Source) -> Trial:
    from volsam.cli.trials import automatic_trial, prompted_trial
    from volsam.recipes.recipe import choose_device, load_model

    joined = [name for name, value in source.objects.items() if isinstance(value, tuple)]
    if question.protocol == "cvpr2025" and joined:
        raise BadInput(
            f"--protocol cvpr2025 has one value for each object, and {joined[0]} joins several: name some of "
            f"{', '.join(source.classes)} with --objects"
        )
    if question.protocol == "automatic":
        if not source.objects:
            raise BadInput("files of the challenge are answered with prompts: give --protocol cvpr2025")
        if folder := _predictions(model, question, source):
            return automatic_trial(question, rule, folder, source.classes, source.declared)
        found = _automatic_model(model, choose_device(device))
        if found is None:
            raise BadInput(f"{model} takes prompts: give --protocol clicks or box, or a folder of labels as MODEL")
        return automatic_trial(question, rule, found, source.classes, source.declared)
    return prompted_trial(question, rule, load_model(model, device=device))


def _unlike(model: str, device: str, source: Source) -> str | None:
    """What `unlike` says of a model; of labels in a folder nothing, since they are the dataset's own values."""
    from volsam.cli.asking import predictions_in, unlike
    from volsam.recipes.recipe import choose_device

    if predictions_in(Path(model), source.cases):
        return None
    return unlike(_automatic_model(model, choose_device(device)), source.classes)


def _predictions(model: str, question: Question, source: Source) -> Path | None:
    """The folder of ready labels that is scored, None where a model is asked."""
    from volsam.cli.asking import predictions_in

    is_folder = question.protocol == "automatic" and predictions_in(Path(model), source.cases)
    return Path(model) if is_folder else None


def _settings(question: Question, rule: Rule, model: str, source: Source) -> dict[str, Any]:
    """The question as plain data: two runs with the same settings give the same scores."""
    from volsam.cli.asking import fingerprint

    return {
        "model": model,
        "weights": fingerprint(model),
        "dataset": source.name,
        "split": source.split,
        "objects": {name: list(value) if isinstance(value, tuple) else value for name, value in source.objects.items()},
        "ignore": source.ignore,
        "protocol": question.protocol,
        "clicks": question.count,
        "where": question.where,
        "per": question.per,
        "described": question.described,
        "rule": rule.name,
        "tolerance_mm": rule.tolerance_mm if question.tolerance_mm is None else question.tolerance_mm,
        "plane": question.plane,
        "stride": question.stride,
        "seed": question.seed,
    }


def _written(
    folder: Folder, cases: Sequence[Case], settings: Mapping[str, Any], steps: Sequence[str], failed: Mapping[str, str]
) -> Report:
    from volsam.evaluation.report import Report
    from volsam.evaluation.report_page import write

    names = [case.name for case in cases]
    report = Report(settings, steps, folder.rows(names), failed, _machine(), folder.digests(names))
    write(report, folder.path)
    return report


def _machine() -> str:
    import os
    import platform
    from importlib.metadata import version

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in ("volsam", "torch", "numpy", "scipy"))
    return f"{platform.machine()}, {cores} cores, {platform.system()}, Python {platform.python_version()}, {versions}"


def _lines(report: Report) -> Iterable[str]:
    """The means on standard output."""
    from math import isnan

    from volsam.evaluation.report import TITLES, interval_of, left_out, number_of
    from volsam.evaluation.rules import DISTANCES

    for measure, title in TITLES.items():
        mean = report.mean(measure)
        if mean.cases or mean.left_out:
            unit = "" if measure not in DISTANCES else " voxels" if report.rule.voxels else " mm"
            value = f"{number_of(mean)}{unit}" if mean.cases else "none finite"
            interval = "" if isnan(mean.low) else f" ({interval_of(mean)})"
            many = "s" * (mean.cases != 1)
            yield f"{title:<5} {value}{interval}, {mean.cases} case{many}{left_out(mean.left_out)}"
