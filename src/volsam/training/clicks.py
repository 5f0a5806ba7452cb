"""Learning to be corrected: simulated clicks on what is still wrong, turn by turn (SAM-Med3D, section 3.2, its code).

Each turn gives one click, drawn anywhere in the error of the mask so far, and that mask; in one turn in the middle and
in the last one the mask comes alone. What all turns lose is averaged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from volsam.data.preparation import UNKNOWN
from volsam.models.features import Features
from volsam.models.prompt_encoder import NEGATIVE, NOT_A_POINT, POSITIVE, PromptBatch
from volsam.models.segmenter import Segmenter
from volsam.training.losses import overlap_of_masks


class ClickTask(nn.Module):
    """A promptable 3D network in simulated conversations.

    A batch holds `image` (b 1 d h w) and `label` (b d h w), 1 in the object and `UNKNOWN` where nothing is
    to be learnt.

    Args:
        network: what learns.
        turns: of a conversation; 11 in SAM-Med3D.
        quality: weight of the predicted quality, which sessions show and the released code does not train.
    """

    def __init__(self, network: Segmenter, turns: int = 11, quality: float = 0.1) -> None:
        super().__init__()
        self.network = network
        self.turns = turns
        self.quality = quality

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`loss` over all turns, and `dice` of the last."""
        return self.conversation(self.network.encode(batch["image"]), batch["label"])

    def conversation(self, features: Features, label: Int[Tensor, "b d h w"]) -> dict[str, Tensor]:
        """The same, of features that are there."""
        label = rearrange(label, "b d h w -> b 1 d h w")
        target, known = ((label == 1).to(features.image.dtype), (label != UNKNOWN))
        alone = int(torch.randint(1, max(2, self.turns - 1), ())) if self.turns > 2 else -1
        mask: Tensor | None = None
        lost = torch.zeros((), device=target.device)
        logits = torch.full_like(target, -1.0)
        for turn in range(self.turns):
            if mask is not None and turn in (alone, self.turns - 1):
                prompts = PromptBatch(mask=mask)
            else:
                points, labels = clicks_on_errors(target, None if mask is None else logits, known)
                prompts = PromptBatch(points, labels, mask=mask)
            answer = self.network.decode(features, prompts)
            logits = answer.logits
            loss = overlap_of_masks(logits, target, known.to(target.dtype))
            iou = _overlap(logits, target, known)
            lost = lost + loss.mean() + self.quality * (answer.quality[:, 0] - iou).square().mean()
            mask = answer.low_res.detach()
        iou = _overlap(logits, target, known)
        return {"loss": lost / self.turns, "dice": (2 * iou / (1 + iou)).mean()}


def clicks_on_errors(
    target: Float[Tensor, "b 1 d h w"],
    logits: Float[Tensor, "b 1 d h w"] | None,
    known: Bool[Tensor, "b 1 d h w"] | None = None,
) -> tuple[Float[Tensor, "b 1 3"], Int[Tensor, "b 1"]]:
    """One voxel of each error, any as likely as another: positive where the object was missed, negative elsewhere.

    Without logits the click lies in the object. Where nothing is wrong the point says nothing. No click
    lies where the truth is not `known`.
    """
    inside = target > 0.5
    found = torch.zeros_like(inside) if logits is None else logits > 0
    wrong = inside ^ found if known is None else (inside ^ found) & known
    chosen = torch.where(wrong, torch.rand(target.shape, device=target.device), -1.0).flatten(1).argmax(dim=1)
    _, h, w = target.shape[2:]
    place = torch.stack([chosen // (h * w), chosen // w % h, chosen % w], dim=1)
    labels = torch.where(inside.flatten(1).gather(1, chosen[:, None]), POSITIVE, NEGATIVE)
    labels = torch.where(wrong.flatten(1).any(dim=1, keepdim=True), labels, NOT_A_POINT)
    return rearrange(place.to(target.dtype), "b c -> b 1 c"), labels


@torch.no_grad()
def _overlap(logits: Tensor, target: Tensor, known: Tensor) -> Float[Tensor, " b"]:
    """Intersection over union of what is found and what is there; 1 where both are nothing."""
    found, inside = (logits > 0) & known, target > 0.5
    both = (found & inside).flatten(1).sum(dim=1)
    either = (found | inside).flatten(1).sum(dim=1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
