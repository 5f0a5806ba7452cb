"""A model on the cases of a dataset, case by case: every score in a file of its own, so that a run goes on where it was
stopped, and one case that fails does not end the others.

    REPORT/settings.json      what was asked; another question is refused in the same folder
    REPORT/cases/CASE.json    the rows of one case, and digests of the files that they come from
    REPORT/pictures/          the worst objects so far
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isnan, nan
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from volsam.data.files import read_json, replacing, write_json
from volsam.errors import BadInput
from volsam.evaluation.protocol import Objects, Played
from volsam.evaluation.rules import DISTANCES, MEASURES, STANDARD, Rule
from volsam.prompts import Box, MaskHint, to_record
from volsam.volume import Volume

FORMAT, VERSION = "volsam-evaluation", 1


@dataclass(frozen=True)
class Row:
    """One object of one case: of every measure a value for each answer, and what led to the answers.

    voxels: of the object; seconds: until each answer; prompts: new ones before each answer, as records in mm RAS+.
    """

    case: str
    object: str
    voxels: int
    scores: dict[str, list[float]]
    seconds: list[float]
    prompts: list[list[dict[str, Any]]] = field(default_factory=list)

    def counted(self, rule: Rule, step: int | None = None) -> int:
        """The place of the answer that counts by a rule: of all answers, or of those up to `step`."""
        dice = self.scores["dice"]
        return rule.counted(dice if step is None else dice[: step + 1])


@dataclass(frozen=True, eq=False)
class Scene:
    """A case that is ready to be asked about: the image and its objects, and boxes that come with the case: none where
    it has none, and None where boxes are to be made of the objects.
    """

    name: str
    volume: Volume
    objects: Objects
    boxes: Mapping[str, Box] | None = None

    @property
    def of_the_challenge(self) -> bool:
        """Whether the case is a file of the CVPR 2025 challenge; only these bring boxes, or none."""
        return self.boxes is not None


Trial: TypeAlias = Callable[[Scene], Iterable[tuple[str, Played]]]
"""Asks a model about all objects of a case; gives the answers object by object."""

Draw: TypeAlias = Callable[[Scene, str, Played, Path], None]
"""Draws an object and its mask that counts into a file."""


def score_case(
    scene: Scene, trial: Trial, rule: Rule, kept: Callable[[Scene, Row, Played], None] | None = None
) -> list[Row]:
    """The rows of a case. `kept` is shown every row together with the mask that counts, which is gone afterwards."""
    rows = []
    for name, played in trial(scene):
        row = row_of(scene.name, name, scene.objects[name], played)
        rows.append(row)
        if kept is not None:
            kept(scene, row, played)
    return settled(rows, rule)


def row_of(case: str, name: str, target: np.ndarray, played: Played) -> Row:
    """What is kept of the answers about an object."""
    scores = {measure: [getattr(step.scores, measure) for step in played.steps] for measure in MEASURES}
    records = [
        [to_record(prompt) for prompt in step.prompts if not isinstance(prompt, MaskHint)] for step in played.steps
    ]
    seconds = [step.seconds for step in played.steps]
    return Row(case, name, int(np.count_nonzero(target)), scores, seconds, records)


def settled(rows: Sequence[Row], rule: Rule) -> list[Row]:
    """Apply what a rule says of a whole case: where its mean Dice is too low, its surface scores are 0."""
    if rule.least_dice is None:
        return list(rows)
    # Whether an object counts does not depend on the answer.
    held = [row.scores["dice"] for row in rows if not isnan(row.scores["dice"][0])]
    if not held:
        return list(rows)
    low = np.mean(held, axis=0) <= rule.least_dice
    return [
        replace(
            row, scores=row.scores | {"nsd": [_surface(*pair) for pair in zip(row.scores["nsd"], low, strict=True)]}
        )
        for row in rows
    ]


def _surface(value: float, low: bool) -> float:
    return 0.0 if low and not isnan(value) else value


def seed_of(*names: object) -> int:
    """The same number for the same names, so that draws do not depend on the order of cases."""
    return zlib.crc32("\0".join(map(str, names)).encode())


# --- the folder ------------------------------------------------------------------------------------------------------


class Folder:
    """Where a study is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cases = path / "cases"
        self.pictures = path / "pictures"

    def open(self, settings: Mapping[str, Any], *, anew: bool = False) -> None:
        """Begin, or go on with the same question; `anew` forgets what was done before."""
        file = self.path / "settings.json"
        if file.is_file() and anew:
            for old in [*self.cases.glob("*.json"), *self.pictures.glob("*.png")]:
                old.unlink(missing_ok=True)
        elif file.is_file():
            before = read_json(file)
            changed = [key for key in settings if before.get(key) != settings[key]]
            if changed:
                key = changed[0]
                raise BadInput(
                    f"{self.path} holds another evaluation, with {key} {before.get(key)!r} and not {settings[key]!r}: "
                    "give another folder with -o, or begin anew with --overwrite"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise BadInput(f"-o {self.path} exists and is no report of ours: give the name of a new folder")
        self.cases.mkdir(parents=True, exist_ok=True)
        write_json(file, dict(settings))

    def has(self, case: str) -> bool:
        """Whether a case is done."""
        return self._file(case).is_file()

    def keep(self, case: str, rows: Sequence[Row], digests: Mapping[str, str] | None = None) -> None:
        """Write the rows of a case, with digests of the files that were scored, by what they hold."""
        records = [as_record(row) for row in rows]
        write_json(self._file(case), {"case": case, "digests": dict(digests or {}), "rows": records})

    def forget(self, case: str) -> None:
        """Remove what is known of a case, also its pictures."""
        names = {_picture(row) for row in self.rows([case])}
        for file in self.pictures.glob("*.png"):
            if file.stem.partition(" ")[2] in names:
                file.unlink(missing_ok=True)
        self._file(case).unlink(missing_ok=True)

    def digests(self, cases: Iterable[str]) -> dict[str, dict[str, str]]:
        """Of the cases that are done, digests of the files that were scored, empty where they are not known."""
        return {case: read_json(self._file(case)).get("digests", {}) for case in cases if self.has(case)}

    def rows(self, cases: Iterable[str]) -> list[Row]:
        """The rows of those of the cases that are done."""
        found = []
        for case in cases:
            if self.has(case):
                found += [from_record(record) for record in read_json(self._file(case))["rows"]]
        return found

    def _file(self, case: str) -> Path:
        return self.cases / f"{case.replace('/', '_')}.json"


class Gallery:
    """Pictures of the worst objects by a rule: as many as asked for, the best of them leaving as a worse one comes."""

    def __init__(self, folder: Path, draw: Draw, most: int, rule: Rule = STANDARD) -> None:
        self.folder = folder
        self.draw = draw
        self.most = most
        self.rule = rule

    def show(self, scene: Scene, row: Row, played: Played) -> None:
        """Draw an object if it is among the worst so far. The file's name begins with its Dice in thousandths."""
        score = row.scores["dice"][row.counted(self.rule)]
        if self.most == 0 or isnan(score) or row.voxels == 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{round(1000 * score):04d} {_picture(row)}"
        there = sorted(self.folder.glob("*.png"))
        if len(there) >= self.most and there[-1].stem <= name:
            return
        with replacing(self.folder / f"{name}.png") as unfinished:
            self.draw(scene, row.object, played, unfinished)
        for file in sorted(self.folder.glob("*.png"))[self.most :]:
            file.unlink(missing_ok=True)  # another process may be at the same


def _picture(row: Row) -> str:
    return f"{row.case} {row.object}".replace("/", "_")


# --- plain data ------------------------------------------------------------------------------------------------------


def as_record(row: Row) -> dict[str, Any]:
    """A row for JSON, which knows neither infinity nor nan: the one is "inf", the other null."""
    record = asdict(row)
    record["scores"] = {
        measure: [_plain(value, 5 if measure not in DISTANCES else 4) for value in values]
        for measure, values in row.scores.items()
    }
    record["seconds"] = [round(value, 4) for value in row.seconds]
    return record


def from_record(record: Mapping[str, Any]) -> Row:
    """The row that was written."""
    scores = {measure: [_number(value) for value in values] for measure, values in record["scores"].items()}
    return Row(**{**record, "scores": scores})


def _plain(value: float, digits: int) -> float | str | None:
    return None if isnan(value) else "inf" if value == inf else round(value, digits)


def _number(value: float | str | None) -> float:
    return nan if value is None else float(value)
