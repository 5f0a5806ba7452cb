"""SAM, SAM-Med2D, SAM-Med3D and FastSAM3D: the three parts together, and a click as their evaluation makes one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.evaluation.published.decoder import MaskDecoder
from volsam.evaluation.published.encoder import AdaptedBlock, Encoder, StudentBlock
from volsam.evaluation.published.prompts import PromptEncoder


class Sam(nn.Module):
    """Encoder, prompt encoder and mask decoder of a rank; `image` is the edge of the input in voxels.

    encoder, prompts and decoder hold sizes that are not the usual ones, as arguments of the three parts.
    """

    def __init__(
        self,
        rank: int,
        image: int,
        *,
        patch: int = 16,
        width: int | None = None,
        encoder: dict[str, Any] | None = None,
        prompts: dict[str, Any] | None = None,
        decoder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        grid, out = image // patch, width or (256 if rank == 2 else 384)
        self.image_encoder = Encoder(rank, grid=grid, patch=patch, out=out, **(encoder or {}))
        self.prompt_encoder = PromptEncoder(rank, image=image, grid=grid, width=out, **(prompts or {}))
        self.mask_decoder = MaskDecoder(rank, width=out, **(decoder or {}))

    def forward(
        self,
        embedding: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All masks (b 4 *size) at four times the grid and their qualities (b 4); the first is the single one."""
        sparse, dense = self.prompt_encoder(points, labels, boxes, mask)
        return self.mask_decoder(embedding, self.prompt_encoder.dense_code(), sparse, dense)


def sam_b(image: int = 1024) -> Sam:
    """SAM with ViT-B."""
    return Sam(2, image)


def sam_med2d(image: int = 256) -> Sam:
    """SAM-Med2D: ViT-B with its adapter in every block."""
    return Sam(2, image, encoder={"block": AdaptedBlock})


def sam_med3d(image: int = 128) -> Sam:
    """SAM-Med3D with ViT-B."""
    return Sam(3, image)


def fast_sam_3d(image: int = 128) -> Sam:
    """FastSAM3D: the student's encoder under SAM-Med3D's other parts."""
    return Sam(3, image, encoder=STUDENT)


STUDENT: dict[str, Any] = {"depth": 6, "heads": 6, "window": 0, "wide": (), "skip": 2, "block": StudentBlock}
"""FastSAM3D's encoder: six blocks, two of them without attention."""


def click(
    network: Sam, embedding: Tensor, point: Tensor, label: Tensor, previous: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One click: the newest point (1 1 rank) with its label (1 1) and the last low-resolution logits.

    Gives the logits (1 1 *size) at the size of the input, and the low-resolution logits to feed back.
    """
    masks, _ = network(embedding, point, label, None, previous)
    low_res = masks[:, :1]
    size = [network.prompt_encoder.image] * network.prompt_encoder.rank
    mode = "trilinear" if len(size) == 3 else "bilinear"
    return F.interpolate(low_res, size=size, mode=mode, align_corners=False), low_res


def mask_on_host(logits: Tensor) -> NDArray[np.bool_]:
    """The mask (*size) as the 3D systems make it: a sigmoid, all probabilities to the host, a threshold there."""
    return torch.sigmoid(logits).cpu().numpy()[0, 0] > 0.5
