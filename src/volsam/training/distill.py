"""A small network learns what a large one has learnt: layer by layer, from shallow to deep, then to be corrected.

Layer-wise progressive distillation of FastSAM3D (Shen et al. 2024, section 2.1): in each stage the tokens after one
block of the student shall equal those after its block of the teacher, in the last stage the embedding. Then the
encoder rests, and what reads it learns from clicks. What a teacher tells may be kept, as the released scripts do.

A teacher without such blocks has an embedding that is another space. There what shall be equal is how like one another
any two places are (Liu et al. 2019, Structured Knowledge Distillation for Semantic Segmentation: pair-wise).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.data.files import replacing
from volsam.errors import BadInput
from volsam.models.features import Features
from volsam.models.segmenter import Segmenter
from volsam.training.clicks import ClickTask
from volsam.training.items import Item, Items

Pair = tuple[int, int]
"""A student's block and its teacher's, counted from 1; (0, 0) is the embedding of both."""

EMBEDDING: Pair = (0, 0)

MOST_PLACES = 8
"""Along each axis, between which likenesses are compared."""

SEEN = "seen"
"""Beside an item: the view of which the teacher has told."""


def pairs_of(student: int, teacher: int) -> list[Pair]:
    """Every block of the student with the teacher's block at the same part of the way, then the embedding."""
    beside = (max(1, int(block * teacher / student + 0.5)) for block in range(1, student + 1))
    return [*enumerate(beside, start=1), EMBEDDING]


class Onlooker(nn.Module):
    """A teacher of another kind than its student: shown the same in its own way, it tells its embedding alone.

    Args:
        network: has `encode`, as every promptable 3D network.
        see: from what the student sees (b 1 d h w), its axes in the teacher's order, to what the teacher sees.
        order: the student's axis that is the teacher's first, second and third.
    """

    def __init__(
        self, network: nn.Module, see: Callable[[Tensor], Tensor], order: tuple[int, int, int] = (0, 1, 2)
    ) -> None:
        super().__init__()
        self.network = network
        self.see = see
        self.order = order

    def encode(self, image: Tensor) -> Features:
        """The embedding in the student's order of axes."""
        turned = image.permute(0, 1, *(2 + axis for axis in self.order))
        told: Features = self.network.encode(self.see(turned))  # type: ignore[operator]
        back = (2 + self.order.index(axis) for axis in range(3))
        return Features(told.embedding.permute(0, 1, *back), (), image)


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
        alike: compare likenesses between places, of a teacher in another space.
        loss: what compares student and teacher: the mean of squares, or of sizes, of their differences.
    """

    def __init__(
        self,
        network: Segmenter,
        teacher: Segmenter | Onlooker | None,
        pairs: Sequence[Pair],
        imitation: float,
        keep: float,
        clicks: ClickTask,
        unfreeze: float = 1.0,
        *,
        lengths: Sequence[float] | None = None,
        alike: bool = False,
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
        difference = {"mse": F.mse_loss, "l1": F.l1_loss}[loss]
        self.compared = partial(alikeness, difference=difference) if alike else difference
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


def alikeness(found: Tensor, wanted: Tensor, difference: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """How a student's likenesses differ from its teacher's, whatever space either is in."""
    d, h, w = (min(MOST_PLACES, *sizes) for sizes in zip(found.shape[2:], wanted.shape[2:], strict=True))
    size = (d, h, w)
    return difference(likenesses(found, size), likenesses(wanted, size))


def likenesses(embedding: Float[Tensor, "b c d h w"], size: tuple[int, int, int]) -> Float[Tensor, "b n n"]:
    """The cosine between any two of so many places, from their deviations from the mean of all."""
    places = F.adaptive_avg_pool3d(embedding, size).flatten(2)
    unit = F.normalize(places - places.mean(dim=2, keepdim=True), dim=1)
    return unit.transpose(1, 2) @ unit


def outputs(network: Segmenter | Onlooker, image: Tensor, blocks: Iterable[int]) -> dict[int, Tensor]:
    """What comes out of some blocks of an encoder, 0 being the embedding."""
    found = network.encode(image)
    told = {0: found.embedding}
    if isinstance(network, Segmenter):
        told |= dict(zip(network.config.encoder.taps, found.taps, strict=False))
    return {block: told[block] for block in blocks}


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
        teacher: Segmenter | Onlooker,
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
    teacher: Segmenter | Onlooker,
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


def _require_taps(network: Segmenter | Onlooker, blocks: Sequence[int], who: str) -> None:
    kept = network.config.encoder.taps if isinstance(network, Segmenter) else ()
    missing = [block for block in blocks if block and block not in kept]
    if missing:
        raise BadInput(f"{who} keeps no tokens after block {missing[0]}: add it to the taps of its encoder")
