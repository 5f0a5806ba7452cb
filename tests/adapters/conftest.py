import pytest
import torch
from jaxtyping import install_import_hook

from volsam.models.encoder import Encoder, EncoderConfig

# Shapes in signatures are checked while these tests run; in use they cost nothing.
install_import_hook(
    ["volsam.adapters.slices", "volsam.adapters.lowrank", "volsam.adapters.spatial"], "beartype.beartype"
)


@pytest.fixture
def a_slice_encoder() -> Encoder:
    """Two blocks over a grid of 4 × 4 tokens a slice; windows of 3 need padding, the second block sees the slice."""
    torch.manual_seed(0)
    config = EncoderConfig(
        image=(1, 32, 32), channels=1, patch=(1, 8, 8), width=24, depth=2, heads=2, mlp_width=32, window=(1, 3, 3),
        wide_window=(1, 0, 0), wide_blocks=(1,), bias_axes="hw", out=8, neck_kernel=(1, 3, 3),
    )  # fmt: skip
    return Encoder(config).eval()


@pytest.fixture
def a_stack() -> torch.Tensor:
    """Two stacks of five slices."""
    return torch.randn(2, 1, 5, 32, 32, generator=torch.Generator().manual_seed(1))
