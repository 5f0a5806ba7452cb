"""sam-mini: a small 2D SAM that ships with the package, where systems built on SAM can begin without SAM's weights.

SAM's network with a fraction of its width and depth, trained promptably on slices by the scripts in
benchmarks/sam_mini, on permissively licensed scans and invented ones only. MA-SAM, AutoSAM, 3DSAM-adapter and other
ways of tuning a SAM start from its `tensors`; it also answers clicks and boxes itself, slice by slice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from volsam.errors import BadFile
from volsam.recipes.recipe import Recipe, recipes

if TYPE_CHECKING:
    from torch import Tensor

    from volsam.inference.slices import SliceModel

SAM_MINI = "sam-mini"
WEIGHTS = Path(__file__).parents[1] / "weights" / "sam-mini.safetensors"


def tensors(weights: Path = WEIGHTS) -> dict[str, Tensor]:
    """The weights under SAM's original names and in its shapes, float32; they are stored in half of that."""
    # What is known of the model is asked more often than the model itself, and must not cost the import of torch.
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.float() for name, tensor in load_file(weights).items()}
    except (SafetensorError, OSError):
        raise BadFile(f"{weights} is not a whole safetensors file: install volsam again") from None


def build(weights: Path, device: str = "cpu") -> SliceModel:
    """The model with weights from a safetensors file; every tensor must be there and fit."""
    from volsam.recipes.checkpoint import filled
    from volsam.recipes.families.family import Described, families
    from volsam.recipes.families.sam import slice_model

    found = tensors(weights)
    described = Described.of(str(weights), found)
    return slice_model(filled(families["sam"], described, found), SAM_MINI, device)


recipes.add(
    SAM_MINI,
    Recipe(
        name=SAM_MINI,
        summary="small 2D SAM, pre-trained on slices; a start for MA-SAM, AutoSAM and others",
        prompts=("point", "box", "scribble", "mask"),
        source="this project, benchmarks/sam_mini",
        licence="Apache-2.0",
        weights=WEIGHTS,
        card=WEIGHTS.with_name("sam-mini.md"),
        build=build,
    ),
)
