"""Which weights of a network learn."""

from __future__ import annotations

import re

from torch import nn

from volsam.errors import BadInput
from volsam.models.encoder import Encoder

ADAPTERS = (
    r"factors\.|blocks\.\d+\.(before_attention|after_attention|before_mlp|beside_mlp|after_mlp|after_block"
    r"|attention\.qkv\.changes)\."
)
"""Names of the weights that adapters bring into an encoder, as a regular expression."""

NORMS = r"blocks\.\d+\.norm[12]\."
"""Names of the norms of its blocks."""


def train_only(network: nn.Module, pattern: str) -> int:
    """Let exactly those weights learn whose names begin as `pattern` (a regular expression); returns their number.

    A pattern that fits none is refused: training would change nothing.
    """
    count = 0
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(re.match(pattern, name) is not None)
        count += parameter.numel() if parameter.requires_grad else 0
    if count == 0:
        raise BadInput(f"no weight's name begins with {pattern!r}, so nothing would learn: correct the pattern")
    return count


def train_adapters(encoder: Encoder) -> int:
    """Make trainable the adapters of an encoder and the norms of its blocks; returns the number of weights."""
    return train_only(encoder, rf"{ADAPTERS}|{NORMS}")
