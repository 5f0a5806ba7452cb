"""What a training run has seen, so that its scores are taken on other cases, or say that they are not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from volsam.data.dataset import Case
from volsam.errors import BadFile


@dataclass(frozen=True)
class Learnt:
    """The method, the objects and the cases of a run.

    training, validation: what tells the images of the cases from others; splits: the file of its fold; left: names of
    the cases there that it did not learn from; held_out: whether it never saw them; steps: that it made, None while it
    is not finished.
    """

    method: str
    objects: tuple[str, ...]
    training: frozenset[str]
    validation: frozenset[str]
    splits: Path
    left: frozenset[str]
    held_out: bool
    steps: int | None

    def remarks(self, cases: Sequence[Case]) -> Iterator[str]:
        """What a reader must know: a run that is not done, and cases that it has seen, whatever they are called."""
        if self.steps is None:
            yield "the training is not finished: these are its weights so far"
        digests = [digest_of(case) for case in cases]
        if learnt := sum(digest in self.training for digest in digests):
            yield f"cases that the model has learnt from: {learnt} of {len(cases)}; their scores flatter it"
        if chosen := sum(digest in self.validation for digest in digests):
            yield f"cases that its weights were chosen by: {chosen} of {len(cases)}; their scores flatter it a little"

    def left_of(self, cases: Sequence[Case]) -> tuple[Case, ...]:
        """Those that were neither learnt from nor chosen by; where there are none, those that were chosen by."""
        by_digest = {case: digest_of(case) for case in cases}
        unseen = tuple(case for case in cases if by_digest[case] not in self.training | self.validation)
        return unseen or tuple(case for case in cases if by_digest[case] in self.validation)

    def is_of(self, cases: Iterable[Case]) -> bool:
        """Whether these are cases of the dataset that was learnt from."""
        known = self.training | self.validation
        return any(digest_of(case) in known for case in cases)


def digest_of(case: Case) -> str:
    """What tells the image of a case from others; nothing where it cannot be read, which is said where it is scored."""
    from volsam.data.digests import image_digest

    try:
        return image_digest(case)
    except BadFile:
        return ""


def learnt_by(model: str) -> Learnt | None:
    """What a model has seen, if it is a run."""
    from volsam.recipes.trained import place_of, record_of

    place = place_of(model)
    if place is None:
        return None
    from volsam.data.splits import Fold, read_splits
    from volsam.training.run import OWN_SPLITS

    record = record_of(place)
    file = place / OWN_SPLITS
    fold = read_splits(file)[0] if file.is_file() else Fold()
    return Learnt(
        record.method,
        record.plan.labels[1:],
        frozenset(record.images[case] for case in record.training),
        frozenset(record.images[case] for case in record.validation),
        file,
        frozenset(fold.test or fold.val),
        bool(fold.test),
        record.steps if record.done else None,
    )
