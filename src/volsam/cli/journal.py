"""What `volsam predict` keeps beside the labels: what made them, and a line for each image.

DIR/made_by.json          the model and its settings, so that labels of another one are not taken for its own
    cases.csv             for each image of what and when labels were made, what was found, or why there are none
    cases-2-of-8.csv      the same of one part of the images
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import volsam
from volsam.data.files import read_json, replacing, write_json
from volsam.errors import BadInput

MADE_BY = "made_by.json"
# In it: that labels were there before, so that those older than this file are of something else.
ANEW = "anew"


@dataclass(frozen=True)
class Line:
    """An image: its digest and that of its prompts, and what came of them.

    quality: expected Dice, the lowest of several objects, where the model tells; ml: volume of each object, "liver
    1203.1; spleen 200.4"; error: why there are no labels.
    """

    case: str
    image: str = ""
    prompts: str = ""
    seconds: str = ""
    quality: str = ""
    ml: str = ""
    error: str = ""
    made: str = ""
    volsam: str = volsam.__version__


class Journal:
    """The lines of a folder; `part`, such as "2/8", has a file of its own."""

    def __init__(self, folder: Path, made_by: Mapping[str, Any], part: str | None, *, anew: bool) -> None:
        self.since = _require_own(folder, made_by, anew)
        self._file = folder / ("cases.csv" if part is None else f"cases-{part.replace('/', '-of-')}.csv")
        self._lines: dict[str, Line] = {}
        for file in sorted(folder.glob("cases*.csv"), key=lambda file: file == self._file):
            self._lines |= _read(file)
        own = _read(self._file)
        with replacing(self._file) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as table:
            writer = csv.writer(table)
            writer.writerow(field.name for field in fields(Line))
            writer.writerows(asdict(line).values() for line in own.values())

    def is_done(self, target: Path, line: Line) -> bool:
        """Whether labels are there, of this model, this image and these prompts."""
        if not target.exists() or target.stat().st_mtime < self.since:
            return False
        before = self._lines.get(line.case)
        if before is None:
            return True
        return not before.error and (before.image, before.prompts) == (line.image, line.prompts)

    def add(self, line: Line) -> None:
        """Keep a line; the last one of an image is what counts."""
        self._lines[line.case] = line
        with self._file.open("a", newline="", encoding="utf-8") as table:
            csv.writer(table).writerow(asdict(line).values())


def _read(file: Path) -> dict[str, Line]:
    """The last line of each image; one that was cut short, or of another version, is left out."""
    known = {field.name for field in fields(Line)}
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8", errors="replace") as table:
        rows = [row for row in csv.DictReader(table) if set(row) == known and None not in row.values()]
    return {row["case"]: Line(**row) for row in rows}


def _require_own(folder: Path, made_by: Mapping[str, Any], anew: bool) -> float:
    """No labels of another model are taken for those of this one.

    Returns since when labels are those of this one, as a file's time of change; 0 if all are.
    """
    file = folder / MADE_BY
    there = any(folder.rglob("*.nii.gz"))
    before = read_json(file) if file.is_file() else {}
    if before and there and not anew:
        if key := next((key for key in made_by if before.get(key) != made_by[key]), None):
            raise BadInput(
                f"{folder} holds labels with another {key} ({before.get(key)}, now {made_by[key]}): give another "
                "folder with -o, or make them anew with --overwrite"
            )
        return file.stat().st_mtime if before.get(ANEW) else 0.0
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {**made_by, ANEW: anew and there})
    return 0.0
