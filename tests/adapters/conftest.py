import pytest
import torch
from jaxtyping import install_import_hook

from volsam.models.encoder import Encoder, EncoderConfig

# Shapes in signatures are checked while these tests run; in use they cost nothing.
_PARTS = ("bottleneck", "lowrank", "med_tuning", "slices", "spatial")
install_import_hook([f"volsam.adapters.{part}" for part in _PARTS], "beartype.beartype")


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


@pytest.fixture
def a_volume_encoder() -> Encoder:
    """Four blocks over a grid of 4³ tokens in shifted windows of 2³."""
    torch.manual_seed(0)
    config = EncoderConfig(
        image=(16, 16, 16), patch=(4, 4, 4), width=24, depth=4, heads=2, mlp_width=32, window=(2, 2, 2),
        shift=(1, 1, 1), shifted_blocks=(0, 2), out=8,
    )  # fmt: skip
    return Encoder(config).eval()


@pytest.fixture
def a_volume() -> torch.Tensor:
    """Two volumes."""
    return torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
