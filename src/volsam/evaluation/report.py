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
        "challenge": challenge(report) if as_in_the_challenge(report) else None,
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


def as_in_the_challenge(report: Report) -> bool:
    """Whether prompts, rule and tolerance are those of the CVPR 2025 challenge."""
    rule = rules["cvpr2025"]
    tolerance = report.settings.get("tolerance_mm", rule.tolerance_mm)
    return report.settings["protocol"] == "cvpr2025" and report.rule == rule and tolerance == rule.tolerance_mm
