"""Several evaluations side by side: paired tests against the first, click curves, and scores by number of labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

from volsam.data.files import replacing, write_json
from volsam.errors import BadInput
from volsam.evaluation import figures, page
from volsam.evaluation.page import Block, Drawing, Heading, Points, Table, Text
from volsam.evaluation.report import TITLES, Report
from volsam.evaluation.statistics import Mean, Paired, adjusted, mean_of, paired, values_of

TESTED = ("dice", "nsd", "hd95")
EVERYTHING = "all objects"
DATA = "comparison.json"


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
        number = 2
        while name in found:
            name, number = f"{name} ({number})", number + 1
        found[name] = report
    return found


def require_comparable(reports: Mapping[str, Report]) -> None:
    """Refuse scores that were not taken by one rule, or that share no case."""
    if len(reports) < 2:
        raise BadInput(f"--compare takes two or more results, got {len(reports)}")
    first_name, first = next(iter(reports.items()))
    cases = {(row.case, row.object) for row in first.rows}
    for name, report in reports.items():
        for key in ("dataset", "rule", "tolerance_mm"):
            if report.settings[key] != first.settings[key]:
                raise BadInput(
                    f"{first_name} and {name} were scored with {key} {first.settings[key]!r} and "
                    f"{report.settings[key]!r}: such scores cannot be compared"
                )
        if not cases & {(row.case, row.object) for row in report.rows}:
            raise BadInput(f"{first_name} and {name} have no case in common: evaluate both on one split")


def tests(reports: Mapping[str, Report]) -> list[Test]:
    """Every method against the first, for every measure, over all objects and for each."""
    (_, first), *others = reports.items()
    objects = [EVERYTHING, *first.objects] if len(first.objects) > 1 else [EVERYTHING]
    found = []
    for measure in TESTED:
        for name in objects:
            before = _values(first, measure, name)
            results = {method: paired(before, _values(report, measure, name), first.rule) for method, report in others}
            corrected = adjusted({method: result.p for method, result in results.items()})
            found += [
                Test(method, measure, name, result, corrected[method])
                for method, result in results.items()
                if result.cases
            ]
    return found


def write(reports: Mapping[str, Report], folder: Path) -> list[Test]:
    """Write comparison.json, .csv, .md and .html into a folder; gives the tests."""
    require_comparable(reports)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / DATA).is_file())):
        raise BadInput(f"-o {folder} exists and is no comparison of ours: give the name of a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    found = tests(reports)
    blocks = list(blocks_of(reports, found))
    write_json(
        folder / DATA,
        {
            "methods": {name: dict(report.settings) for name, report in reports.items()},
            "tests": [_record(test) for test in found],
        },
    )
    for name, text in (
        ("comparison.csv", _csv(found)),
        ("comparison.md", page.as_markdown(blocks, folder)),
        ("comparison.html", page.as_html(blocks)),
    ):
        with replacing(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return found


def in_words(test: Test, first: str) -> str:
    """One line for a terminal."""
    result = test.result
    return (
        f"{TITLES[test.measure]} {test.method} {result.second:.3f}, {first} {result.first:.3f}: "
        f"{result.difference:+.3f} ({result.low:+.3f} to {result.high:+.3f}), p {_p(test.holm)}, {result.cases} cases"
    )


# --- the page --------------------------------------------------------------------------------------------------------


def blocks_of(reports: Mapping[str, Report], found: Sequence[Test]) -> Iterator[Block]:
    """The page, block by block."""
    first = next(iter(reports))
    one = reports[first]
    yield Heading(f"{len(reports)} methods on {one.settings['dataset']}", level=1)
    yield Points(
        [
            f"Rule: {one.rule.name}, after {one.rule.source}; surface score at {one.settings['tolerance_mm']:g} mm",
            f"Each method is compared with {first} on the objects that both have a finite score for",
            "Difference: method minus the first, with the interval of 95 of 100 draws of cases with replacement",
            "p: Wilcoxon's signed-rank test on the means of cases, two-sided, after Holm for the number of methods",
        ]
    )
    yield Heading("Methods")
    yield Table(
        ["method", "protocol", "cases", *(TITLES[measure] for measure in TESTED)],
        [
            [name, str(report.settings["protocol"]), str(report.mean("dice").cases)]
            + [_mean(report.mean(measure)) for measure in TESTED]
            for name, report in reports.items()
        ],
    )
    for measure in TESTED:
        rows = [test for test in found if test.measure == measure]
        if rows:
            yield Heading(f"{TITLES[measure]}, against {first}")
            yield Table(
                [
                    "method",
                    "object",
                    "first",
                    "method's",
                    "difference",
                    "95 % interval",
                    "p",
                    "better",
                    "worse",
                    "cases",
                ],
                [_cells(test) for test in rows],
            )
    yield from _curves(reports)
    yield from _by_labels(reports)


def _curves(reports: Mapping[str, Report]) -> Iterator[Block]:
    """Answer by answer, where all methods were asked the same."""
    steps = [tuple(report.steps) for report in reports.values()]
    if len(set(steps)) > 1 or len(steps[0]) < 2:
        return
    yield Heading("Answer by answer")
    table = {name: [_at(report, "dice", step) for step in range(len(steps[0]))] for name, report in reports.items()}
    yield Table(["method", *steps[0]], [[name, *map(_mean, means)] for name, means in table.items()])
    if figures.available():
        places = list(range(len(steps[0])))
        lines = [figures.Line(name, places, means) for name, means in table.items()]
        yield Drawing(figures.curves(lines, "answer", "Dice", list(steps[0])), "Dice after each answer.")


def _by_labels(reports: Mapping[str, Report]) -> Iterator[Block]:
    """Scores by the number of labelled volumes, for methods of which several are known."""
    groups: dict[str, dict[int, Report]] = {}
    for report in reports.values():
        labels = report.settings.get("trained_on")
        if labels is not None:
            groups.setdefault(report.name, {})[int(labels)] = report
    if not any(len(group) > 1 for group in groups.values()):
        return
    yield Heading("By number of labelled volumes")
    counts = sorted({labels for group in groups.values() for labels in group})
    rows = [
        [name, *(_mean(group[count].mean("dice")) if count in group else "-" for count in counts)]
        for name, group in groups.items()
    ]
    yield Table(["method", *(str(count) for count in counts)], rows)
    yield Text("Dice, with the 95 % interval.")
    if figures.available():
        lines = [
            figures.Line(name, sorted(group), [group[count].mean("dice") for count in sorted(group)])
            for name, group in groups.items()
        ]
        drawn = figures.curves(lines, "labelled volumes", "Dice")
        yield Drawing(drawn, "Dice by the number of labelled volumes that a method was trained on.")


def _values(report: Report, measure: str, name: str) -> Any:
    rows = [row for row in report.rows if name in (EVERYTHING, row.object)]
    return values_of(rows, report.rule, measure)


def _at(report: Report, measure: str, step: int) -> Mean:
    return mean_of([(row.case, row.object, row.scores[measure][step]) for row in report.rows], report.rule)


def _mean(mean: Mean) -> str:
    if isnan(mean.value):
        return "-"
    return f"{mean.value:.3f}" if isnan(mean.low) else f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"


def _cells(test: Test) -> list[str]:
    result = test.result
    interval = "-" if isnan(result.low) else f"{result.low:+.3f} to {result.high:+.3f}"
    means = [f"{result.first:.3f}", f"{result.second:.3f}", f"{result.difference:+.3f}"]
    better, worse = (result.losses, result.wins) if test.measure == "hd95" else (result.wins, result.losses)
    return [test.method, test.object, *means, interval, _p(test.holm), str(better), str(worse), str(result.cases)]


def _p(value: float) -> str:
    return "-" if isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _record(test: Test) -> dict[str, Any]:
    record = {"method": test.method, "measure": test.measure, "object": test.object, "holm": test.holm}
    record |= asdict(test.result)
    return {key: None if isinstance(value, float) and isnan(value) else value for key, value in record.items()}


def _csv(found: Sequence[Test]) -> str:
    text = io.StringIO()
    if found:
        writer = csv.DictWriter(text, list(_record(found[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_record(test) for test in found)
    return text.getvalue()
