"""Two layers as one step, where the machine has such a step."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def linear_gelu(
    x: Float[Tensor, "*b c"], weight: Float[Tensor, "e c"], bias: Float[Tensor, " e"] | None
) -> Float[Tensor, "*b e"]:
    """`gelu(x Wᵀ + bias)`.

    On a CPU bias and activation are applied while the product is still in the cache, by a kernel of oneDNN that
    torch's own compiler uses too; it knows neither gradients nor mixed precision, for which two steps are taken.
    """
    if _has_kernel() and _is_plain(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return F.gelu(F.linear(x, weight, bias))


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    exact = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return exact and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _has_kernel() -> bool:
    """It is a detail of torch that may go or change its name; nothing here depends on it."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
