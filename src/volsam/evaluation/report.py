"""What an evaluation found, as files: scores.csv, results.json, report.md and report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from volsam.data.files import replacing, write_json
from volsam.errors import BadFile
from volsam.evaluation import figures, page
from volsam.evaluation.cvpr2025 import TIME_LIMIT, area
from volsam.evaluation.page import Block, Drawing, Heading, Picture, Points, Table, Text
from volsam.evaluation.rules import DISTANCES, MEASURES, Rule, rules
from volsam.evaluation.statistics import DRAWS, Mean, mean_of, values_of
from volsam.evaluation.study import FORMAT, VERSION, Row, as_record, from_record

TITLES = {"dice": "Dice", "iou": "IoU", "nsd": "NSD", "hd": "HD", "hd95": "HD95", "assd": "ASSD"}
# An object is taken for found once it reaches this.
GOOD = 0.85
# Fewer objects are not told apart by size.
FEWEST_FOR_SIZES = 9


@dataclass(frozen=True)
class Report:
    """What was asked and what came.

    settings: the question; steps: a name for each answer; rows: the scores; failed: why a case has none; machine: where
    it ran.
    """

    settings: Mapping[str, Any]
    steps: Sequence[str]
    rows: Sequence[Row]
    failed: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""

    @property
    def rule(self) -> Rule:
        """By which it was scored."""
        return rules[str(self.settings["rule"])]

    @property
    def name(self) -> str:
        """What the method is called."""
        return str(self.settings.get("name") or self.settings["model"])

    @property
    def objects(self) -> list[str]:
        """Names of the objects, in the order in which they came."""
        return list(dict.fromkeys(row.object for row in self.rows))

    @property
    def answer(self) -> str:
        """Which of several answers counts, in words; nothing where there is one."""
        if len(self.steps) < 2:
            return ""
        best = self.rule.answer == "best"
        return f"the best of {len(self.steps)} answers" if best else f"the last answer, after {self.steps[-1]}"

    def mean(self, measure: str, step: int | None = None, name: str | None = None) -> Mean:
        """Over all objects, or over those of one name; at an answer, or where none is given by the rule's choice."""
        rows = [row for row in self.rows if name is None or row.object == name]
        return mean_of(values_of(rows, self.rule, measure, step), self.rule)


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


def read(path: Path) -> Report:
    """The report behind a results.json, or behind the folder that holds one."""
    import json

    path = path / "results.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise BadFile(f"{path} is not JSON: give a results.json of `volsam evaluate`") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadFile(f"{path} is not a results.json of `volsam evaluate`")
    if content["version"] > VERSION:
        raise BadFile(f"{path} was written by a newer volsam: update volsam to read it")
    rows = [from_record(record) for record in content["rows"]]
    return Report(content["settings"], content["steps"], rows, content["failed"], content["machine"])


# --- data ------------------------------------------------------------------------------------------------------------


def as_data(report: Report) -> dict[str, Any]:
    """Everything, for a JSON file: the question, the means, and every single score."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": dict(report.settings),
        "machine": report.machine,
        "steps": list(report.steps),
        "summary": {
            measure: {
                "mean": _plain(report.mean(measure)),
                "by_step": [_plain(report.mean(measure, step)) for step in range(len(report.steps))],
                "by_object": {name: _plain(report.mean(measure, name=name)) for name in report.objects},
            }
            for measure in MEASURES
        },
        "challenge": challenge(report) if _as_in_the_challenge(report) else None,
        "failed": dict(report.failed),
        "rows": [as_record(row) for row in report.rows],
    }


def _plain(mean: Mean) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and isnan(value) else round(value, 5)
        for key, value in asdict(mean).items()
    }


def as_csv(report: Report) -> str:
    """A line for every object and answer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "object", "voxels", "step", "prompts", *MEASURES, "seconds"])
    for row in report.rows:
        for step, name in enumerate(report.steps):
            values = [row.scores[measure][step] for measure in MEASURES]
            shown = ["" if isnan(value) else f"{value:.5g}" for value in values]
            asked = len(row.prompts[step]) if step < len(row.prompts) else 0
            writer.writerow([row.case, row.object, row.voxels, name, asked, *shown, f"{row.seconds[step]:.4g}"])
    return text.getvalue()


def challenge(report: Report) -> dict[str, float]:
    """The figures of the CVPR 2025 challenge: means over cases of means over classes."""
    found: dict[str, list[float]] = {"DSC_AUC": [], "NSD_AUC": [], "DSC_Final": [], "NSD_Final": []}
    slow = 0
    for case in dict.fromkeys(row.case for row in report.rows):
        rows = [row for row in report.rows if row.case == case]
        for title, measure in (("DSC", "dice"), ("NSD", "nsd")):
            curve = np.mean([row.scores[measure] for row in rows], axis=0)
            found[f"{title}_AUC"].append(area(curve))
            found[f"{title}_Final"].append(float(curve[-1]))
        slow += sum(sum(row.seconds) for row in rows) > TIME_LIMIT * len(rows)
    return {title: float(np.mean(values)) for title, values in found.items() if values} | {"over_time": slow}


# --- the page --------------------------------------------------------------------------------------------------------


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
            [_title(measure, rule), _number(mean), _interval(mean), str(mean.cases), str(mean.left_out)]
            for measure in MEASURES
            if (mean := report.mean(measure)).cases or mean.left_out
        ],
    )
    if _as_in_the_challenge(report):
        yield from _challenge_blocks(report)
    yield Heading("By object")
    shown = [measure for measure in ("dice", "iou", "nsd", "hd95", "assd") if report.mean(measure).cases]
    yield Table(
        ["object", "cases", *(_title(measure, rule) for measure in shown)],
        [
            [name, str(report.mean("dice", name=name).cases)]
            + [_with_interval(report.mean(measure, name=name)) for measure in shown]
            for name in report.objects
        ],
    )
    if figures.available():
        values = {name: _counted(report, "dice", name) for name in report.objects}
        if any(np.isfinite(each).any() for each in values.values()):
            yield Drawing(figures.spread(values, "Dice"), "Dice of every case; the box holds the middle half.")
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
    cases = len(dict.fromkeys(row.case for row in report.rows))
    yield f"Cases: {cases} scored, {len(report.failed)} failed; split {settings['split']}"
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
    taken = "the objects of a case, then cases" if rule.mean == "case" else "the cases of an object, then objects"
    yield f"Means are taken over {taken}; intervals hold 95 of 100 means of {DRAWS} draws of cases with replacement"
    if report.machine:
        yield f"Machine: {report.machine}"
    if not figures.available():
        yield 'Plots are missing here: they need the extra "train"'


def _empty_policy(rule: Rule) -> str:
    both = "do not count" if isnan(rule.both_empty) else f"score {rule.both_empty:g}"
    missed = "is infinite and left out of means, with the number of such cases" if np.isinf(rule.missed) else "is 0"
    return f"mask and object both empty {both}; where one of them is, overlaps are 0 and the distance {missed}"


def _as_in_the_challenge(report: Report) -> bool:
    """Whether prompts, rule and tolerance are those of the CVPR 2025 challenge."""
    rule = rules["cvpr2025"]
    tolerance = report.settings.get("tolerance_mm", rule.tolerance_mm)
    return report.settings["protocol"] == "cvpr2025" and report.rule == rule and tolerance == rule.tolerance_mm


def _challenge_blocks(report: Report) -> Iterator[Block]:
    found = challenge(report)
    over = found.pop("over_time")
    yield Heading("Figures of the challenge")
    yield Table(list(found), [[f"{value:.4f}" for value in found.values()]])
    yield Text(
        f"{over:.0f} cases took longer than {TIME_LIMIT:g} s for each class; the challenge scores such cases 0, here "
        "they keep their scores, since the machine is another."
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
            + [_with_interval(mean_of(values_of(third, report.rule, measure), report.rule)) for measure in shown]
            for name, third in zip(("small", "middle", "large"), thirds, strict=True)
        ],
    )


def _step_blocks(report: Report) -> Iterator[Block]:
    yield Heading("Answer by answer")
    seconds = np.array([row.seconds for row in report.rows])
    rows = []
    for step, name in enumerate(report.steps):
        spent = seconds[:, step][seconds[:, step] > 0]
        times = [f"{np.median(spent):.2f}", f"{np.percentile(spent, 95):.2f}"] if spent.size else ["-", "-"]
        scores = [_with_interval(_at(report, measure, step)) for measure in ("dice", "nsd")]
        rows.append([name, *scores, *times])
    yield Table(["answer", "Dice", _title("nsd", report.rule), "median s", "95th percentile s"], rows)
    reached = [_first_good(row) for row in report.rows]
    found = [place for place in reached if place is not None]
    words = f", half of these after {report.steps[int(np.median(found))]}" if found else ""
    yield Text(f"{len(found)} of {len(reached)} objects reach a Dice of {GOOD:g}{words}.")
    if figures.available():
        places = list(range(len(report.steps)))
        for measure in ("dice", "nsd"):
            means = [_at(report, measure, step) for step in places]
            singles = [row.scores[measure] for row in report.rows[:200]]
            title = TITLES[measure]
            line = figures.Line(title, places, means, singles)
            yield Drawing(
                figures.curves([line], "answer", title, list(report.steps)),
                f"{title} after each answer: the mean with its 95 % interval, and every object as a thin line.",
            )


def _worst_blocks(report: Report, folder: Path) -> Iterator[Block]:
    rows = [row for row in report.rows if row.voxels and not isnan(row.scores["dice"][-1])]
    worst = sorted(rows, key=lambda row: row.scores["dice"][-1])[:10]
    if not worst:
        return
    yield Heading("The worst objects")
    yield Table(
        ["case", "object", "voxels", "Dice", "NSD", "HD95"],
        [
            [row.case, row.object, f"{row.voxels:,}"]
            + [_cell(row.scores[measure][-1], measure) for measure in ("dice", "nsd", "hd95")]
            for row in worst
        ],
    )
    for file in sorted((folder / "pictures").glob("*.png")):
        score, _, name = file.stem.partition(" ")
        yield Picture(file, f"{name}: Dice {int(score) / 1000:.3f}. Green: right, blue: missed, red: wrong.")


def _at(report: Report, measure: str, step: int) -> Mean:
    """The mean of one answer alone, whatever the rule would choose of several."""
    values = [(row.case, row.object, row.scores[measure][step]) for row in report.rows]
    return mean_of(values, report.rule)


def _counted(report: Report, measure: str, name: str) -> list[float]:
    rows = [row for row in report.rows if row.object == name]
    return [value for _, _, value in values_of(rows, report.rule, measure)]


def _first_good(row: Row) -> int | None:
    return next((place for place, value in enumerate(row.scores["dice"]) if value >= GOOD), None)


def _title(measure: str, rule: Rule) -> str:
    unit = (", voxels" if rule.voxels else ", mm") if measure in DISTANCES else ""
    return f"{TITLES[measure]}{unit}"


def _number(mean: Mean) -> str:
    return "-" if isnan(mean.value) else f"{mean.value:.3f}"


def _interval(mean: Mean) -> str:
    return "-" if isnan(mean.low) else f"{mean.low:.3f} to {mean.high:.3f}"


def _with_interval(mean: Mean) -> str:
    if isnan(mean.low):
        return _number(mean)
    return f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"


def _cell(value: float, measure: str) -> str:
    if isnan(value):
        return "-"
    return "none" if np.isinf(value) else f"{value:.2f}" if measure in DISTANCES else f"{value:.3f}"
