"""Names and shapes of official checkpoints, where they are at hand."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from volsam.recipes.families.family import Described, differences, family_of, on_no_device

SHARED = Path(os.environ.get("VOLSAM_SHARED", Path(__file__).parents[3] / "shared"))
CHECKPOINTS = SHARED / "parity" / "checkpoints"
needs_manifests = pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason=f"no manifests of checkpoints in {CHECKPOINTS}")


def manifest(name: str) -> dict[str, Tensor]:
    """Tensors without memory."""
    shapes = json.loads((CHECKPOINTS / f"{name}.json").read_text())["state_dict"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def described(tensors: dict[str, Tensor]) -> Described:
    return Described("a manifest", {name: tuple(tensor.shape) for name, tensor in tensors.items()})


def fits(name: str) -> tuple[str, list[str]]:
    """The family that knows a manifest, and what of it does not fit the family's network."""
    tensors = manifest(name)
    family = family_of(described(tensors))
    return family.name, differences(on_no_device(family, described(tensors)), family.convert(tensors))
