"""A small network learns what a large one has learnt: layer by layer, from shallow to deep, then to be corrected.

Layer-wise progressive distillation of FastSAM3D (Shen et al. 2024, section 2.1): in each stage the tokens after one
block of the student shall equal those after its block of the teacher, in the last stage the embedding. Then the
encoder rests, and what reads it learns from clicks. What a teacher tells may be kept, as the released scripts do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.data.files import replacing
from volsam.errors import BadInput
from volsam.models.segmenter import Segmenter
from volsam.training.clicks import ClickTask
from volsam.training.items import Item, Items

Pair = tuple[int, int]
"""A student's block and its teacher's, counted from 1; (0, 0) is the embedding of both."""

EMBEDDING: Pair = (0, 0)

SEEN = "seen"
"""Beside an item: the view of which the teacher has told."""


def pairs_of(student: int, teacher: int) -> list[Pair]:
    """Every block of the student with the teacher's block at the same part of the way, then the embedding."""
    beside = (max(1, int(block * teacher / student + 0.5)) for block in range(1, student + 1))
    return [*enumerate(beside, start=1), EMBEDDING]


class DistillTask(nn.Module):
    """What a student learns from its teacher, stage by stage; see `at`.

    Args:
        network: the student; its encoder keeps the tokens of every block (`taps` 1 to its depth).
        teacher: keeps the tokens of the blocks that `pairs` name; it never changes. None where the items are `Taught`.
        pairs: one for each stage.
        imitation: part of the schedule in which the teacher is imitated; the rest is corrected by clicks.
        keep: weight of the pairs of earlier stages; 0 in the released code.
        clicks: how the rest learns.
        unfreeze: part of the time of clicks after which the encoder learns as well.
        lengths: of the stages, together 1; all alike if nothing is said.
        loss: what compares student and teacher: the mean of squares, or of sizes, of their differences.
    """

    def __init__(
        self,
        network: Segmenter,
        teacher: Segmenter | None,
        pairs: Sequence[Pair],
        imitation: float,
        keep: float,
        clicks: ClickTask,
        unfreeze: float = 1.0,
        *,
        lengths: Sequence[float] | None = None,
        loss: Literal["mse", "l1"] = "mse",
    ) -> None:
        super().__init__()
        self.network = network
        # A tuple hides it from what is trained and moved.
        self._teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)
        self.pairs = list(pairs)
        self.imitation = imitation
        self.keep = keep
        self.clicks = clicks
        self.unfreeze = unfreeze
        self.ends = list(accumulate(lengths or [1 / len(pairs)] * len(pairs)))
        self.compared = {"mse": F.mse_loss, "l1": F.l1_loss}[loss]
        self.part = 0.0
        _require_taps(network, [own for own, _ in pairs], "the student")
        if teacher is not None:
            _require_taps(teacher, [other for _, other in pairs], "the teacher")

    def at(self, part: float) -> None:
        """Tell how far the schedule is, 0 to 1; the loop does, before every step."""
        self.part = part

    @property
    def stage(self) -> int | None:
        """The pair at work, counted from 0; None while clicks are learnt from."""
        if self.part >= self.imitation:
            return None
        return min(len(self.pairs) - 1, bisect_right(self.ends, self.part / self.imitation))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`loss` of the stage, and `dice` once there are masks."""
        stage = self.stage
        if stage is None:
            resting = (self.part - self.imitation) / max(1e-9, 1 - self.imitation) < self.unfreeze
            with torch.set_grad_enabled(not resting):
                features = self.network.encode(batch["image"])
            return self.clicks.conversation(features, batch["label"])
        image, wanted = self._told(batch)
        found = outputs(self.network, image, [own for own, _ in self.pairs[: stage + 1]])
        lost = torch.zeros((), device=image.device)
        for index, (own, other) in enumerate(self.pairs[: stage + 1]):
            weight = 1.0 if index == stage else self.keep
            if weight:
                lost = lost + weight * self.compared(found[own], wanted[other])
        return {"loss": lost}

    def _told(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
        """What is seen, and what the teacher says of it by its blocks."""
        blocks = [other for _, other in self.pairs]
        if not self._teacher:
            return batch[SEEN].float(), {block: batch[_block(block)].float() for block in blocks}
        with torch.no_grad():
            return batch["image"], outputs(self._teacher[0].to(batch["image"].device), batch["image"], blocks)


def outputs(network: Segmenter, image: Tensor, blocks: Iterable[int]) -> dict[int, Tensor]:
    """What comes out of some blocks of an encoder, 0 being the embedding."""
    found = network.encode(image)
    return {block: found.embedding if block == 0 else found.taps[_place(network, block)] for block in blocks}


class Taught(Items):
    """Items, and beside each of them a view of which the teacher has told already: `seen` (1 d h w), and `block N`.

    A view is an item as any other. The teacher looks at every one once; all are gone through before one comes again, in
    another order every time. They are kept in half precision in files that begin with `place`, and are there for the
    next run.

    Args:
        items: what is drawn anew for every step, and what views are taken from.
        teacher: keeps the tokens of `blocks`, on the device where it looks.
        blocks: whose outputs are wanted, counted from 1, 0 for the embedding.
        views: how many.
        place: folder and beginning of the files' names.
        progress: passes on the numbers of the views, and may show how far it is.
    """

    def __init__(
        self,
        items: Items,
        teacher: Segmenter,
        blocks: Sequence[int],
        views: int,
        place: Path,
        progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> None:
        super().__init__(items.seed)
        self.items = items
        self.views = views
        names = [SEEN, *(_block(block) for block in dict.fromkeys(blocks))]
        files = {name: place.with_name(f"{place.name}-{name.replace(' ', '-')}.npy") for name in names}
        if not all(file.is_file() for file in files.values()):
            _ask(items, teacher, blocks, views, files, progress)
        self.kept = {name: np.load(file, mmap_mode="r") for name, file in files.items()}

    def __getitem__(self, number: int) -> Item:
        """The item of that number, and a view."""
        turn, place = divmod(number, self.views)
        view = int(np.random.default_rng([self.seed, turn]).permutation(self.views)[place])
        told = {name: torch.from_numpy(np.array(kept[view])) for name, kept in self.kept.items()}
        return {**self.items[number], **told}


@torch.inference_mode()
def _ask(
    items: Items,
    teacher: Segmenter,
    blocks: Sequence[int],
    views: int,
    files: Mapping[str, Path],
    progress: Callable[[Sequence[int]], Iterable[int]],
) -> None:
    """Show the teacher all views; the files appear whole or not at all."""
    device = next(teacher.parameters()).device
    teacher.eval()
    with ExitStack() as stack:
        # Written one after the other: an array that is mapped would end the process where the disk is full.
        begun = {name: stack.enter_context(replacing(file)) for name, file in files.items()}
        open_files = {name: stack.enter_context(path.open("wb")) for name, path in begun.items()}
        for view in progress(range(views)):
            image = items[view]["image"][None].to(device)
            told = {SEEN: image, **{_block(n): out for n, out in outputs(teacher, image, blocks).items()}}
            for name, file in open_files.items():
                values = told[name][0].half().cpu().numpy()
                if view == 0:
                    shape = (views, *values.shape)
                    header = {"descr": values.dtype.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(values.tobytes())


def _block(number: int) -> str:
    """What a batch calls the output of a teacher's block."""
    return f"block {number}"


def _place(network: Segmenter, block: int) -> int:
    return network.config.encoder.taps.index(block)


def _require_taps(network: Segmenter, blocks: Sequence[int], who: str) -> None:
    missing = [block for block in blocks if block and block not in network.config.encoder.taps]
    if missing:
        raise BadInput(f"{who} keeps no tokens after block {missing[0]}: add it to the taps of its encoder")
