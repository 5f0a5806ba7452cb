"""Fixtures of 3DSAM-adapter at any size, recorded from the network as `volsam.evaluation.published` writes it out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volsam.evaluation.published.sam_adapter_3d import AggregationDecoder, VisualSampler, VolumeEncoder
from volsam.recipes.families.fixture import tensor_input, weight

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")


def build(c: dict[str, Any]) -> nn.ModuleDict:
    encoder = VolumeEncoder(
        grid=c["grid"],
        width=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        extent=c["window_size"],
        wide=c["global_attn_indexes"],
        wide_extent=2 * c["grid"],
        window=c["cubic_window_size"],
        slices=c["num_slice"],
        out=c["out_chans"],
    )
    sampler = VisualSampler(
        width=c["out_chans"], depth=c["prompt_depth"], heads=c["prompt_heads"], hidden=c["prompt_mlp_dim"]
    )
    decoder = AggregationDecoder(width=c["out_chans"], channels=c["mlahead_channels"])
    return nn.ModuleDict(dict(zip(PARTS, (encoder, sampler, decoder), strict=True))).eval()


def fill(network: nn.Module, seed: int) -> None:
    """Weights by the rule; the masks of shifted windows are computed."""
    for name, tensor in network.state_dict().items():
        if not name.endswith("attn_mask"):
            tensor.copy_(torch.from_numpy(np.asarray(weight(name, tuple(tensor.shape), seed))))
    network.requires_grad_(False)


@torch.no_grad()
def compute(network: nn.ModuleDict, c: dict[str, Any], seed: int, points: np.ndarray) -> dict[str, Tensor]:
    """Every array of a fixture."""
    grid = c["grid"]
    image = torch.from_numpy(tensor_input("image", (grid * c["num_slice"], 3, 16 * grid, 16 * grid), seed))
    raw = torch.from_numpy(tensor_input("lowres_image", (1, 1, 2 * grid, 2 * grid, 2 * grid), seed))
    levels = network["image_encoder"](image)
    prompted = network["prompt_encoder"](levels[3], torch.from_numpy(points), c["patch_voxels"])
    logits = network["mask_decoder"]([*levels[:3], prompted], raw)
    return {f"feature{i}": x for i, x in enumerate(levels)} | {"prompted_feature3": prompted, "logits": logits}


def record(folder: Path, c: dict[str, Any], seed: int, points: list[list[float]]) -> Path:
    """Write a fixture; gives the path of its JSON."""
    network = build(c)
    fill(network, seed)
    given = np.asarray([points], np.float32).reshape(1, -1, 3)
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    path = folder / "recorded.json"
    path.write_text(json.dumps({"note": "", "seed": seed, "config": c, "state_dict": shapes}))
    arrays = {name: tensor.numpy() for name, tensor in compute(network, c, seed, given).items()}
    np.savez(path.with_suffix(".npz"), points=given, **arrays)
    return path
