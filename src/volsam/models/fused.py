"""Layers for use on a CPU: steps that are one where the machine has such a step, weights in the order it reads them."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from volsam.models.winograd import Winograd, is_suited

# Multiplications of a product from which on another kernel is worth the way to it.
LARGE = 2**24


class Linear(nn.Linear):
    """`nn.Linear`, whose large products are also quick while it learns on a CPU."""

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b e"]:
        """`x Wᵀ + bias`."""
        return linear(x, self.weight, self.bias)


def is_linear(layer: object) -> TypeGuard[nn.Linear]:
    """Whether a layer is one matrix and one bias and nothing else; what an adapter has changed is not."""
    return type(layer) in (nn.Linear, Linear)


def linear(
    x: Float[Tensor, "*b c"], weight: Float[Tensor, "e c"], bias: Float[Tensor, " e"] | None
) -> Float[Tensor, "*b e"]:
    """`x Wᵀ + bias`; large products with gradients on a CPU are oneDNN's, a twentieth to a tenth quicker than MKL's."""
    large = x.numel() * weight.shape[0] >= LARGE
    if large and torch.is_grad_enabled() and _has_kernel() and _is_exact(x, weight):
        # Whoever gets the answer may write into it, so it must not be a view that was made inside.
        return _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))
    return F.linear(x, weight, bias)


class _Product(torch.autograd.Function):
    """`x Wᵀ + bias` of rows (b c) with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product (b e)."""
        ctx.save_for_backward(x, weight)
        return _product(x.contiguous(), weight, None if bias is None else bias.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of all three, those that are wanted."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        return (
            _product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None,
            _product(gradient.t(), x.t(), None) if ctx.needs_input_grad[1] else None,
            gradient.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def linear_gelu(
    x: Float[Tensor, "*b c"], weight: Float[Tensor, "e c"], bias: Float[Tensor, " e"] | None
) -> Float[Tensor, "*b e"]:
    """`gelu(x Wᵀ + bias)`.

    On a CPU bias and activation are applied while the product is still in the cache, by a kernel of oneDNN that
    torch's own compiler uses too; it knows neither gradients nor mixed precision, for which two steps are taken.
    """
    if weight.is_mkldnn or (_has_kernel() and _is_plain(x, weight)):
        # The kernel reads a bias as if its numbers lay side by side, also where they do not.
        bias = None if bias is None else bias.contiguous()
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return F.gelu(linear(x, weight, bias))


class PackedLinear(nn.Module):
    """`nn.Linear` for use alone on a CPU: `weight` lies in the blocks in which oneDNN's product reads it.

    A large product takes a tenth to a fifth less time so. The weight cannot be trained, moved or saved any more.

    rows: how many vectors usually come at once, by which the blocks are chosen; any number may come.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b e"]:
        """`x Wᵀ + bias`, without gradients."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def pack(network: nn.Module, rows: int) -> None:
    """Replace the plain linear layers of a network by packed ones, where there is a kernel for them, and convolutions
    of 3³ voxels by Winograd's; in place.
    """
    for name, layer in list(network.named_children()):
        if is_suited(layer):
            setattr(network, name, Winograd(layer))
        elif not is_linear(layer):
            pack(layer, rows)
        elif _has_kernel() and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
            setattr(network, name, PackedLinear(layer, rows))


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    return _is_exact(x, weight) and not torch.is_grad_enabled()


def _is_exact(x: Tensor, weight: Tensor) -> bool:
    exact = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return exact and not torch.is_autocast_enabled("cpu") and not torch.jit.is_tracing()


def _has_kernel() -> bool:
    """It is a detail of torch that may go or change its name; nothing here depends on it."""
    names = ("_linear_pointwise", "_reorder_linear_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
