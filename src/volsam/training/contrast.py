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
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.training.items import Item, Patches

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
    """An encoder learns to know its views again.

    A batch holds `image` (b 2 c d h w), b of at least 2.

    Args:
        network: what is kept; its part `project` brings pooled features to the space in which views are compared.
        encode: images to features (b e d h w), by other parts of the network.
    """

    def __init__(self, network: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self._encode = encode

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`loss`: cross-entropy of finding the other view among all others."""
        images = rearrange(batch["image"], "b two c d h w -> (two b) c d h w")
        pooled = reduce(self._encode(images), "b c d h w -> b c", "mean")
        return {"loss": contrast(F.normalize(self.network.project(pooled), dim=1))}  # type: ignore[operator]


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
