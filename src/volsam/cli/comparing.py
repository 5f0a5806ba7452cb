"""`volsam evaluate --compare`: results of several evaluations against the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from volsam.evaluation import comparison, comparison_page
from volsam.evaluation.report import read


def compare_results(files: Sequence[Path], output: Path) -> None:
    """Compare and say the tests over all objects, a line each."""
    reports = comparison.named([read(file) for file in files])
    found = comparison_page.write(reports, output)
    first = next(iter(reports))
    for test in found:
        if test.object == comparison.EVERYTHING:
            typer.echo(comparison_page.line_of(test, first))
    typer.echo(f"{output / 'comparison.html'}, comparison.md, comparison.csv, comparison.json")
