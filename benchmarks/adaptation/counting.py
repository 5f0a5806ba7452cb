"""What a training step holds in memory, counted without computing: on torch's meta device tensors have sizes only.

Every result of an operation is counted from when it is made until nothing needs it any more, so the peak is that of the
real step, but for what libraries take for themselves: workspaces of convolutions, the context of the device, and what
lies idle between blocks. Attention is counted as torch's memory-efficient kernel does it, which is what a GPU runs
where there is a bias; mixed precision as autocast on a GPU decides which operations are in which type.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from volsam.models import encoder

LOWER = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, F.prelu),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm),
}
"""Done in bfloat16 under autocast."""
UPPER = {
    *(F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, Tensor.log_softmax),
    *(F.cross_entropy, F.nll_loss, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits),
    *(F.interpolate, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow, Tensor.square),
    *(torch.sum, Tensor.sum, torch.cumsum, Tensor.cumsum, torch.logsumexp, Tensor.logsumexp, torch.norm, Tensor.norm),
}
"""Done in float32 under autocast."""


@dataclass(frozen=True)
class Step:
    """Bytes of a training step."""

    learning: int
    """Of weights that learn."""
    frozen: int
    """Of weights that do not."""
    optimiser: int
    """Two numbers of AdamW for every weight that learns."""
    kept: int
    """What the forward pass leaves for the backward pass, beside the weights."""
    peak: int
    """All of it, gradients included, at the worst moment."""


class Live(TorchDispatchMode):
    """Bytes of all results that are alive."""

    def __init__(self, before: int = 0) -> None:
        super().__init__()
        self.now = self.peak = before
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.add, found)
        return found

    def add(self, tensor: Tensor) -> None:
        """Count the memory of a tensor once, until it is given back."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class AsOnAGpu(TorchFunctionMode):
    """Attention by one kernel; with `mixed`, types as autocast chooses them, and each weight converted once."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.mixed = mixed
        self._converted: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if self.mixed and func in LOWER:
            args, kwargs = tree_map_only(Tensor, self._lowered, (args, kwargs))
        elif self.mixed and func in UPPER:
            args, kwargs = tree_map_only(Tensor, _raised, (args, kwargs))
        return func(*args, **kwargs)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **_: Any
    ) -> Tensor:
        if self.mixed:
            q, k, v = map(self._lowered, (q, k, v))
        bias = attn_mask
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill(bias, 0.0)
        if bias is not None:
            bias = bias.to(q.dtype)
            if missing := -bias.shape[-1] % 16:  # the kernel wants whole groups of 16
                bias = F.pad(bias, (0, missing))[..., : bias.shape[-1]]
            bias = bias.expand(*q.shape[:3], k.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, torch.is_grad_enabled())[0]

    def _lowered(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(torch.bfloat16)
        if id(tensor) not in self._converted:
            self._converted[id(tensor)] = tensor.to(torch.bfloat16)
        return self._converted[id(tensor)]


def _raised(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def step(task: nn.Module, batch: Mapping[str, Tensor], *, mixed: bool = False, parts: int = 1, beside: int = 0) -> Step:
    """Count a step of `task`, whose weights and batch are on the meta device.

    mixed: in bfloat16 where autocast has it; parts: how many such batches go through before the optimiser steps;
    beside: bytes of other networks that are there.
    """
    weights = list(task.parameters())
    learning = sum(_bytes(weight) for weight in weights if weight.requires_grad)
    everything = sum(map(_bytes, [*weights, *task.buffers()]))
    fixed = everything + 2 * learning + beside + sum(map(_bytes, batch.values()))
    live = Live(fixed)
    kept = 0
    task.train()
    with live:
        for _ in range(min(parts, 2)):  # the second finds the gradients of the first
            before = live.now
            with AsOnAGpu(mixed), _again(mixed):
                loss = task(batch)["loss"]
                kept = max(kept, live.now - before)
                loss.backward()
            del loss
    task.zero_grad(set_to_none=True)
    return Step(learning, everything - learning, 2 * learning, kept, live.peak)


@contextmanager
def _again(mixed: bool) -> Iterator[None]:
    """Let blocks that are computed again on the way back, where modes do not reach, be so as on a GPU, too."""
    inside = partial(encoder.checkpoint, context_fn=lambda: (nullcontext(), AsOnAGpu(mixed)))
    with patch.object(encoder, "checkpoint", inside):
        yield


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
