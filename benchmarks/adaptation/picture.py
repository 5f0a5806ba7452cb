"""The tables of results.md as curves, one picture for each set.

    python benchmarks/adaptation/picture.py

run.py draws them anew with every row that it adds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from volsam.evaluation.figures import Line, curves
from volsam.evaluation.statistics import Mean

HERE = Path(__file__).parent
FEWEST = 3
"""Numbers of volumes of which a method must have scores to be a curve."""


def main() -> None:
    pictures(json.loads((HERE / "results.json").read_text()), HERE)


def pictures(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Dice against the number of training volumes, `SET.svg` for the budget under which most was run."""
    written = []
    for name in dict.fromkeys(row["set"] for row in rows):
        some = [row for row in rows if row["set"] == name and "dice" in row]
        budgets = [row["minutes"] for row in some]
        minutes = max(dict.fromkeys(budgets), key=budgets.count, default=0)
        lines = [line for line in _lines([row for row in some if row["minutes"] == minutes]) if line is not None]
        if lines:
            path = folder / f"{name}.svg"
            unit = "minute" if minutes == 1 else "minutes"
            drawn = curves(
                lines,
                f"labelled volumes, {name}, {minutes:g} {unit} each",
                "Dice",
                [str(place) for place in lines[0].places],
            )
            path.write_text(drawn + "\n")
            written.append(path)
    return written


def _lines(rows: Sequence[dict[str, Any]]) -> list[Line | None]:
    return [
        _line(name, [row for row in rows if row["method"] == name]) for name in dict.fromkeys(r["method"] for r in rows)
    ]


def _line(name: str, rows: Sequence[dict[str, Any]]) -> Line | None:
    """Means over draws, the band from the lowest to the highest."""
    counts = sorted({len(row["cases"]) for row in rows})
    if len(counts) < FEWEST:
        return None
    scores = [[row["dice"] for row in rows if len(row["cases"]) == count] for count in counts]
    return Line(name, counts, [Mean(mean(values), min(values), max(values), len(values)) for values in scores])


if __name__ == "__main__":
    main()
