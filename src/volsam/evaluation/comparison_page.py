"""Several evaluations side by side, for people: tables and curves, as comparison.md and comparison.html."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path

import numpy as np

from volsam.data.files import replacing, write_json
from volsam.errors import BadInput
from volsam.evaluation import comparison, figures, page
from volsam.evaluation.comparison import TESTED, Test, means
from volsam.evaluation.page import Block, Drawing, Heading, Points, Table, Text
from volsam.evaluation.report import TITLES, Report, about_rare, in_words, left_out, number_of
from volsam.evaluation.statistics import Mean

DATA = "comparison.json"


def write(reports: Mapping[str, Report], folder: Path) -> list[Test]:
    """Write comparison.json, .csv, .md and .html into a folder; gives the tests."""
    comparison.require_comparable(reports)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / DATA).is_file())):
        raise BadInput(f"-o {folder} exists and is no comparison of ours: give the name of a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    found = comparison.tests(reports)
    blocks = list(blocks_of(reports, found))
    write_json(folder / DATA, comparison.as_data(reports, found))
    for name, text in (
        ("comparison.csv", comparison.as_csv(found)),
        ("comparison.md", page.as_markdown(blocks, folder)),
        ("comparison.html", page.as_html(blocks)),
    ):
        with replacing(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return found


def line_of(test: Test, first: str) -> str:
    """One line for a terminal."""
    result, title = test.result, TITLES[test.measure]
    if not result.cases:
        return f"{title} {test.method}, {first}: nothing finite in both{left_out(result.left_out)}"
    interval = ", no interval" if isnan(result.low) else f" ({result.low:+.3f} to {result.high:+.3f})"
    many = "s" * (result.cases != 1)
    return (
        f"{title} {test.method} {result.second:.3f}, {first} {result.first:.3f}: {result.difference:+.3f}{interval}; "
        f"by case {result.difference_by_case:+.3f}, p {_p(test.holm)}, better in {result.wins} and worse in "
        f"{result.losses} of {result.cases} case{many}{left_out(result.left_out)}"
    )


# --- the page --------------------------------------------------------------------------------------------------------


def blocks_of(reports: Mapping[str, Report], found: Sequence[Test]) -> Iterator[Block]:
    """The page, block by block."""
    first = next(iter(reports))
    one = reports[first]
    yield Heading(f"{len(reports)} methods on {one.settings['dataset']}", level=1)
    yield Points(list(_introduction(reports, first)))
    yield Heading("Methods")
    shared = {measure: means(reports, measure) for measure in TESTED}
    yield Table(
        ["method", "protocol", "cases", *(TITLES[measure] for measure in TESTED)],
        [
            [name, str(report.settings["protocol"]), str(shared["dice"][name].cases)]
            + [in_words(shared[measure][name]) for measure in TESTED]
            for name, report in reports.items()
        ],
    )
    yield Text("Means over the objects that all methods have a finite score for.")
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
                    "difference [95 %]",
                    "cases",
                    "left out",
                    "by case",
                    "p",
                    "better, worse",
                ],
                [_cells(test) for test in rows],
            )
    if rare := comparison.rare(reports):
        yield Text(about_rare(rare))
    yield from _curves(reports)
    yield from _by_labels(reports)


def _introduction(reports: Mapping[str, Report], first: str) -> Iterator[str]:
    one = reports[first]
    yield f"Rule: {one.rule.name}, after {one.rule.source}; surface score at {one.settings['tolerance_mm']:g} mm"
    yield f"Each method is compared with {first} on the objects that both have a finite score for"
    yield (
        "Difference: method minus the first, as the rule takes means, with the interval of 95 of 100 draws of weights; "
        "left out: objects of which a score is infinite"
    )
    yield (
        "By case: the mean over cases of the difference of their means; with it p of Wilcoxon's signed-rank test on "
        "these, two-sided, after Holm for the number of methods, and in how many cases the method is better and worse"
    )
    if unknown := [name for name, report in reports.items() if not report.digests]:
        yield f"Whether {', '.join(unknown)} had the same images and labels is not known: cases go by their names"


def _cells(test: Test) -> list[str]:
    result = test.result
    shown = [test.method, test.object]
    if not result.cases:
        return [*shown, *["-"] * 3, "0", str(result.left_out), *["-"] * 3]
    interval = "" if isnan(result.low) else f" [{result.low:+.3f}, {result.high:+.3f}]"
    shown += [f"{result.first:.3f}", f"{result.second:.3f}", f"{result.difference:+.3f}{interval}"]
    shown += [str(result.cases), str(result.left_out)]
    return [*shown, f"{result.difference_by_case:+.3f}", _p(test.holm), f"{result.wins}, {result.losses}"]


def _p(value: float) -> str:
    return "-" if isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


# --- curves ----------------------------------------------------------------------------------------------------------


def _curves(reports: Mapping[str, Report]) -> Iterator[Block]:
    """Answer by answer, where all methods were asked the same."""
    first, *others = reports.values()
    steps = list(first.steps)
    if len(steps) < 2 or any(list(report.steps) != steps for report in others):
        return
    yield Heading("Answer by answer")
    places = list(range(len(steps)))
    by_step = [means(reports, "dice", step) for step in places]
    yield Table(["method", *steps], [[name, *(in_words(found[name]) for found in by_step)] for name in reports])
    yield Text(f"Dice of {first.by_step}.")
    if figures.available():
        lines = [figures.Line(name, places, [found[name] for found in by_step]) for name in reports]
        yield Drawing(figures.curves(lines, "answer", "Dice", steps), f"Dice of {first.by_step}.")


def _by_labels(reports: Mapping[str, Report]) -> Iterator[Block]:
    """Scores by the number of labelled volumes, for methods of which several are known: a line for each method and way
    of asking, which may have several reports of one number.
    """
    shared = means(reports, "dice")
    lines: dict[str, dict[int, list[Mean]]] = {}
    for name, line in _lines(reports).items():
        labels = int(reports[name].settings["trained_on"])
        lines.setdefault(line, {}).setdefault(labels, []).append(shared[name])
    if not any(len(line) > 1 for line in lines.values()):
        return
    yield Heading("By number of labelled volumes")
    counts = sorted({labels for line in lines.values() for labels in line})
    yield Table(
        ["method", *map(str, counts)],
        [[name, *(_together_in_words(line.get(count, ())) for count in counts)] for name, line in lines.items()],
    )
    spread = "of several reports their mean, with the lowest and the highest"
    yield Text(f"Dice, with the 95 % interval; {spread}.")
    if figures.available():
        drawn = [
            figures.Line(name, sorted(line), [_together(line[count]) for count in sorted(line)])
            for name, line in lines.items()
        ]
        yield Drawing(
            figures.curves(drawn, "labelled volumes", "Dice"),
            f"Dice by the number of labelled volumes that a method was trained on; {spread}.",
        )


def _lines(reports: Mapping[str, Report]) -> dict[str, str]:
    """The line that a report belongs to: its method, and how it was asked if reports of the method differ in that."""
    counted = {name: report for name, report in reports.items() if report.settings.get("trained_on") is not None}
    asked = {name: _asked(report) for name, report in counted.items()}
    ways: dict[str, set[str]] = {}
    for name, report in counted.items():
        ways.setdefault(report.name, set()).add(asked[name])
    return {
        name: f"{report.name}, {asked[name]}" if len(ways[report.name]) > 1 else report.name
        for name, report in counted.items()
    }


def _asked(report: Report) -> str:
    where = report.settings.get("where", "deepest")
    words = [str(report.settings["protocol"]), *([] if where == "deepest" else [str(where)])]
    return ", ".join([*words, *([] if report.steps[-1] in words else [report.steps[-1]])])


def _together(found: Sequence[Mean]) -> Mean:
    """The mean of several reports, from the lowest to the highest; of a single one it is that itself."""
    if len(found) == 1:
        return found[0]
    values = [mean.value for mean in found]
    return Mean(float(np.mean(values)), min(values), max(values), found[0].cases, found[0].left_out)


def _together_in_words(found: Sequence[Mean]) -> str:
    if not found:
        return "-"
    mean = _together(found)
    if len(found) == 1:
        return in_words(mean)
    return f"{number_of(mean)} [{mean.low:.3f}, {mean.high:.3f}], {len(found)} reports"
