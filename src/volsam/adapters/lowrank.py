"""Changes of low rank to frozen linear layers: y = W x + s · V S U x, with U: width -> rank and V: rank -> width.

FacT in tensor-train form (Jie and Deng 2023, "FacT: Factor-tuning for lightweight adaptation on vision transformer")
shares U and V among all layers and gives each place a core S of its own. Without a core, and with factors of their own
at every place, the same form is LoRA (Hu et al. 2022), on query and value as in SAMed (Zhang and Liu 2023).

In training the change runs beside the frozen layer. For use, `fold` puts it into the layer's weight: the same
function at no cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volsam.models.attention import GridAttention
from volsam.models.encoder import Encoder


class LowRank(nn.Module):
    """x -> s · V (S (U x)), without a core s · V (U x).

    `down` and `up` may be shared with other places; whoever made them owns them and stores them, once.
    """

    def __init__(
        self,
        down: nn.Linear,
        up: nn.Linear,
        core: nn.Linear | None = None,
        *,
        scale: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._factors = (down, up)  # a tuple hides them from this module's weights
        self.core = core
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b e"]:
        """What is added to the layer's output."""
        down, up = self._factors
        inner = down(x)
        return up(self.dropout(inner if self.core is None else self.core(inner))) * self.scale

    def weight(self) -> Float[Tensor, "e c"]:
        """The change as one matrix."""
        down, up = self._factors
        inner = down.weight if self.core is None else self.core.weight @ down.weight
        return self.scale * (up.weight @ inner)


class ChangedProjection(nn.Module):
    """A frozen projection to query, key and value side by side, with changes to some of the three."""

    def __init__(self, linear: nn.Linear, changes: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.linear = linear
        self.changes = nn.ModuleDict(changes)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b qkv"]:
        """Query, key and value of every token."""
        projected = self.linear(x)
        for part, change in self.changes.items():
            _part(projected, part, axis=-1).add_(change(x))
        return projected

    def folded(self) -> nn.Linear:
        """One plain layer that computes the same in evaluation mode."""
        linear = nn.Linear(self.linear.in_features, self.linear.out_features, device="meta")
        weight = self.linear.weight.detach().clone()
        for part, change in self.changes.items():
            assert isinstance(change, LowRank)
            _part(weight, part, axis=0).add_(change.weight().detach())
        linear.load_state_dict({"weight": weight, "bias": self.linear.bias.detach()}, assign=True)
        return linear.requires_grad_(False)


def _part(joint: Tensor, part: str, axis: int) -> Tensor:
    """The third of a joint query, key and value that is called "q", "k" or "v"."""
    size = joint.shape[axis] // 3
    return joint.narrow(axis, "qkv".index(part) * size, size)


class Factors(nn.Module):
    """The factors U (`down`) and V (`up`); V begins at zero, so the whole change does."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)


def add_fact(
    encoder: Encoder, rank: int = 32, scale: float = 1.0, dropout: float = 0.1, parts: tuple[str, ...] = ("q", "v")
) -> None:
    """FacT on some parts of every attention's projection, in place; the shared factors become `encoder.factors`."""
    encoder.factors = factors = Factors(encoder.config.width, rank)
    for attention in _attentions(encoder):
        changes = {
            part: LowRank(factors.down, factors.up, nn.Linear(rank, rank, bias=False), scale=scale, dropout=dropout)
            for part in parts
        }
        attention.add_module("qkv", ChangedProjection(attention.qkv, changes))


def add_lora(encoder: Encoder, rank: int = 4, scale: float = 1.0, parts: tuple[str, ...] = ("q", "v")) -> None:
    """LoRA on some parts of every attention's projection, in place; the factors of all blocks are `encoder.factors`."""
    width, attentions = encoder.config.width, list(_attentions(encoder))
    factors = [{part: Factors(width, rank) for part in parts} for _ in attentions]
    for attention, of_block in zip(attentions, factors, strict=True):
        changes = {part: LowRank(own.down, own.up, scale=scale) for part, own in of_block.items()}
        attention.add_module("qkv", ChangedProjection(attention.qkv, changes))
    encoder.factors = nn.ModuleList(nn.ModuleDict(of_block) for of_block in factors)


def fold(encoder: Encoder) -> None:
    """Put every change of low rank into the layer that it changes, in place: the same function, for use and not for
    training.
    """
    with torch.no_grad():
        for attention in _attentions(encoder):
            if isinstance(attention.qkv, ChangedProjection):
                attention.add_module("qkv", attention.qkv.folded())
    if hasattr(encoder, "factors"):
        del encoder.factors


def _attentions(encoder: Encoder) -> Iterator[GridAttention]:
    return (block.attention for block in encoder.blocks if isinstance(block.attention, GridAttention))
