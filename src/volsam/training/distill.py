"""A small network learns what a large one has learnt: layer by layer, from shallow to deep, then to be corrected.

Layer-wise progressive distillation of FastSAM3D (Shen et al. 2024, section 2.1): in each stage the tokens after one
block of the student shall equal those after its block of the teacher, in the last stage the embedding. Then the
encoder rests, and what reads it learns from clicks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.models.segmenter import Segmenter
from volsam.training.clicks import ClickTask

Pair = tuple[int, int]
"""A student's block and its teacher's, counted from 1; (0, 0) is the embedding of both."""

EMBEDDING: Pair = (0, 0)


def pairs_of(student: int, teacher: int) -> list[Pair]:
    """Every block of the student with the teacher's block at the same part of the way, then the embedding."""
    return [(block, round(block * teacher / student)) for block in range(1, student + 1)] + [EMBEDDING]


class DistillTask(nn.Module):
    """What a student learns from its teacher, stage by stage; see `at`.

    Args:
        network: the student; its encoder keeps the tokens of every block (`taps` 1 to its depth).
        teacher: keeps the tokens of the blocks that `pairs` name; it never changes.
        pairs: one for each stage.
        imitation: part of the schedule in which the teacher is imitated; the rest is corrected by clicks.
        keep: weight of the pairs of earlier stages; 0 in the released code.
        clicks: how the rest learns.
        unfreeze: part of the time of clicks after which the encoder learns as well.
    """

    def __init__(
        self,
        network: Segmenter,
        teacher: Segmenter,
        pairs: Sequence[Pair],
        imitation: float,
        keep: float,
        clicks: ClickTask,
        unfreeze: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        self._teacher = (teacher.eval().requires_grad_(False),)  # a tuple hides it from what is trained and moved
        self.pairs = list(pairs)
        self.imitation = imitation
        self.keep = keep
        self.clicks = clicks
        self.unfreeze = unfreeze
        self.part = 0.0
        _require_taps(network, [own for own, _ in pairs], "the student")
        _require_taps(teacher, [other for _, other in pairs], "the teacher")

    def at(self, part: float) -> None:
        """Tell how far the schedule is, 0 to 1; the loop does, before every step."""
        self.part = part

    @property
    def stage(self) -> int | None:
        """The pair at work, counted from 0; None while clicks are learnt from."""
        if self.part >= self.imitation:
            return None
        return min(len(self.pairs) - 1, int(self.part / self.imitation * len(self.pairs)))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`loss` of the stage, and `dice` once there are masks."""
        stage = self.stage
        if stage is None:
            resting = (self.part - self.imitation) / max(1e-9, 1 - self.imitation) < self.unfreeze
            with torch.set_grad_enabled(not resting):
                features = self.network.encode(batch["image"])
            return self.clicks.conversation(features, batch["label"])
        teacher = self._teacher[0].to(batch["image"].device)
        with torch.no_grad():
            wanted = teacher.encode(batch["image"])
        found = self.network.encode(batch["image"])
        lost = torch.zeros((), device=batch["image"].device)
        for index, (own, other) in enumerate(self.pairs[: stage + 1]):
            weight = 1.0 if index == stage else self.keep
            if weight:
                ours = found.embedding if own == 0 else found.taps[_place(self.network, own)]
                theirs = wanted.embedding if other == 0 else wanted.taps[_place(teacher, other)]
                lost = lost + weight * F.mse_loss(ours, theirs)
        return {"loss": lost}


def _place(network: Segmenter, block: int) -> int:
    return network.config.encoder.taps.index(block)


def _require_taps(network: Segmenter, blocks: Sequence[int], who: str) -> None:
    missing = [block for block in blocks if block and block not in network.config.encoder.taps]
    if missing:
        raise BadInput(f"{who} keeps no tokens after block {missing[0]}: add it to the taps of its encoder")
