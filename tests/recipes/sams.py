"""2D SAMs under their own names, tiny ones with random weights and full ones without memory."""

from __future__ import annotations

import torch
from torch import Tensor

from volsam.evaluation.published.sam import Sam
from volsam.models import sizes
from volsam.models.segmenter import SegmenterConfig

FULL: dict[str, SegmenterConfig] = {"B": sizes.SAM_B, "L": sizes.SAM_L, "H": sizes.SAM_H}


def a_tiny_sam(image: int = 64, depth: int = 4, width: int = 24, out: int = 32) -> dict[str, Tensor]:
    """Random weights on a grid of `image` / 16; the second block of every two sees everything."""
    torch.manual_seed(0)
    wide = tuple(range(1, depth, 2))
    encoder = {"width": width, "depth": depth, "heads": 3, "window": 3, "wide": wide}
    sam = Sam(2, image, width=out, encoder=encoder, decoder={"hidden": 40, "quality_width": 20})
    for parameter in sam.parameters():  # norms, biases, position and tables begin as ones and zeros
        torch.nn.init.normal_(parameter, std=0.2)
    return {name: tensor.detach() for name, tensor in sam.state_dict().items()}


def a_full_sam(size: str) -> dict[str, Tensor]:
    """Names and shapes of the released file."""
    config = FULL[size].encoder
    encoder = {"width": config.width, "depth": config.depth, "heads": config.heads, "wide": config.wide_blocks}
    with torch.device("meta"):
        return dict(Sam(2, 1024, encoder=encoder).state_dict())
