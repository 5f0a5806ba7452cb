"""volsam-s: the small promptable 3D model that ships with the package.

Encode once; clicks of both signs, boxes, scribbles and the last mask enter late as dense maps. Trained by the scripts
in benchmarks/default_model on permissively licensed scans and invented ones only; the card beside the weights says how
well it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from volsam.errors import BadFile
from volsam.recipes.recipe import EMBEDDED, Recipe, recipes

if TYPE_CHECKING:
    from torch import Tensor

    from volsam.inference.model import DensePromptModel

WEIGHTS = Path(__file__).parents[1] / "weights" / "volsam-s.safetensors"


def build(weights: Path, device: str = "cpu") -> DensePromptModel:
    """The model with weights from a safetensors file; every tensor must be there and fit."""
    # What is known of the model is asked more often than the model itself, and must not cost the import of torch.
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError):
        raise BadFile(f"{weights} is not a whole safetensors file: fetch it again") from None
    return build_from(tensors, str(weights), device)


def build_from(tensors: Mapping[str, Tensor], where: str, device: str = "cpu") -> DensePromptModel:
    """The model with these weights; `where` they are from is for messages."""
    from volsam.inference.model import DensePromptModel
    from volsam.models.dense_prompt import DensePromptNet

    network = DensePromptNet()
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if {name: tuple(value.shape) for name, value in tensors.items()} != wanted:
        raise BadFile(f"{where} does not hold the weights of volsam-s: names or shapes differ")
    network.load_state_dict(tensors)
    return DensePromptModel(network, EMBEDDED, device)


recipes.add(
    EMBEDDED,
    Recipe(
        name=EMBEDDED,
        summary="small promptable 3D model, made for a CPU; the default",
        prompts=("point", "box", "scribble", "mask"),
        source="this project, benchmarks/default_model",
        licence="Apache-2.0",
        weights=WEIGHTS,
        card=WEIGHTS.with_name("volsam-s.md"),
        build=build,
    ),
)
