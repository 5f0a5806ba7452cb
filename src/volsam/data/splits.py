"""Which cases train and which test: `splits_final.json` of nnU-Net, lists in files, and folds that keep patients whole.

nnU-Net writes a list of folds, {"train": [...], "val": [...]}; a fold may also name its "test" cases here, which
nnU-Net ignores.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volsam.data.dataset import FOLDERS, Case, Dataset, read_dataset
from volsam.data.files import replacing
from volsam.errors import BadFile, BadInput

NAME = "splits_final.json"


@dataclass(frozen=True)
class Fold:
    """Names of cases: to train on, to choose by, and to report; no case is in two of them."""

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


def read_splits(path: Path) -> list[Fold]:
    """The folds of a splits file; a file with one table instead of a list holds one fold."""
    content = _json(path)
    entries = content if isinstance(content, list) else [content]
    folds = []
    for entry in entries:
        if not isinstance(entry, dict) or not {"train", "val", "test"} & set(entry):
            raise BadInput(f'{path}: a fold is a table such as {{"train": [...], "val": [...]}}, got {str(entry)[:60]}')
        fold = Fold(*(tuple(map(str, entry.get(part, ()))) for part in ("train", "val", "test")))
        _require_apart(fold, path)
        folds.append(fold)
    if not folds:
        raise BadInput(f"{path} holds no fold")
    return folds


def write_splits(folds: Sequence[Fold], path: Path) -> None:
    """Write folds as nnU-Net reads them; "test" only where there is one."""
    table = [
        {part: list(names) for part in ("train", "val", "test") if (names := getattr(fold, part)) or part != "test"}
        for fold in folds
    ]
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_folds(
    names: Iterable[str], count: int, seed: int = 0, patient: Callable[[str], str] = lambda name: name
) -> list[Fold]:
    """Folds of nearly equal size in which every case is validated once; cases of one patient stay together.

    Args:
        names: of all cases.
        count: folds, at least two.
        seed: the same seed makes the same folds, in whatever order the names come.
        patient: tells from a case's name whose it is.
    """
    patients = _by_patient(names, patient)
    if not 2 <= count <= len(patients):
        raise BadInput(f"{count} folds were asked for, {len(patients)} patients allow 2 to {len(patients)}")
    order = sorted(patients)
    np.random.default_rng(seed).shuffle(order)
    folds = []
    for index in range(count):
        held = set(order[index::count])
        val = tuple(sorted(name for each in held for name in patients[each]))
        train = tuple(sorted(name for each in order if each not in held for name in patients[each]))
        folds.append(Fold(train, val))
    return folds


def _by_patient(names: Iterable[str], patient: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        found.setdefault(patient(name), []).append(name)
    return found


def deal(
    names: Iterable[str],
    shares: tuple[float, float, float],
    count: int,
    seed: int = 0,
    patient: Callable[[str], str] = lambda name: name,
) -> list[Fold]:
    """Folds in which patients are drawn anew each time to train, to choose by and to test, in these shares."""
    patients = _by_patient(names, patient)
    if len(patients) < 3:
        raise BadInput(f"{len(patients)} patients cannot be dealt out to train, to choose by and to test: 3 are needed")
    found = []
    for index in range(count):
        order = sorted(patients)
        np.random.default_rng([seed, index]).shuffle(order)
        test = max(1, round(len(order) * shares[2]))
        val = max(1, round(len(order) * shares[1]))
        parts = (order[test + val :], order[test : test + val], order[:test])
        found.append(Fold(*(tuple(sorted(name for each in part for name in patients[each])) for part in parts)))
    return found


def patient_of(pattern: str, names: Sequence[str]) -> Callable[[str], str]:
    """From a case's name to its patient: what the pattern matches, or its first group; it must match every name.

    Raises:
        BadInput: the pattern is none, matches no part of a name, or says of all names that they are one patient's.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadInput(f"{pattern!r} is no pattern for names of cases: {error}") from None

    def patient(name: str) -> str:
        found = compiled.search(name)
        if not found or not (whose := found.group(1 if compiled.groups else 0)):
            raise BadInput(f"the pattern {pattern!r} finds no patient in the case name {name!r}")
        return whose

    if len(names) > 1 and len(patients := {patient(name) for name in names}) == 1:
        raise BadInput(f"the pattern {pattern!r} says that all {len(names)} cases are of one patient, {min(patients)}")
    return patient


def chosen_cases(folder: Path, split: str = "test", fold: int = 0) -> tuple[Dataset, list[Case]]:
    """The labelled cases of a part of a dataset, and the dataset they come from.

    Args:
        folder: of the dataset.
        split: "test" are the test cases of the fold in splits_final.json, else those of labelsTs, else the fold's
            "val"; "train" are the fold's, or all training cases without a splits file; "all" are all of both folders;
            anything else is a file: a splits file, a list in JSON, or a text with a name in each line. A name that both
            folders have is that of the training case, as in nnU-Net.
        fold: of the splits file, from 0.
    """
    training = read_dataset(folder)
    held_out = _held_out(folder)
    everything = (*training.cases, *held_out)
    if split == "all":
        scored = _labelled(everything, split)
        if twice := sorted(name for name, count in Counter(case.name for case in scored).items() if count > 1):
            raise BadInput(
                f"{folder} has a case {twice[0]} in {FOLDERS['training'][0]} and another in {FOLDERS['test'][0]}: "
                "scores go by names, so rename one of them, or score one part alone"
            )
        return training, scored
    found = _fold(folder / NAME, fold) if (folder / NAME).is_file() else None
    if split == "train":
        return training, _labelled(training.cases if found is None else _named(found.train, everything, folder), split)
    if split == "test":
        if found is not None and found.test:
            return training, _labelled(_named(found.test, everything, folder), split)
        if held_out:
            return training, _labelled(held_out, split)
        if found is not None and found.val:
            return training, _labelled(_named(found.val, everything, folder), split)
        raise BadInput(
            f"{folder} has no test part: neither labelsTs nor {NAME}; give --split all, or a file that lists cases"
        )
    path = Path(split)
    if not path.exists() or path.is_dir():  # not is_file: a pipe will do
        raise BadInput(f"--split is test, train, all, or a file that lists cases; there is no file {split}")
    return training, _labelled(_named(_listed(path, fold), everything, folder), split)


def _held_out(folder: Path) -> tuple[Case, ...]:
    """The labelled cases of the test part, where there is one."""
    if not (folder / FOLDERS["test"][1]).is_dir():
        return ()
    return tuple(case for case in read_dataset(folder, "test").cases if case.label is not None)


def _listed(path: Path, fold: int) -> tuple[str, ...]:
    """The names in a file: of a fold, its test cases, else its "val"."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip()[:1] not in ("[", "{"):
        return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    content = _json(path)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return tuple(content)
    found = _fold(path, fold)
    return found.test or found.val


def _fold(path: Path, fold: int) -> Fold:
    folds = read_splits(path)
    if not 0 <= fold < len(folds):
        raise BadInput(f"fold {fold} was asked for, {path} has the folds 0 to {len(folds) - 1}")
    return folds[fold]


def _named(names: Sequence[str], cases: Sequence[Case], folder: Path) -> list[Case]:
    """Cases by their names, of several of one name the first."""
    known: dict[str, Case] = {}
    for case in cases:
        known.setdefault(case.name, case)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BadInput(
            f"{folder} has no case {unknown[0]!r}" + (f", nor {len(unknown) - 1} others" if len(unknown) > 1 else "")
        )
    return [known[name] for name in dict.fromkeys(names)]


def _labelled(cases: Sequence[Case], split: str) -> list[Case]:
    found = [case for case in cases if case.label is not None]
    if not found:
        raise BadInput(
            f"none of the {len(cases)} cases of split {split} has a label: there is nothing to score against"
        )
    return found


def _require_apart(fold: Fold, path: Path) -> None:
    parts = {"train": fold.train, "val": fold.val, "test": fold.test}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sorted(set(parts[first]) & set(parts[second])):
            raise BadInput(f"{path}: {both[0]} is in {first} and in {second}: a case belongs to one part of a fold")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadFile(f"{path} cannot be read as JSON: {error}") from None
