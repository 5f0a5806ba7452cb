"""Scores a click model on real volumes and writes results.md, and results.json with every object.

    python benchmarks/default_model/evaluate.py --data ../shared/data --jobs 2

The data folder holds one folder in nnU-Net layout for each set. Any other data of that layout will do:
`--sets my_set` evaluates a set that the table below does not know, each label an object. Every object gets its own
session: one click on its deepest point, then clicks on the deepest point of the error. Beside the model stand fixed
rules of region growing under the same protocol, which take longer than the model; `--growing-from results.json` takes
theirs over from an earlier run, since they do not change with the model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

import volsam
from volsam.cli.asking import begin_with
from volsam.data.dataset import Case, Dataset, read_dataset, read_image, read_label
from volsam.data.files import replacing
from volsam.evaluation import growing
from volsam.evaluation.protocol import ClickScore, Start, clicks_only, clicks_protocol

HERE = Path(__file__).parent
SHOWN = (1, 3, 5, 10)
SIMPLE_SHOWN = (1, 5)
TOLERANCE = 2.0  # mm; voxels where the spacing is nominal
FEWEST_VOXELS = 20
MODEL = "model"


@dataclass(frozen=True)
class Known:
    """What is known of a set: whether the default model has learnt from it, and which objects make sense."""

    kind: str
    nominal: bool = False
    excluded: dict[int, str] = field(default_factory=dict)
    merged: dict[str, tuple[int, ...]] = field(default_factory=dict)
    only_merged: bool = False


NEVER_SEEN, IN_DOMAIN, OTHER = "never seen", "in domain, held-out cases", "other"

SETS = {
    "left_atrium": Known(NEVER_SEEN),
    "acdc_cardiac": Known(NEVER_SEEN, nominal=True),
    "chaos_t2_abdomen": Known(NEVER_SEEN),
    "headneck_ct": Known(
        NEVER_SEEN, excluded={8: "PTV70 is a planning volume with margins; its border is not visible"}
    ),
    "prostate_t2": Known(NEVER_SEEN, nominal=True),
    "brain_tumour": Known(NEVER_SEEN, merged={"whole tumour (FLAIR)": (1, 2, 3, 4)}, only_merged=True),
    "hippocampus": Known(IN_DOMAIN, merged={"whole hippocampus": (1, 2)}),
    "sarcoma_ct_tumour": Known(IN_DOMAIN),
    "sarcoma_mr_t1_tumour": Known(IN_DOMAIN),
    "sarcoma_pet_tumour": Known(IN_DOMAIN),
}


@dataclass(frozen=True)
class Job:
    """One case and what is to be tried on all its objects."""

    folder: Path
    case: str
    methods: tuple[str, ...]
    clicks: int
    surface: bool
    model: str | None


@dataclass
class Row:
    """One method on one object: a score for each click. `spent` is the time of each click in seconds."""

    set: str
    case: str
    object: str
    voxels: int
    method: str
    dice: list[float]
    nsd: list[float]
    spent: list[float]
    clicks: list[list[float]]


@dataclass
class Report:
    """What a job brings back."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.rows += other.rows
        self.skipped += [line for line in other.skipped if line not in self.skipped]
        self.failed += [line for line in other.failed if line not in self.failed]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    began = time.perf_counter()
    names = chosen_sets(options)
    datasets = {name: read_dataset(options.data / name) for name in names}
    cases = {name: cases_of(dataset, options.cases) for name, dataset in datasets.items()}
    report = Report()
    if not options.without_model:
        report.add(run(jobs(datasets, cases, (MODEL,), options, surface=True), options.jobs))
    if options.growing_from is not None:
        report.rows += earlier_growing(options.growing_from, cases)
    elif not options.without_growing:
        report.add(growing_rules(datasets, cases, options))
    seconds = time.perf_counter() - began
    options.output.mkdir(parents=True, exist_ok=True)
    write(options.output / "results.md", "\n".join(page(report, datasets, cases, options, seconds)) + "\n")
    write(options.output / "results.json", json.dumps(record(report, options, seconds), indent=1) + "\n")
    print(f"{options.output / 'results.md'}: {seconds:.0f} s, {len(report.failed)} failed")
    return 1 if report.failed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--sets", help="names of sets, with commas; without it the known sets that are there")
    parser.add_argument("--model", help="name or checkpoint; without it the embedded default")
    parser.add_argument("--clicks", type=int, default=10)
    parser.add_argument("--cases", type=int, help="the first so many cases of each set")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--without-growing", action="store_true", help="leave region growing out")
    parser.add_argument(
        "--growing-from", type=Path, metavar="RESULTS.json", help="take region growing from another run"
    )
    parser.add_argument("--without-model", action="store_true", help="region growing only")
    return parser.parse_args(arguments)


def chosen_sets(options: argparse.Namespace) -> list[str]:
    """The sets asked for; else the known ones; else everything that looks like a set."""
    if options.sets:
        return [name.strip() for name in options.sets.split(",")]
    present = sorted(path.parent.name for path in options.data.glob("*/dataset.json"))
    known = [name for name in SETS if name in present]
    if known and (others := [name for name in present if name not in known]):
        print(f"left out, unless named with --sets: {', '.join(others)}")
    return known or present


def cases_of(dataset: Dataset, most: int | None) -> list[Case]:
    """The labelled cases that the default model has not learnt from; split.json lists those it has."""
    trained = json.loads((HERE / "split.json").read_text())["training"].get(dataset.folder.name, [])
    cases = [case for case in dataset.cases if case.label is not None and case.name not in trained]
    return cases[:most]


def jobs(
    datasets: dict[str, Dataset],
    cases: dict[str, list[Case]],
    methods: tuple[str, ...],
    options: argparse.Namespace,
    *,
    surface: bool,
) -> list[Job]:
    clicks = options.clicks if MODEL in methods else min(options.clicks, max(SIMPLE_SHOWN))
    return [
        Job(datasets[name].folder, case.name, methods, clicks, surface, options.model)
        for name in datasets
        for case in cases[name]
    ]


def growing_rules(datasets: dict[str, Dataset], cases: dict[str, list[Case]], options: argparse.Namespace) -> Report:
    """All rules by Dice; then the surface score, which takes longer, of those that will be shown."""
    every = run(jobs(datasets, cases, tuple(map(str, growing.RULES)), options, surface=False), options.jobs)
    best = {best_rule(every.rows, clicks) for clicks in shown(SIMPLE_SHOWN, options.clicks)} - {None}
    surfaces = run(
        jobs(datasets, cases, tuple(sorted(str(rule) for rule in best)), options, surface=True), options.jobs
    )
    finished = {key(row) for row in surfaces.rows}
    every.rows = [row for row in every.rows if key(row) not in finished] + surfaces.rows
    return every


def earlier_growing(path: Path, cases: dict[str, list[Case]]) -> list[Row]:
    """The rules' scores of another run, on the cases of this one."""
    wanted = {(name, case.name) for name in cases for case in cases[name]}
    rows = [Row(**row) for row in json.loads(path.read_text())["rows"]]
    return [row for row in rows if row.method != MODEL and (row.set, row.case) in wanted]


# ---------------------------------------------------------------------------------------------------------------------
# One case


def run(todo: list[Job], processes: int) -> Report:
    """All jobs, several at a time; each process is kept to one thread."""
    report = Report()
    for done, (job, part, seconds) in enumerate(finished(todo, processes), start=1):
        report.add(part)
        what = job.methods[0] if len(job.methods) == 1 else f"{len(job.methods)} methods"
        print(f"{done}/{len(todo)} {job.folder.name} {job.case}: {len(part.rows)} scores, {what}, {seconds:.1f} s")
        for line in part.failed:
            print(f"  failed: {line}")
        sys.stdout.flush()
    return report


def finished(todo: list[Job], processes: int) -> Iterator[tuple[Job, Report, float]]:
    if processes <= 1:
        yield from ((job, *timed(job)) for job in todo)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        waiting = {pool.submit(timed, job): job for job in todo}
        for future in as_completed(waiting):
            yield waiting[future], *future.result()


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def timed(job: Job) -> tuple[Report, float]:
    began = time.perf_counter()
    try:
        report = score_case(job)
    except Exception as error:  # a run of hours does not end with one case; it is listed and the exit status says so
        report = Report(failed=[f"{job.folder.name} {job.case}: {type(error).__name__}: {error}"])
    return report, time.perf_counter() - began


def score_case(job: Job) -> Report:
    dataset = read_dataset(job.folder)
    known = SETS.get(job.folder.name, Known(OTHER))
    case = dataset.case(job.case)
    image = read_image(case)
    volume = image.with_data(image.data[:1])
    labels = read_label(case, volume.grid)
    scene = growing.Scene(volume, growing.CT_WINDOW if dataset.channels[0].upper() == "CT" else None)
    starts = {name: start_of(name, job.model, scene) for name in job.methods}
    report = Report()
    for name, values in objects_of(dataset, known).items():
        target = np.isin(labels, values)
        voxels = int(np.count_nonzero(target))
        if 0 < voxels < FEWEST_VOXELS:
            report.skipped.append(f"{job.folder.name} {job.case} {name} ({voxels} voxels)")
        if voxels < FEWEST_VOXELS:
            continue
        for method, start in starts.items():
            scores = clicks_protocol(
                start,
                volume,
                target,
                job.clicks,
                tolerance_mm=TOLERANCE if job.surface else None,
                spacing=(1, 1, 1) if known.nominal else None,
            )
            report.rows.append(row_of(job.folder.name, job.case, name, voxels, method, scores))
    return report


def objects_of(dataset: Dataset, known: Known) -> dict[str, tuple[int, ...]]:
    """Names and label values of the objects of a set."""
    single = {name: (value,) for name, value in dataset.objects.items() if value not in known.excluded}
    return dict(known.merged) if known.only_merged else {**single, **known.merged}


def start_of(method: str, model: str | None, scene: growing.Scene) -> Start:
    if method == MODEL:
        return model_start(model)
    rule = next(rule for rule in growing.RULES if str(rule) == method)
    return lambda volume: growing.begin(rule, scene)


@lru_cache(maxsize=1)
def model_start(model: str | None) -> Start:
    """A session of the model for each object; the model itself is loaded once in each process."""
    return clicks_only(begin_with(volsam.load_model(model)))


def row_of(set_: str, case: str, name: str, voxels: int, method: str, scores: list[ClickScore]) -> Row:
    return Row(
        set_,
        case,
        name,
        voxels,
        method,
        dice=[round(score.dice, 5) for score in scores],
        nsd=[round(score.nsd, 5) for score in scores if not np.isnan(score.nsd)],
        spent=[round(score.seconds, 3) for score in scores],
        clicks=[
            [*(round(value, 3) for value in score.click.position), float(score.click.positive)]
            for score in scores
            if score.click is not None
        ],
    )


# ---------------------------------------------------------------------------------------------------------------------
# Means

Measure = Callable[[Row], float | None]


def at(measure: str, click: int) -> Measure:
    """Dice or NSD after so many clicks, None where it was not measured."""

    def value(row: Row) -> float | None:
        values = getattr(row, measure)
        return values[click - 1] if len(values) >= click else None

    return value


def mean_of(rows: Iterable[Row], measure: Measure) -> float | None:
    values = [value for row in rows if (value := measure(row)) is not None]
    return mean(values) if values else None


def mean_of_set(name: str, rows: list[Row], measure: Measure) -> float | None:
    return mean_of([row for row in rows if row.set == name], measure)


def mean_of_sets(rows: list[Row], measure: Measure) -> float | None:
    """Every set counts once, however many objects it has."""
    means = [mean_of_set(name, rows, measure) for name in names_of(rows)]
    known = [value for value in means if value is not None]
    return mean(known) if known else None


def names_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row.set for row in rows))


def never_seen(rows: list[Row]) -> list[Row]:
    return [row for row in rows if kind_of(row.set) == NEVER_SEEN]


def kind_of(name: str) -> str:
    return SETS[name].kind if name in SETS else OTHER


def best_rule(rows: list[Row], clicks: int) -> str | None:
    """The rule with the best mean of the never-seen sets (of all sets, where none is never-seen)."""
    rows = never_seen(rows) or rows
    scores = {
        rule: score
        for rule in dict.fromkeys(row.method for row in rows if row.method != MODEL)
        if (score := mean_of_sets([row for row in rows if row.method == rule], at("dice", clicks))) is not None
    }
    return max(scores, key=lambda rule: scores[rule]) if scores else None


def shown(clicks: Iterable[int], most: int) -> list[int]:
    return [click for click in clicks if click <= most]


def key(row: Row) -> tuple[str, str, str, str]:
    return row.set, row.case, row.object, row.method


# ---------------------------------------------------------------------------------------------------------------------
# The page


def page(
    report: Report,
    datasets: dict[str, Dataset],
    cases: dict[str, list[Case]],
    options: argparse.Namespace,
    seconds: float,
) -> Iterator[str]:
    rows = [row for row in report.rows if row.set in datasets]
    model = [row for row in rows if row.method == MODEL]
    rules = [row for row in rows if row.method != MODEL]
    best = {click: best_rule(rules, click) for click in shown(SIMPLE_SHOWN, options.clicks)}
    simple = {click: [row for row in rules if row.method == rule] for click, rule in best.items()}
    yield "# What the default model reaches, click by click"
    yield ""
    yield from introduction(model or rules, report, cases, options, seconds)
    for measure, title in (
        ("dice", "Dice"),
        ("nsd", f"NSD at {TOLERANCE:g} mm ({TOLERANCE:g} voxels for sets with *)"),
    ):
        yield from ["", f"## {title} by set", ""]
        yield from set_table(model, simple, datasets, cases, measure, options)
    yield from ["", "## By structure", ""]
    yield from structure_table(model, simple, options)
    if model:
        yield from ["", "## Click by click, never-seen sets", ""]
        yield from curve(never_seen(model) or model, options)
    if rules:
        yield from ["", "## The simple rules", ""]
        yield from rule_table(rules, best)


def introduction(
    rows: list[Row], report: Report, cases: dict[str, list[Case]], options: argparse.Namespace, seconds: float
) -> Iterator[str]:
    objects = {(row.set, row.case, row.object) for row in rows}
    yield f"Made by `benchmarks/default_model/evaluate.py`. Model: {model_line(options)}."
    yield (
        f"{sum(map(len, cases.values()))} cases, {len(objects)} objects, up to {options.clicks} clicks each; "
        f"{seconds:.0f} s with {options.jobs} process(es) of one thread."
    )
    if rows and rows[0].method == MODEL:
        first, later = [row.spent[0] for row in rows], [value for row in rows for value in row.spent[1:] if value > 0]
        after = f", a later click {median(later):.2f} s" if later else ""
        yield f"Median time of the first click, with opening the volume, {median(first):.2f} s{after}."
    yield f"Machine: {machine()}."
    yield ""
    yield (
        "Each object has a session of its own. The first click is the deepest point of the object (Euclidean distance "
        "in mm, the outside of the volume counts as outside), each next one the deepest point of the error: positive "
        "where the object was missed, negative where something else was taken (to within a few voxels where the "
        "region's box holds more than half a million). Scores are on the scan's own grid."
    )
    yield (
        "Never-seen sets took no part in training; of in-domain sets only held-out cases are scored (`split.json`, by "
        "patient). Sets with * come without their true spacing: the surface score takes their voxels as cubes of 1."
    )
    for name in cases:
        for value, reason in SETS.get(name, Known(OTHER)).excluded.items():
            yield f"Left out of {name}: label {value}, {reason}."
    yield f"Skipped, under {FEWEST_VOXELS} voxels: {len(report.skipped)}. {'; '.join(report.skipped)}".rstrip()
    compared = {(row.set, row.case, row.object) for row in report.rows if row.method != MODEL}
    if compared and compared != objects:
        yield f"**The simple rules were scored on {len(compared & objects)} of these {len(objects)} objects only.**"
    if report.failed:
        yield f"**Failed: {len(report.failed)}.** {'; '.join(report.failed)}"


def set_table(
    model: list[Row],
    simple: dict[int, list[Row]],
    datasets: dict[str, Dataset],
    cases: dict[str, list[Case]],
    measure: str,
    options: argparse.Namespace,
) -> Iterator[str]:
    clicks = shown(SHOWN, options.clicks)
    yield line(
        ["set", "cases", "objects", *(clicks_of(c) for c in clicks), *(f"simple rule, {clicks_of(c)}" for c in simple)]
    )
    yield line(["---"] * (3 + len(clicks) + len(simple)))

    def means(name: str, count: list[str], pick: Callable[[list[Row], Measure], float | None]) -> str:
        values = [pick(model, at(measure, click)) for click in clicks]
        values += [pick(rows, at(measure, click)) for click, rows in simple.items()]
        return line([name, *count, *map(number, values)])

    any_rows = model or next(iter(simple.values()), [])
    for kind in (NEVER_SEEN, IN_DOMAIN, OTHER):
        for name in (name for name in datasets if kind_of(name) == kind):
            star = " *" if name in SETS and SETS[name].nominal else ""
            count = [str(len(cases[name])), str(sum(row.set == name for row in any_rows))]
            yield means(name + star, count, partial(mean_of_set, name))
        if kind == NEVER_SEEN and (seen := names_of(never_seen(any_rows))):
            counts = ["", str(len(never_seen(any_rows)))]
            yield means(
                f"**never seen, mean of {len(seen)} sets**", counts, lambda r, w: mean_of_sets(never_seen(r), w)
            )
            yield means("**never seen, mean of objects**", counts, lambda r, w: mean_of(never_seen(r), w))


def structure_table(model: list[Row], simple: dict[int, list[Row]], options: argparse.Namespace) -> Iterator[str]:
    clicks = shown(SHOWN, options.clicks)
    titles = [f"{name} {clicks_of(c)}" for name in ("Dice", "NSD") for c in clicks]
    yield line(["set", "structure", "objects", *titles, *(f"simple rule, Dice {clicks_of(c)}" for c in simple)])
    yield line(["---"] * (3 + len(titles) + len(simple)))
    any_rows = model or next(iter(simple.values()), [])
    for name, structure in dict.fromkeys((row.set, row.object) for row in sorted(any_rows, key=order)):

        def of(rows: list[Row], name: str = name, structure: str = structure) -> list[Row]:
            return [row for row in rows if (row.set, row.object) == (name, structure)]

        values = [mean_of(of(model), at(measure, c)) for measure in ("dice", "nsd") for c in clicks]
        values += [mean_of(of(rows), at("dice", c)) for c, rows in simple.items()]
        yield line([name, structure, str(len(of(any_rows))), *map(number, values)])


def curve(rows: list[Row], options: argparse.Namespace) -> Iterator[str]:
    """The mean after every click, and in words whether it ever falls."""
    kinds = {
        "Dice, mean of sets": [mean_of_sets(rows, at("dice", c)) for c in range(1, options.clicks + 1)],
        "Dice, mean of objects": [mean_of(rows, at("dice", c)) for c in range(1, options.clicks + 1)],
        "NSD, mean of sets": [mean_of_sets(rows, at("nsd", c)) for c in range(1, options.clicks + 1)],
        "NSD, mean of objects": [mean_of(rows, at("nsd", c)) for c in range(1, options.clicks + 1)],
    }
    yield line(["clicks", *map(str, range(1, options.clicks + 1))])
    yield line(["---"] * (1 + options.clicks))
    for title, values in kinds.items():
        yield line([title, *map(number, values)])
    yield ""
    for title, values in kinds.items():
        yield f"- {title}: {falls([value for value in values if value is not None])}"
    steps = [after - before for row in rows for before, after in pairwise(row.dice)]
    if steps:
        worse = sum(step < -0.02 for step in steps) / len(steps)
        yield f"- Single objects: {100 * worse:.1f} % of the further clicks cost more than 0.02 Dice."


def falls(values: list[float]) -> str:
    drops = [
        f"at click {click} ({before:.4f} to {after:.4f})"
        for click, (before, after) in enumerate(pairwise(values), start=2)
        if after < before - 1e-9
    ]
    return f"FALLS {', '.join(drops)}." if drops else "never falls from one click to the next."


def rule_table(rules: list[Row], best: dict[int, str | None]) -> Iterator[str]:
    for click, rule in best.items():
        yield f"- Best at {clicks_of(click)}: {rule}."
    yield ""
    yield (
        f'"Simple rule" in the tables is, for each number of clicks, the one of {len(growing.RULES)} fixed rules of '
        "region growing that has the best mean Dice over the never-seen sets. It was chosen on these very objects, "
        "which flatters it. CT is clipped to -160..300 HU first. Its clicks follow its own errors. Mean Dice:"
    )
    yield ""
    yield line(["rule", *(f"{what}, {clicks_of(c)}" for c in best for what in ("mean of sets", "mean of objects"))])
    yield line(["---"] * (1 + 2 * len(best)))
    rows = never_seen(rules) or rules
    for rule in dict.fromkeys(row.method for row in sorted(rows, key=lambda row: rule_place(row.method))):
        own = [row for row in rows if row.method == rule]
        values = [mean(own, at("dice", c)) for c in best for mean in (mean_of_sets, mean_of)]
        yield line([rule, *map(number, values)])


def rule_place(name: str) -> int:
    return [str(rule) for rule in growing.RULES].index(name)


def order(row: Row) -> tuple[int, str]:
    return (list(SETS).index(row.set), "") if row.set in SETS else (len(SETS), row.set)


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def clicks_of(count: int) -> str:
    return f"{count} click" if count == 1 else f"{count} clicks"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def record(report: Report, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    return {
        "model": model_line(options),
        "machine": machine(),
        "clicks": options.clicks,
        "tolerance": TOLERANCE,
        "nominal_spacing": [name for name, known in SETS.items() if known.nominal],
        "seconds": round(seconds, 1),
        "skipped": report.skipped,
        "failed": report.failed,
        "rows": [asdict(row) for row in sorted(report.rows, key=key)],
    }


def write(path: Path, text: str) -> None:
    """Under a temporary name first: a run that is cut off leaves no half file."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def model_line(options: argparse.Namespace) -> str:
    """The model's name and the hash of its weights, where they are a file."""
    if options.without_model:
        return "none"
    name = options.model or "volsam-s"
    weights = [Path(name), Path(volsam.__file__).parent / "weights" / f"{name}.safetensors"]
    for path in weights:
        if path.is_file():
            return f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return str(name)


def machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in ("volsam", "torch", "monai", "numpy", "scipy"))
    return f"{processor()}, {cores} cores, {platform.system()}, Python {platform.python_version()}, {versions}"


def processor() -> str:
    path = Path("/proc/cpuinfo")
    rows = path.read_text().splitlines() if path.is_file() else []
    names = [row.split(":", 1)[1].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
