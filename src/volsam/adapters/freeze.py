"""Which weights of a network learn."""

from __future__ import annotations

import re

from torch import nn

from volsam.errors import BadInput


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
