"""Files of weights as they are published, at a reduced size; the values follow from names by the rule of fixtures."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volsam.recipes.families.fixture import read_fixture

RECORDED = Path(__file__).parent.parent / "reference"

Tensors = dict[str, Tensor]


def weights_of(fixture: str) -> Tensors:
    """Every tensor of a recorded network, under its original name."""
    return read_fixture(RECORDED / f"{fixture}.json").weights()


def plain(tensors: Tensors) -> Any:
    """As SAM and MedSAM are published."""
    return tensors


def of_a_training(tensors: Tensors) -> Any:
    """As SAM-Med3D and FastSAM3D are published: with the state of the training, and numbers of numpy."""
    return {
        "epoch": 3,
        "model_state_dict": tensors,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        "losses": [np.float64(0.5), np.float32(0.25)],
        "best_dice": np.array([0.5, 0.75]),
        "args": Namespace(task="train", device=torch.device("cpu"), folder=PurePosixPath("x").name, size=np.int64(128)),
    }


def under_model(tensors: Tensors) -> Any:
    """As SAM-Med2D is published."""
    return {"model": tensors, "optimizer": {"state": {}}}


def under_state_dict(tensors: Tensors) -> Any:
    """As training frameworks save."""
    return {"state_dict": tensors, "epoch": 1}


def of_parallel(tensors: Tensors) -> Any:
    """As `torch.nn.DataParallel` names them."""
    return {"model_state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}


def in_three_parts(tensors: Tensors) -> dict[str, Any]:
    """As 3DSAM-adapter is published; of its four prompt encoders, three take no part."""

    def part(name: str) -> Tensors:
        return {key.removeprefix(name): tensor for key, tensor in tensors.items() if key.startswith(name)}

    unused = {"x": torch.ones(1)}
    return {
        "epoch": 1,
        "best_val_loss": np.float64(0.5),
        "encoder_dict": part("image_encoder."),
        "feature_dict": [unused, unused, unused, part("prompt_encoder.")],
        "decoder_dict": part("mask_decoder."),
    }


FORMS: list[Callable[[Tensors], Any]] = [plain, of_a_training, under_model, under_state_dict, of_parallel]


def saved(content: Any, path: Path, **how: Any) -> Path:
    """A torch file."""
    torch.save(content, path, **how)
    return path


class Malicious:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.function, self.given = function, given

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.given


def tuned_and_sam() -> tuple[Tensors, Tensors]:
    """MA-SAM as it is published, the tuned tensors alone, and a SAM below it."""
    whole = {name.removeprefix("sam."): tensor for name, tensor in weights_of("ma_sam").items()}
    tuned, sam = {}, {}
    for name, tensor in whole.items():
        if found := re.search(r"blocks\.(\d+)\..*\.([qv])_FacTs", name):
            tuned[f"{found[2]}_FacTs_{int(found[1]):03d}"] = tensor
        elif "adapter" in name or "FacT" in name or not name.startswith("image_encoder."):
            tuned[name] = tensor
        if "adapter" not in name and "FacT" not in name:
            sam[re.sub(r"\.(ImageEncoderViT|Block|Attention)(?=\.)", "", name).replace("qkv.qkv", "qkv")] = tensor
    return tuned, sam
