"""What is learnt from a batch: a task holds the network and turns a batch into losses. The loop knows no more of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.data.preparation import UNKNOWN
from volsam.training.losses import Loss, hard_dice

Batch = Mapping[str, Tensor]


class LabelTask(nn.Module):
    """Image in, a logit for every class and voxel out, compared with the labels.

    A batch holds `image` (b c d h w) and `label` (b d h w), `UNKNOWN` where nothing is to be learnt. A network whose
    logits come in another size has them enlarged to that of the label.
    """

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` to be minimised, and `dice` to be read."""
        return self.judged(self.network(batch["image"]), batch["label"])

    def judged(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Logits and labels to what is learnt and logged."""
        logits = sized(logits, label)
        return {"loss": self.loss(logits, label), "dice": hard_dice(logits, label)}


class HeadTask(LabelTask):
    """A head on embeddings that a frozen encoder made before: `embedding` (b c 1 y x) instead of `image`."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The same, from the embedding on."""
        return self.judged(self.network.decode(batch["embedding"]), batch["label"])  # type: ignore[operator]


class PointsTask(LabelTask):
    """Clicks without a sign and one mask, as 3DSAM-adapter learns: the labels are drawn from beside the image.

    A batch holds `image` (b 1 d h w), `label` (b d h w) and `points` (b n 3), in voxels of the crop. Ten of them lie in
    the object and twenty anywhere (its train.py).
    """

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Both classes' logits: background is the opposite of the object."""
        features = self.network.encode(batch["image"])  # type: ignore[operator]
        logits = self.network.decode(features, batch["points"]).logits  # type: ignore[operator]
        return self.judged(rearrange([-logits / 2, logits / 2], "k b 1 d h w -> b k d h w"), batch["label"])


class BoxTask(LabelTask):
    """One object in the rectangle of its 3D box, as MA-SAM learns tumours.

    A batch holds `image` (b 3 d h w), `label` (b d h w), 1 in the object, and `box` (b 2 2): first and last (row,
    column) of a rectangle that is the same in every slice, in pixels.

    quality: weight of the predicted quality, which sessions show and MA-SAM's code does not train.
    """

    def __init__(self, network: nn.Module, loss: Loss, quality: float = 0.1) -> None:
        super().__init__(network, loss)
        self.quality = quality

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of background and object, and what each slice's are said to be worth."""
        label = batch["label"]
        logits, quality = self.network.answer(batch["image"], batch["box"])  # type: ignore[operator]
        told = self.judged(logits, label)
        with torch.no_grad():
            found = (sized(logits, label).argmax(dim=1) == 1) & (label != UNKNOWN)
            both, either = ((found & (label == 1)).sum(dim=(2, 3)), (found | (label == 1)).sum(dim=(2, 3)))
            overlap = torch.where(either > 0, both / either.clamp(min=1), 1.0)
        return {**told, "loss": told["loss"] + self.quality * (quality[:, 1] - overlap).square().mean()}


def sized(logits: Tensor, label: Tensor) -> Tensor:
    """Logits (b k d h w) at the size of a label (b d h w)."""
    size = label.shape[1:]
    return logits if logits.shape[2:] == size else F.interpolate(logits, size, mode="trilinear", align_corners=False)
