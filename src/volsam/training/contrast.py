"""Learning without labels: two views of one place are alike, views of different places are not (SimCLR).

Chen et al. 2020, "A simple framework for contrastive learning of visual representations". AutoSAM compares with a UNet
that began so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from volsam.training.items import Item
from volsam.training.patches import Patches

TEMPERATURE = 0.1


class Views(Patches):
    """Two changed views of one patch, drawn anywhere: `image` (2 c d h w)."""

    def make(self, random: np.random.Generator) -> Item:
        """A patch, seen twice."""
        case = self.cases[int(random.integers(len(self.cases)))]
        image, label, known = self.cut(case, self.anywhere(case, random))
        views = []
        for _ in range(2):
            view, _, _ = self.augment.places(image, label, known, random)
            views.append(torch.from_numpy(self.augment.values(view, random)))
        return {"image": torch.stack(views)}


class ContrastTask(nn.Module):
    """An encoder learns to know its views again, among those of all places of a batch, whichever process has them.

    A batch holds `image` (b 2 c d h w), b of at least 2 over all processes.

    Args:
        network: what is kept; its part `project` brings pooled features to the space in which views are compared.
        encode: images to features (b e d h w), by other parts of the network.
        parts: in how many a batch is encoded, for less memory; more than one are encoded again on the way back.
    """

    def __init__(self, network: nn.Module, encode: Callable[[Tensor], Tensor], parts: int = 1) -> None:
        super().__init__()
        self.network = network
        self._encode = encode
        self.parts = parts

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`loss`: cross-entropy of finding the other view among all others."""
        images = rearrange(batch["image"], "b two c d h w -> (two b) c d h w")
        if self.parts == 1:
            views = self._views(images)
        else:
            some = images.chunk(self.parts)
            views = torch.cat([checkpoint(self._views, part, use_reentrant=False) for part in some])
        return {"loss": contrast(of_all_processes(views))}

    def _views(self, images: Tensor) -> Float[Tensor, "b c"]:
        pooled = reduce(self._encode(images), "b c d h w -> b c", "mean")
        return F.normalize(self.network.project(pooled), dim=1)  # type: ignore[operator]


def of_all_processes(views: Float[Tensor, "twob c"]) -> Float[Tensor, "twobp c"]:
    """The views that all processes hold, in the order of theirs: the second views behind all first ones.

    Only what this process holds has a gradient here, times the number of processes: their mean, which is learnt from,
    is then the gradient of one loss over all views.
    """
    count = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if count == 1:
        return views
    held = [torch.empty_like(views) for _ in range(count)]
    distributed.all_gather(held, views.detach().contiguous())
    held[distributed.get_rank()] = views.detach() + count * (views - views.detach())
    return rearrange(torch.stack(held), "p (two b) c -> (two p b) c", two=2)


def contrast(views: Float[Tensor, "twob c"], temperature: float = TEMPERATURE) -> Tensor:
    """NT-Xent of unit vectors, the second views behind the first ones."""
    half = len(views) // 2
    alike = views @ views.T / temperature
    alike = alike.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    partner = torch.arange(len(views), device=views.device).roll(half)
    return F.cross_entropy(alike, partner)


def projection(channels: int, width: int = 64) -> nn.Module:
    """From pooled features to the space in which views are compared."""
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, width))
