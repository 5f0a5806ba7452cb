"""What a training run has seen, so that its scores are taken on other cases, or say that they are not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Beside the weights of a run: its fold, with the cases that it never saw as "test".
SPLITS = "splits.json"


@dataclass(frozen=True)
class Learnt:
    """The method, the dataset, the objects and the cases of a run.

    splits: the file of its fold, if there is one; held_out: whether that has cases that it never saw.
    """

    method: str
    dataset: str
    objects: tuple[str, ...]
    training: frozenset[str]
    validation: frozenset[str]
    splits: Path | None
    held_out: bool

    def seen(self, cases: Iterable[str], dataset: str) -> dict[str, int]:
        """How many of the cases were learnt from, and chosen by; of another dataset none."""
        names = set(cases) if dataset == self.dataset else set()
        return {"learnt_from": len(names & self.training), "chosen_by": len(names & self.validation)}


def learnt_by(model: str) -> Learnt | None:
    """What a model has seen, if it is the folder of a run."""
    from volsam.recipes.trained import is_run

    if not is_run(model):
        return None
    from volsam.data.splits import read_splits
    from volsam.training.run import RunFolder

    record = RunFolder(Path(model)).record()
    file = Path(model) / SPLITS
    fold = read_splits(file)[0] if file.is_file() else None
    return Learnt(
        record.method,
        record.dataset,
        record.plan.labels[1:],
        frozenset(record.training),
        frozenset(record.validation),
        file if fold and (fold.test or fold.val) else None,
        bool(fold and fold.test),
    )
