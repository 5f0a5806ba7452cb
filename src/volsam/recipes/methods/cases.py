"""Which cases of a dataset are learnt from, which are chosen by, and which are left for the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from volsam.data.dataset import FOLDERS, Dataset
from volsam.data.splits import NAME as SPLITS
from volsam.data.splits import Fold, make_folds, read_splits
from volsam.errors import BadInput

# Of a dataset without a splits file, one case in so many is left for the test, and one for validation.
FOLDS = 5


def choose_cases(
    dataset: Dataset,
    fold: int | None,
    limit: int | None,
    seed: int,
    patient: Callable[[str], str] = lambda name: name,
    labelled: bool = True,
) -> Fold:
    """The cases to train on, to choose by, and to leave for the test.

    Args:
        dataset: its splits_final.json decides where there is one. Else all cases are dealt out in folds, patients
            whole; what is tested in a fold is neither learnt from nor chosen by, unless the dataset has a test part
            of its own.
        fold: which one, from 0; None: learn from all, and leave none to choose by.
        limit: learn from so many training cases only, drawn by `seed`.
        seed: of the draw; with the same seed a larger limit contains the cases of a smaller one.
        patient: tells from a case's name whose it is.
        labelled: whether labels are learnt from; if not, the cases without one, which no fold holds, are learnt from
            as well.
    """
    names = [case.name for case in dataset.cases if case.label is not None]
    if not names and labelled:
        raise BadInput(f"{dataset.folder} has no labelled case: labels lie in {FOLDERS['training'][1]}")
    found = Fold(tuple(sorted(names))) if fold is None or not names else _dealt(dataset, names, fold, patient)
    train = list(found.train)
    if not labelled:
        dealt = {*found.train, *found.val, *found.test}
        train += [case.name for case in dataset.cases if case.label is None and case.name not in dealt]
    if not train:
        raise BadInput(f"fold {fold} of {dataset.folder} has no case to train on")
    if limit is not None:
        if limit > len(train):
            raise BadInput(f"--train-cases {limit}: fold {fold} of {dataset.name} has {len(train)} training cases")
        np.random.default_rng(seed).shuffle(train)
        train = sorted(train[:limit])
    return Fold(tuple(train), found.val, found.test)


def _dealt(dataset: Dataset, names: Sequence[str], fold: int, patient: Callable[[str], str]) -> Fold:
    path = dataset.folder / SPLITS
    if path.is_file():
        folds = read_splits(path)
        if not 0 <= fold < len(folds):
            raise BadInput(f"--fold {fold}: {path} has the folds 0 to {len(folds) - 1}")
        return folds[fold]
    patients = len({patient(name) for name in names})
    if patients < 3:  # too few to leave any out
        if fold:
            raise BadInput(f"--fold {fold}: {dataset.name} has {patients} patients or cases, too few to be dealt out")
        return Fold(tuple(sorted(names)))
    folds = make_folds(names, min(FOLDS, patients), 0, patient)
    if not 0 <= fold < len(folds):
        raise BadInput(f"--fold {fold}: {dataset.name} is dealt out in {len(folds)} folds, 0 to {len(folds) - 1}")
    if (dataset.folder / FOLDERS["test"][1]).is_dir():
        return folds[fold]
    held = set(folds[fold].val)
    val = folds[(fold + 1) % len(folds)].val
    return Fold(tuple(sorted(set(names) - held - set(val))), val, tuple(sorted(held)))


def some_of(names: Sequence[str], most: int, seed: int) -> tuple[str, ...]:
    """So many of the names at the most, in their order."""
    if len(names) <= most:
        return tuple(names)
    chosen = np.random.default_rng(seed).choice(len(names), most, replace=False)
    return tuple(names[place] for place in sorted(chosen))
