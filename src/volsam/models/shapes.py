"""What grids of tokens are called in annotations."""

from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

Shape: TypeAlias = tuple[int, int, int]
"""Numbers along depth, height and width."""

Tokens: TypeAlias = Float[Tensor, "b d h w c"]
"""A grid of tokens, channels last."""

Box: TypeAlias = tuple[slice, slice, slice]
"""Part of a grid."""
