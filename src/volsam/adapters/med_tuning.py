"""Med-tuning (Shen et al. 2023): after every block, surroundings near and far and the frequencies along depth.

Blocks at the end of a stage also read what the last one before them found.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.adapters.spatial import Depthwise
from volsam.errors import BadInput
from volsam.models.encoder import Encoder, is_once_more
from volsam.models.shapes import Tokens


class MedAdapter(nn.Module):
    """Fewer channels, three views of the volume side by side, and back; added to the stream. Not neutral at first.

    depth: tokens along depth, since each frequency has weights of its own; before: the adapter that this one is linked
    to. What that one found is left there until its next pass: a block that is computed again on the way back (see
    `Encoder.recompute`) reads it once more. A copy does not have it.
    """

    def __init__(self, width: int, channels: int, depth: int, before: MedAdapter | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(width, channels)
        self.near = Surround(channels, 3)
        self.far = Surround(channels, 5)
        self.frequencies = DepthFrequencies(depth)
        self.mix = nn.Linear(channels, channels)
        self.up = nn.Linear(channels, width)
        self.found: Tensor | None = None
        self._before: tuple[MedAdapter, ...] = ()  # a tuple hides it from this module's weights
        self._is_read = False
        if before is not None:
            self._before, before._is_read = (before,), True
            self.link = nn.Linear(channels, channels)
            self.join = nn.Linear(2 * channels, channels)

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        narrow = F.gelu(self.down(x))
        found = self.mix(self.near(narrow) + self.far(narrow) + self.frequencies(narrow))
        for before in self._before:
            found = self.join(torch.cat([found, self.link(before.found)], dim=-1))
        self.found = found if self._is_read else None
        return x + F.gelu(self.up(narrow + found))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "found": None}  # which is of a pass, and cannot be copied while it has a gradient


class Surround(nn.Module):
    """What is around a token: depthwise within its slice, then along depth, batch norm, ReLU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.plane = Depthwise(channels, (1, kernel, kernel))
        self.depth = Depthwise(channels, (kernel, 1, 1))
        self.norm = Norm(channels)

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        mixed = self.depth(self.plane(x))
        return F.relu(self.norm(mixed.flatten(0, 3)).view_as(mixed))


class Norm(nn.BatchNorm1d):
    """Batch norm whose running statistics count a batch once, also where it passes again on the way back."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape (n c)."""
        if not (self.training and is_once_more()):
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps
        )


class DepthFrequencies(nn.Module):
    """Frequencies of the volume, each times a weight and plus a bias of its index along depth; then the magnitude.

    Published with a Fourier transform over all three axes. Neither weight nor bias depends on height and width: a
    transform along depth is the same, for in the plane it is undone, and a bias alike for all frequencies of the plane
    is a point in its first row and column.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(depth))
        self.bias = nn.Parameter(torch.ones(depth))

    def forward(self, x: Tokens) -> Tokens:
        """Same shape."""
        if x.shape[1] != len(self.weight):
            raise BadInput(
                f"Med-tuning was made for {len(self.weight)} tokens along depth and got {x.shape[1]}: "
                "make it for that depth, or give volumes of the depth it was made for"
            )
        full = x.to(torch.promote_types(x.dtype, torch.float32))  # transforms know no half precision
        image = torch.fft.ifft(torch.fft.fft(full, dim=1) * rearrange(self.weight, "d -> d 1 1 1"), dim=1)
        image[:, :, 0, 0] += rearrange(torch.fft.ifft(self.bias), "d -> d 1")
        return image.abs().to(x.dtype)


def add_med_tuning(encoder: Encoder, channels: int, depth: int | None = None, stages: int = 4) -> None:
    """Med-tuning after every block, in place, with a link at the end of each stage.

    depth: tokens along depth, by default those of the encoder's grid; for an encoder of slices, the slices of a stack.
    The first link reads the first block, each other one the end of the stage before: so four stages have the four links
    by which the published number of weights comes out.
    """
    blocks, width = list(encoder.blocks), encoder.config.width
    step = max(1, len(blocks) // stages)
    ends = range(step - 1, len(blocks), step)[:stages]
    sources = {end: start for start, end in pairwise(sorted({0, *ends}))}
    made: list[MedAdapter] = []
    for index, block in enumerate(blocks):
        before = made[sources[index]] if index in sources else None
        made.append(MedAdapter(width, channels, depth or encoder.config.grid[0], before))
        block.after_block = made[-1]
