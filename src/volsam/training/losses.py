"""Losses by their names in the papers. All of them are MONAI's; what differs is what is averaged and how it is weighed.

Every loss takes logits (b k d h w) and whole-number labels (b d h w), and averages over items, so that two processes
with half a batch each learn what one learns with the whole. Voxels with the label `UNKNOWN` count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from volsam.data.preparation import UNKNOWN

Loss: TypeAlias = Callable[[Float[Tensor, "b k d h w"], Int[Tensor, "b d h w"]], Tensor]


def dice_and_cross_entropy(
    dice: float = 1.0, entropy: float = 1.0, *, background: bool = False, squared: bool = False, smooth: float = 1e-5
) -> Loss:
    """Soft Dice plus cross-entropy over a softmax of all classes.

    dice, entropy: weights; background: whether the background is a class of the Dice term; squared: squares in its
    denominator; smooth: added above and below.
    """
    from monai.losses.dice import DiceLoss
    from monai.networks.utils import one_hot

    overlap = DiceLoss(
        include_background=background,
        squared_pred=squared,
        smooth_nr=smooth,
        smooth_dr=smooth,
    )

    def loss(logits: Float[Tensor, "b k d h w"], labels: Int[Tensor, "b d h w"]) -> Tensor:
        logits = logits.float()
        known = labels != UNKNOWN
        classes = torch.where(known, labels, 0)
        wanted = one_hot(rearrange(classes, "b d h w -> b 1 d h w"), logits.shape[1], logits.dtype)
        seen = known[:, None].to(logits.dtype)
        entropies = F.cross_entropy(logits, classes, reduction="none") * known
        mean = entropies.sum(dim=(1, 2, 3)) / known.sum(dim=(1, 2, 3)).clamp(min=1)
        return dice * overlap(logits.softmax(dim=1) * seen, wanted * seen) + entropy * mean.mean()

    return loss


def ma_sam() -> Loss:
    """0.2 cross-entropy + 0.8 Dice of all classes, background too (MA-SAM's and SAMed's code)."""
    return dice_and_cross_entropy(0.8, 0.2, background=True, squared=True)


def sam_adapter_3d() -> Loss:
    """Half Dice of the object, half cross-entropy (3DSAM-adapter's code)."""
    return dice_and_cross_entropy(0.5, 0.5)


def auto_sam() -> Loss:
    """Cross-entropy + Dice of the foreground with squares, smooth 1 (AutoSAM's code, but Dice of each item)."""
    return dice_and_cross_entropy(squared=True, smooth=1.0)


def overlap_of_masks(
    logits: Float[Tensor, "b 1 d h w"],
    target: Float[Tensor, "b 1 d h w"],
    known: Float[Tensor, "b 1 d h w"] | None = None,
) -> Float[Tensor, " b"]:
    """1 - soft Dice, plus binary cross-entropy, for each item: what a mask from prompts is judged by.

    known: how much of each voxel is known, 0 to 1; the target is of that part. None: all of all.
    """
    axes = (1, 2, 3, 4)
    known = torch.ones_like(target) if known is None else known
    chance = logits.float().sigmoid() * known
    both = (chance * target).sum(dim=axes)
    dice = (2 * both + 1) / (chance.sum(dim=axes) + (target * known).sum(dim=axes) + 1)
    entropies = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none") * known
    return 1 - dice + entropies.sum(dim=axes) / known.sum(dim=axes).clamp(min=1)


def hard_dice(logits: Float[Tensor, "b k d h w"], labels: Int[Tensor, "b d h w"]) -> Tensor:
    """Dice of the chosen classes without background, over classes and items that have any; for the log."""
    with torch.no_grad():
        chosen = torch.where(labels == UNKNOWN, UNKNOWN, logits.argmax(dim=1))
        scores = []
        for index in range(1, logits.shape[1]):
            found, wanted = chosen == index, labels == index
            total = found.sum() + wanted.sum()
            scores.append(torch.where(total > 0, 2 * (found & wanted).sum() / total.clamp(min=1), torch.nan))
        return torch.stack(scores).nanmean()
