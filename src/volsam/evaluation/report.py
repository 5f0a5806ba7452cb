"""What an evaluation found, as data: a table, and JSON that is read again. `report_page` has it for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from volsam.errors import BadFile
from volsam.evaluation.cvpr2025 import TIME_LIMIT, area
from volsam.evaluation.rules import MEASURES, Rule, rules
from volsam.evaluation.statistics import Mean, mean_of, values_of
from volsam.evaluation.study import FORMAT, VERSION, Row, as_record, from_record

TITLES = {"dice": "Dice", "iou": "IoU", "nsd": "NSD", "hd": "HD", "hd95": "HD95", "assd": "ASSD"}
# Intervals say little of an object that fewer cases have.
FEWEST_CASES = 5


@dataclass(frozen=True)
class Report:
    """What was asked and what came.

    settings: the question; steps: a name for each answer; rows: the scores; failed: why a case has none; machine: where
    it ran; digests: by case, of the files that were scored, where that is known.
    """

    settings: Mapping[str, Any]
    steps: Sequence[str]
    rows: Sequence[Row]
    failed: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    digests: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

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
        return f"the best of {len(self.steps)} answers, by Dice" if best else f"the last answer, after {self.steps[-1]}"

    @property
    def by_step(self) -> str:
        """What scores answer by answer are of, in words."""
        return "the best answer so far, by Dice" if self.rule.answer == "best" else "each answer"

    @property
    def rare(self) -> dict[str, int]:
        """Objects that few cases have, and how many those are."""
        cases = {name: sum(row.voxels > 0 for row in self.rows if row.object == name) for name in self.objects}
        return {name: count for name, count in cases.items() if count < FEWEST_CASES}

    def mean(self, measure: str, step: int | None = None, name: str | None = None) -> Mean:
        """Over all objects, or over those of one name; of the answer that counts, of all or of those up to `step`."""
        rows = [row for row in self.rows if name is None or row.object == name]
        return mean_of(values_of(rows, self.rule, measure, step), self.rule)


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
    known = content.get("digests", {})
    return Report(content["settings"], content["steps"], rows, content["failed"], content["machine"], known)


# --- in words --------------------------------------------------------------------------------------------------------


def number_of(mean: Mean) -> str:
    """The mean alone."""
    return "-" if isnan(mean.value) else f"{mean.value:.3f}"


def interval_of(mean: Mean) -> str:
    """The interval alone."""
    return "-" if isnan(mean.low) else f"{mean.low:.3f} to {mean.high:.3f}"


def in_words(mean: Mean) -> str:
    """A mean with its interval, where it has one, and how many values were infinite."""
    interval = "" if isnan(mean.low) else f" [{mean.low:.3f}, {mean.high:.3f}]"
    return number_of(mean) + interval + left_out(mean.left_out)


def left_out(count: int) -> str:
    """That some values were infinite, behind a mean; nothing where none was."""
    return f"; {count} infinite, left out" if count else ""


def about_rare(rare: Mapping[str, int]) -> str:
    """Why an interval says little of some objects."""
    named = ", ".join(f"{name} ({count})" for name, count in rare.items())
    return (
        f"Fewer than {FEWEST_CASES} cases have {named}: how these vary is hardly known, and intervals are too narrow."
    )


# --- data ------------------------------------------------------------------------------------------------------------


def as_data(report: Report) -> dict[str, Any]:
    """Everything, for a JSON file: the question, the means, and every single score."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "settings": dict(report.settings),
        "machine": report.machine,
        "steps": list(report.steps),
        "by_step_is_of": report.by_step,
        "summary": {
            measure: {
                "mean": _plain(report.mean(measure)),
                "by_step": [_plain(report.mean(measure, step)) for step in range(len(report.steps))],
                "by_object": {name: _plain(report.mean(measure, name=name)) for name in report.objects},
            }
            for measure in MEASURES
        },
        "challenge": challenge(report) | {"slow": slow(report)} if as_in_the_challenge(report) else None,
        "failed": dict(report.failed),
        "digests": {case: dict(known) for case, known in report.digests.items()},
        "rows": [as_record(row) for row in report.rows],
    }


def _plain(mean: Mean) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and isnan(value) else round(value, 5)
        for key, value in asdict(mean).items()
    }


def as_csv(report: Report) -> str:
    """A line for every object and answer, with 1 for the answer that counts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "object", "voxels", "step", "prompts", *MEASURES, "seconds", "counts"])
    for row in report.rows:
        counted = row.counted(report.rule)
        for step, name in enumerate(report.steps):
            values = [row.scores[measure][step] for measure in MEASURES]
            shown = ["" if isnan(value) else f"{value:.5g}" for value in values]
            asked = len(row.prompts[step]) if step < len(row.prompts) else 0
            spent = f"{row.seconds[step]:.4g}"
            writer.writerow([row.case, row.object, row.voxels, name, asked, *shown, spent, int(step == counted)])
    return text.getvalue()


def challenge(report: Report) -> dict[str, float]:
    """The figures of the CVPR 2025 challenge: means over cases of means over classes."""
    found: dict[str, list[float]] = {"DSC_AUC": [], "NSD_AUC": [], "DSC_Final": [], "NSD_Final": []}
    for rows in _by_case(report).values():
        for title, measure in (("DSC", "dice"), ("NSD", "nsd")):
            curve = np.mean([row.scores[measure] for row in rows], axis=0)
            found[f"{title}_AUC"].append(area(curve))
            found[f"{title}_Final"].append(float(curve[-1]))
    means = {title: float(np.mean(values)) for title, values in found.items() if values}
    return means | {"over_time": len(slow(report))}


def slow(report: Report) -> list[str]:
    """The cases that took longer than the challenge allows."""
    spent = {case: (sum(sum(row.seconds) for row in rows), len(rows)) for case, rows in _by_case(report).items()}
    return [case for case, (seconds, classes) in spent.items() if seconds > TIME_LIMIT * classes]


def _by_case(report: Report) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in report.rows:
        found.setdefault(row.case, []).append(row)
    return found


def as_in_the_challenge(report: Report) -> bool:
    """Whether prompts, rule and tolerance are those of the CVPR 2025 challenge."""
    rule = rules["cvpr2025"]
    tolerance = report.settings.get("tolerance_mm", rule.tolerance_mm)
    return report.settings["protocol"] == "cvpr2025" and report.rule == rule and tolerance == rule.tolerance_mm
