"""Several evaluations side by side, as data: what may be compared, paired tests. `comparison_page` is for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from typing import Any

from volsam.errors import BadInput
from volsam.evaluation.report import Report
from volsam.evaluation.rules import DISTANCES
from volsam.evaluation.statistics import Mean, Paired, Values, adjusted, common, mean_of, paired, values_of

TESTED = ("dice", "nsd", "hd95")
EVERYTHING = "all objects"


@dataclass(frozen=True)
class Test:
    """A method against the first: of a measure, over all objects or those of one name; `holm` is p corrected for the
    number of methods that are compared.
    """

    method: str
    measure: str
    object: str
    result: Paired
    holm: float


def named(reports: Sequence[Report]) -> dict[str, Report]:
    """Reports by the name of their method, with the number of labels where it is known; no name twice."""
    found: dict[str, Report] = {}
    for report in reports:
        labels = report.settings.get("trained_on")
        name = report.name if labels is None else f"{report.name}, {labels} {'volume' if labels == 1 else 'volumes'}"
        if name in found:
            name = f"{name}, {report.settings['protocol']}"
        single, number = name, 2
        while name in found:
            name, number = f"{single} ({number})", number + 1
        found[name] = report
    return found


def require_comparable(reports: Mapping[str, Report]) -> None:
    """Refuse scores that were not taken by one rule, on other images or labels, or that share no case."""
    if len(reports) < 2:
        raise BadInput(f"--compare takes two or more results, got {len(reports)}")
    first_name, first = next(iter(reports.items()))
    cases = {(row.case, row.object) for row in first.rows}
    for name, report in reports.items():
        other = _question(report)
        for key, value in _question(first).items():
            if key in other and other[key] != value:
                raise BadInput(
                    f"{first_name} and {name} were scored with {key} {value!r} and {other[key]!r}: such scores cannot "
                    "be compared"
                )
        if not cases & {(row.case, row.object) for row in report.rows}:
            raise BadInput(f"{first_name} and {name} have no case in common: evaluate both on one split")
        if files := _other_files(first, report):
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            raise BadInput(
                f"{first_name} and {name} were scored on different files of {files[0]}{more}: evaluate both on the "
                "same images and labels"
            )


def _question(report: Report) -> dict[str, Any]:
    """What must be the same in two reports, as far as it is known: the rule, and what the objects are made of."""
    settings = report.settings
    asked = {key: settings[key] for key in ("dataset", "rule", "tolerance_mm", "ignore") if key in settings}
    return asked | {f"the value of {name}": value for name, value in settings.get("objects", {}).items()}


def _other_files(first: Report, second: Report) -> list[str]:
    """Which of the cases of both have another image or label in the one than in the other, and in which of these."""
    found = []
    for case, known in first.digests.items():
        others = second.digests.get(case, {})
        both = known.keys() & others.keys()
        differ = [what for what in ("image", "label") if what in both and known[what] != others[what]]
        if differ:
            found.append(f"{case} ({' and '.join(differ)})")
    return found


def tests(reports: Mapping[str, Report]) -> list[Test]:
    """Every method against the first, for every measure, over all objects and for each."""
    (_, first), *others = reports.items()
    objects = [EVERYTHING, *first.objects] if len(first.objects) > 1 else [EVERYTHING]
    found = []
    for measure in TESTED:
        less = measure in DISTANCES
        for name in objects:
            before = _values(first, measure, name)
            results = {
                method: paired(before, _values(report, measure, name), first.rule, less_is_better=less)
                for method, report in others
            }
            corrected = adjusted({method: result.p for method, result in results.items()})
            found += [
                Test(method, measure, name, result, corrected[method])
                for method, result in results.items()
                if result.cases or result.left_out
            ]
    return found


def means(reports: Mapping[str, Report], measure: str, step: int | None = None) -> dict[str, Mean]:
    """The mean of every method over the objects that all have a finite value for; the others with an infinite one are
    counted as left out.
    """
    rule = next(iter(reports.values())).rule
    shared, left_out = common([values_of(report.rows, rule, measure, step) for report in reports.values()])
    return {
        name: replace(mean_of(values, rule), left_out=left_out) for name, values in zip(reports, shared, strict=True)
    }


def rare(reports: Mapping[str, Report]) -> dict[str, int]:
    """Objects that few of the cases that all reports have in common hold, and how many those are."""
    first, *others = reports.values()
    known = [{(row.case, row.object) for row in report.rows} for report in others]
    rows = [row for row in first.rows if all((row.case, row.object) in each for each in known)]
    return replace(first, rows=rows).rare


def _values(report: Report, measure: str, name: str) -> Values:
    rows = [row for row in report.rows if name in (EVERYTHING, row.object)]
    return values_of(rows, report.rule, measure)


# --- plain data ------------------------------------------------------------------------------------------------------


def as_data(reports: Mapping[str, Report], found: Sequence[Test]) -> dict[str, Any]:
    """Everything, for a JSON file: the question behind each method, and the tests."""
    return {
        "methods": {name: dict(report.settings) for name, report in reports.items()},
        "tests": [_record(test) for test in found],
    }


def as_csv(found: Sequence[Test]) -> str:
    """A line for every test."""
    text = io.StringIO()
    if found:
        writer = csv.DictWriter(text, list(_record(found[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_record(test) for test in found)
    return text.getvalue()


def _record(test: Test) -> dict[str, Any]:
    record = {"method": test.method, "measure": test.measure, "object": test.object}
    record |= asdict(test.result) | {"holm": test.holm}
    return {key: None if isinstance(value, float) and isnan(value) else value for key, value in record.items()}
