"""A convolution of 3³ voxels with a third of the multiplications (Lavin and Gray 2016: F(2, 3) along every axis).

Two neighbouring results of three weights share four inputs. Carried into sums and differences of these, they are four
products instead of six; along three axes 64 instead of 216. Input and result are carried by small fixed matrices, the
weights once.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# Of four inputs, of three weights, and from four products to two results.
_INPUT = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_WEIGHT = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_RESULT = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])

TILES_AT_ONCE = 64
"""Blocks of 2³ results that are made in one step: what is in between should fit the cache."""


def is_suited(layer: nn.Module) -> TypeGuard[nn.Conv3d]:
    """Whether a layer is a convolution of this kind: 3³, a step of one, as large after as before, no bias."""
    return (
        type(layer) is nn.Conv3d
        and layer.kernel_size == (3, 3, 3)
        and layer.stride == layer.dilation == (1, 1, 1)
        and layer.padding in ((1, 1, 1), "same")
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.bias is None
    )


class Winograd(nn.Module):
    """A suited convolution for use alone: the same function, rounded differently. The weight cannot be trained."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        weight = convolution.weight.detach()
        carry = _WEIGHT.to(weight)
        carried = torch.einsum("pi,qj,rk,ocijk->pqrco", carry, carry, carry, weight)
        self.weight = carried.flatten(0, 2).contiguous()
        self.input, self.result = (_cubed(matrix.to(weight)) for matrix in (_INPUT, _RESULT))

    def forward(self, image: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d h w"]:
        """The convolution, channels last in memory."""
        d, h, w = image.shape[2:]
        ends = [1 + size % 2 for size in (w, h, d)]
        x = F.pad(image.movedim(1, -1), (0, 0, 1, ends[0], 1, ends[1], 1, ends[2]))
        blocks = x.unfold(1, 4, 2).unfold(2, 4, 2).unfold(3, 4, 2)  # b z y x c p q r
        step = max(1, TILES_AT_ONCE // (blocks.shape[0] * blocks.shape[2] * blocks.shape[3]))
        found = torch.cat([self._blocks(some) for some in blocks.split(step, dim=1)], dim=1)
        return found[:, :d, :h, :w].movedim(-1, 1)

    def _blocks(self, blocks: Float[Tensor, "b z y x c p q r"]) -> Float[Tensor, "b zz yy xx o"]:
        b, z, y, x, c = blocks.shape[:5]
        inputs = blocks.permute(5, 6, 7, 0, 1, 2, 3, 4).reshape(64, -1)
        products = (self.input @ inputs).view(64, -1, c) @ self.weight
        results = (self.result @ products.flatten(1)).view(2, 2, 2, b, z, y, x, -1)
        return results.permute(3, 4, 0, 5, 1, 6, 2, 7).reshape(b, 2 * z, 2 * y, 2 * x, -1)


def _cubed(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "mmm nnn"]:
    """The matrix along each of three axes, as one."""
    return torch.kron(torch.kron(matrix, matrix), matrix).contiguous()
