"""What an evaluation found, for people: a page of tables, plots and pictures, as report.md and report.html."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from pathlib import Path

import numpy as np

from volsam.data.files import replacing, write_json
from volsam.evaluation import figures, page
from volsam.evaluation.cvpr2025 import TIME_LIMIT
from volsam.evaluation.page import Block, Drawing, Heading, Picture, Points, Table, Text
from volsam.evaluation.report import (
    TITLES,
    Report,
    about_rare,
    as_csv,
    as_data,
    as_in_the_challenge,
    challenge,
    in_words,
    interval_of,
    number_of,
    slow,
)
from volsam.evaluation.rules import DISTANCES, MEASURES, Rule
from volsam.evaluation.statistics import DRAWS, mean_of, values_of
from volsam.evaluation.study import Row

# An object is taken for found once it reaches this.
GOOD = 0.85
# Fewer objects are not told apart by size.
FEWEST_FOR_SIZES = 9


def write(report: Report, folder: Path) -> None:
    """Write all four files; each appears whole or not at all."""
    write_json(folder / "results.json", as_data(report))
    blocks = list(blocks_of(report, folder))
    for name, text in (
        ("scores.csv", as_csv(report)),
        ("report.md", page.as_markdown(blocks, folder)),
        ("report.html", page.as_html(blocks)),
    ):
        with replacing(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def blocks_of(report: Report, folder: Path) -> Iterator[Block]:
    """The page, block by block."""
    settings, rule = report.settings, report.rule
    yield Heading(f"{report.name} on {settings['dataset']}", level=1)
    yield Points(list(_introduction(report)))
    if not report.rows:
        yield Text("No case was scored.")
        return
    yield Heading("Together")
    yield Table(
        ["measure", "mean", "95 % interval", "cases", "infinite, left out"],
        [
            [_title(measure, rule), number_of(mean), interval_of(mean), str(mean.cases), str(mean.left_out)]
            for measure in MEASURES
            if (mean := report.mean(measure)).cases or mean.left_out
        ],
    )
    if len(_cases(report)) == 1:
        yield Text("One case, no interval.")
    elif report.rare:
        yield Text(about_rare(report.rare))
    if as_in_the_challenge(report):
        yield from _challenge_blocks(report)
    yield Heading("By object")
    means = {measure: report.mean(measure) for measure in ("dice", "iou", "nsd", "hd95", "assd")}
    shown = [measure for measure, mean in means.items() if mean.cases or mean.left_out]
    yield Table(
        ["object", "cases", *(_title(measure, rule) for measure in shown)],
        [
            [name, str(report.mean("dice", name=name).cases)]
            + [in_words(report.mean(measure, name=name)) for measure in shown]
            for name in report.objects
        ],
    )
    if figures.available():
        values = {name: _counted(report, "dice", name) for name in report.objects}
        if any(np.isfinite(each).any() for each in values.values()):
            most = max(map(len, values.values()))
            drawn = "every case" if most <= figures.MOST_DOTS else f"at most {figures.MOST_DOTS} cases of an object"
            yield Drawing(
                figures.spread(values, "Dice"), f"Dice, a dot for {drawn}; the box holds the middle half of all."
            )
    yield from _size_blocks(report)
    if len(report.steps) > 1:
        yield from _step_blocks(report)
    yield from _worst_blocks(report, folder)
    if report.failed:
        yield Heading("Failed")
        yield Points([f"{case}: {reason}" for case, reason in report.failed.items()])


def _introduction(report: Report) -> Iterator[str]:
    settings, rule = report.settings, report.rule
    yield f"Model: {settings['model']}" + (f", weights {settings['weights']}" if settings.get("weights") else "")
    yield f"Cases: {len(_cases(report))} scored, {len(report.failed)} failed; split {settings['split']}"
    if settings.get("trained_on") is not None:
        steps = f", {settings['steps']:,} steps" if settings.get("steps") else ""
        yield f"Learnt from: {settings['trained_on']} case{'s' * (settings['trained_on'] != 1)}{steps}"
    yield from (f"{remark[0].upper()}{remark[1:]}" for remark in settings.get("remarks") or ())
    yield f"Protocol: {settings['protocol']}; {settings['described']}"
    yield f"Rule: {rule.name}, after {rule.source}: {rule.summary}"
    yield f"Tolerance of the surface score: {settings['tolerance_mm']:g} mm"
    if report.answer:
        yield f"Scores are those of {report.answer}, unless another is named"
    yield "Empty masks: " + _empty_policy(rule)
    if settings.get("ignore") is not None:
        yield f'Voxels labelled {settings["ignore"]}, "ignore", are neither right nor wrong, and get no clicks'
    taken = "the objects of a case, then cases" if rule.mean == "case" else "the cases of an object, then objects"
    yield f"Means are taken over {taken}; intervals hold 95 of 100 means of {DRAWS} draws of weights for the cases"
    if report.machine:
        yield f"Machine: {report.machine}"
    if not figures.available():
        yield 'Plots are missing here: they need the extra "train"'


def _empty_policy(rule: Rule) -> str:
    both = "do not count" if isnan(rule.both_empty) else f"score {rule.both_empty:g}"
    missed = "is infinite and left out of means, with the number of such cases" if np.isinf(rule.missed) else "is 0"
    if rule.present_only:
        return f"an object that a case lacks does not count; of an empty mask overlaps are 0 and the distance {missed}"
    return f"mask and object both empty {both}; where one of them is, overlaps are 0 and the distance {missed}"


def _cases(report: Report) -> list[str]:
    return list(dict.fromkeys(row.case for row in report.rows))


def _challenge_blocks(report: Report) -> Iterator[Block]:
    found = challenge(report)
    del found["over_time"]
    yield Heading("Figures of the challenge")
    yield Table(list(found), [[f"{value:.4f}" for value in found.values()]])
    if over := slow(report):
        yield Text(
            f"Longer than {TIME_LIMIT:g} s for each class took {', '.join(over)}; the challenge scores such a case 0, "
            "here it keeps its scores, since the machine is another."
        )


def _size_blocks(report: Report) -> Iterator[Block]:
    """Small, middle and large objects apart, where there are enough of them: what is small is hard."""
    rows = sorted((row for row in report.rows if row.voxels), key=lambda row: row.voxels)
    if len(rows) < FEWEST_FOR_SIZES:
        return
    thirds = [rows[len(rows) * part // 3 : len(rows) * (part + 1) // 3] for part in range(3)]
    shown = ("dice", "nsd", "hd95")
    yield Heading("By size")
    yield Table(
        ["objects", "voxels", "number", *(_title(measure, report.rule) for measure in shown)],
        [
            [name, f"{third[0].voxels:,} to {third[-1].voxels:,}", str(len(third))]
            + [in_words(mean_of(values_of(third, report.rule, measure), report.rule)) for measure in shown]
            for name, third in zip(("small", "middle", "large"), thirds, strict=True)
        ],
    )


def _step_blocks(report: Report) -> Iterator[Block]:
    yield Heading("Answer by answer")
    yield Text(f"Scores are those of {report.by_step}.")
    seconds = np.array([row.seconds for row in report.rows])
    rows = []
    for step, name in enumerate(report.steps):
        spent = seconds[:, step][seconds[:, step] > 0]
        times = [f"{np.median(spent):.2f}", f"{np.percentile(spent, 95):.2f}"] if spent.size else ["-", "-"]
        scores = [in_words(report.mean(measure, step)) for measure in ("dice", "nsd")]
        rows.append([name, *scores, *times])
    yield Table(["answer", "Dice", _title("nsd", report.rule), "median s", "95th percentile s"], rows)
    reached = [_first_good(row) for row in report.rows]
    found = [place for place in reached if place is not None]
    words = f", half of these after {report.steps[int(np.median(found))]}" if found else ""
    yield Text(f"{len(found)} of {len(reached)} objects reach a Dice of {GOOD:g}{words}.")
    if figures.available():
        places = list(range(len(report.steps)))
        for measure in ("dice", "nsd"):
            means = [report.mean(measure, step) for step in places]
            singles = [
                [row.scores[measure][row.counted(report.rule, step)] for step in places] for row in report.rows[:200]
            ]
            title = TITLES[measure]
            line = figures.Line(title, places, means, singles)
            yield Drawing(
                figures.curves([line], "answer", title, list(report.steps)),
                f"{title} of {report.by_step}: the mean with its 95 % interval, and every object as a thin line.",
            )


def _worst_blocks(report: Report, folder: Path) -> Iterator[Block]:
    known = [(row, row.counted(report.rule)) for row in report.rows if row.voxels]
    known = [(row, counted) for row, counted in known if not isnan(row.scores["dice"][counted])]
    worst = sorted(known, key=lambda pair: pair[0].scores["dice"][pair[1]])[:10]
    if not worst:
        return
    yield Heading("The worst objects")
    yield Table(
        ["case", "object", "voxels", "Dice", "NSD", "HD95"],
        [
            [row.case, row.object, f"{row.voxels:,}"]
            + [_cell(row.scores[measure][counted], measure) for measure in ("dice", "nsd", "hd95")]
            for row, counted in worst
        ],
    )
    for file in sorted((folder / "pictures").glob("*.png")):
        score, _, name = file.stem.partition(" ")
        yield Picture(file, f"{name}: Dice {int(score) / 1000:.3f}. Green: right, blue: missed, red: wrong.")


def _counted(report: Report, measure: str, name: str) -> list[float]:
    rows = [row for row in report.rows if row.object == name]
    return [value for _, _, value in values_of(rows, report.rule, measure)]


def _first_good(row: Row) -> int | None:
    return next((place for place, value in enumerate(row.scores["dice"]) if value >= GOOD), None)


def _title(measure: str, rule: Rule) -> str:
    unit = (", voxels" if rule.voxels else ", mm") if measure in DISTANCES else ""
    return f"{TITLES[measure]}{unit}"


def _cell(value: float, measure: str) -> str:
    if isnan(value):
        return "-"
    return "none" if np.isinf(value) else f"{value:.2f}" if measure in DISTANCES else f"{value:.3f}"
