"""AutoSAM (Hu et al. 2023): heads without prompts on SAM's frozen encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from volsam.evaluation.published.decoder import MaskDecoder, upscaling
from volsam.evaluation.published.encoder import Encoder
from volsam.evaluation.published.prompts import FourierCode


class AutoSam(nn.Module):
    """SAM's encoder and the ViT head: for each class a copy of the embedding, and three tokens of its own.

    The position code is drawn anew, since its name in a checkpoint is not SAM's.
    """

    def __init__(
        self,
        *,
        image: int = 1024,
        classes: int = 14,
        out: int = 256,
        decoder: dict[str, Any] | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__()
        self.grid = image // 16
        self.image_encoder = Encoder(2, grid=self.grid, out=out, **sizes)
        self.mask_decoder = MaskDecoder(2, width=out, masks=2, groups=classes, **(decoder or {}))
        self.pe_layer = FourierCode(2, out)

    def decode(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding (1 c h w) to the first mask of every class, (classes 1 h w), and its quality."""
        position = self.pe_layer.of_grid(self.grid)[None]
        nothing = torch.empty(len(embedding), 0, embedding.shape[1], device=embedding.device)
        dense = torch.zeros_like(embedding)
        masks, quality = self.mask_decoder(embedding, position, nothing, dense)
        return masks[:, :1], quality[:, :1]

    def forward(self, image: Tensor) -> Tensor:
        """A slice (1 3 h w) to logits (1 classes h/4 w/4)."""
        return self.decode(self.image_encoder(image))[0].transpose(0, 1)


class CnnHead(nn.Module):
    """Embedding to logits by convolutions and doublings, without connections across."""

    def __init__(self, *, width: int = 256, top: int = 64, depth: int = 4, classes: int = 4) -> None:
        super().__init__()
        wide = top * 2**depth
        self.input_block = nn.Sequential(nn.Conv2d(width, wide, 1), nn.ReLU(), nn.Conv2d(wide, wide, 1), nn.ReLU())
        blocks = []
        for level in range(depth):
            a = wide // 2**level
            blocks.append(doubling(a, a // 2, enlarges=level >= depth - 2))
        self.blocks = nn.ModuleList(blocks)
        self.final = nn.Sequential(nn.Conv2d(top, top, 3, padding=1), nn.Conv2d(top, classes, 1))

    def forward(self, embedding: Tensor) -> Tensor:
        """(b c h w) to (b classes 4·h 4·w)."""
        x = self.input_block(embedding)
        for block in self.blocks:
            x = block(x)
        return self.final(x)


def doubling(a: int, b: int, enlarges: bool) -> nn.Sequential:
    """Two convolutions and a transposed one that doubles; where it does not enlarge, convolutions alone."""
    first: Sequence[nn.Module] = (nn.Conv2d(a, a, 3, padding=1), nn.ReLU())
    if enlarges:
        return nn.Sequential(*first, nn.Conv2d(a, a, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(a, b, 2, 2))
    return nn.Sequential(*first, nn.Conv2d(a, b, 3, padding=1), nn.ReLU())


class LinearHead(nn.Module):
    """SAM's upscaling and two layers over each pixel; ReLU on the logits, as released."""

    def __init__(self, *, width: int = 256, classes: int = 4) -> None:
        super().__init__()
        narrow = width // 8
        self.output_upscaling = upscaling(2, width, (width // 4, narrow))
        self.final = nn.Sequential(nn.Conv2d(narrow, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, classes, 1), nn.ReLU())

    def forward(self, embedding: Tensor) -> Tensor:
        """(b c h w) to (b classes 4·h 4·w)."""
        return self.final(self.output_upscaling(embedding))
