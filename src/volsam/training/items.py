"""What a network is shown, step by step: patches of volumes (`patches`) or stacks of slices (`stacks`).

An item follows from its number and the seed alone. So a run that was stopped goes on with the items it would have seen,
and two processes see, item by item, what one sees with a batch twice the size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from volsam.data.preparation import UNKNOWN

Item: TypeAlias = dict[str, Tensor]
Shape: TypeAlias = tuple[int, int, int]

# How often an item is drawn around a voxel of some class, and not anywhere.
FOREGROUND = 0.67
# In the label of one object alone.
OBJECT = 1


class Items(Dataset[Item]):
    """Items by their numbers, without end."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, number: int) -> Item:
        """The item of that number."""
        return self.make(np.random.default_rng([self.seed, number]))

    def make(self, random: np.random.Generator) -> Item:
        """An item from what is drawn."""
        raise TypeError(f"{type(self).__name__} does not say how an item is made")


def one_of(label: NDArray[np.uint8], index: int | None) -> NDArray[np.uint8]:
    """A label that is `OBJECT` in one class, none for None, and 0 elsewhere; what is not known stays so."""
    object_ = np.zeros(label.shape, np.uint8) if index is None else np.where(label == index, OBJECT, 0)
    return np.where(label == UNKNOWN, UNKNOWN, object_).astype(np.uint8)


def has_some(label: NDArray[np.uint8]) -> bool:
    """Whether a label holds any class but the background."""
    return bool(((label > 0) & (label != UNKNOWN)).any())


# --- in the order of the steps ---------------------------------------------------------------------------------------


class Numbers(Sampler[int]):
    """Numbers of the items of one process, from a step on: of every batch its own part."""

    def __init__(self, batch_size: int, first_step: int, rank: int, processes: int) -> None:
        self.own = batch_size // processes
        self.start = first_step
        self.rank = rank
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        """Without end."""
        step = self.start
        while True:
            first = step * self.batch_size + self.rank * self.own
            yield from range(first, first + self.own)
            step += 1


def batches(items: Items, numbers: Numbers, parts: int, workers: int) -> Iterator[Item]:
    """Batches of one process without end, each step in so many parts."""
    loader: DataLoader[Item] = DataLoader(
        items, batch_size=numbers.own // parts, sampler=numbers, num_workers=workers, persistent_workers=False
    )
    return iter(loader)
