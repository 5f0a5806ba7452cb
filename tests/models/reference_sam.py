"""Fixtures of any size, recorded from the published networks as `volsam.evaluation.published` writes them out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volsam.evaluation.published.encoder import Encoder, StudentBlock
from volsam.evaluation.published.sam import Sam
from volsam.recipes.families.fixture import tensor_input, weight

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def encoder_sizes(c: Config) -> Config:
    """Arguments of an encoder, but for its grid and its channels out."""
    student = {"skip": c["skip_layer"], "block": StudentBlock} if "skip_layer" in c else {}
    return {
        "width": c["embed_dim"],
        "depth": c["depth"],
        "heads": c["num_heads"],
        "window": c["window_size"],
        "wide": c["global_attn_indexes"],
    } | student


def build_encoder(c: Config, rank: int) -> Encoder:
    grid, patch = c["img_size"] // c["patch_size"], c["patch_size"]
    return Encoder(rank, grid=grid, patch=patch, out=c["out_chans"], **encoder_sizes(c)).eval()


def build_sam(c: Config, rank: int) -> Sam:
    decoder = {
        "hidden": c.get("transformer_mlp_dim", 2048),
        "heads": c.get("decoder_heads", 8),
        "depth": c.get("decoder_depth", 2),
        "quality_width": c["iou_head_hidden_dim"],
    }
    sizes = {"encoder": encoder_sizes(c), "prompts": {"mask_width": c["mask_in_chans"]}, "decoder": decoder}
    return Sam(rank, c["img_size"], patch=c["patch_size"], width=c["out_chans"], **sizes).eval()


def shapes_of(network: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def encoder_shapes(c: Config, rank: int) -> Shapes:
    return shapes_of(build_encoder(c, rank))


def sam_shapes(c: Config, rank: int) -> Shapes:
    return shapes_of(build_sam(c, rank))


def fill(network: nn.Module, shapes: Shapes, seed: int) -> None:
    """Weights by the rule of fixtures; every name must fit."""
    by_rule = {name: torch.from_numpy(np.asarray(weight(name, tuple(s), seed))) for name, s in shapes.items()}
    network.load_state_dict(by_rule, strict=True)
    network.requires_grad_(False)


# --- recording -----------------------------------------------------------------------------------------------------


def prompts_of(c: Config, rank: int, seed: int) -> dict[str, np.ndarray]:
    """Two points (and a box) somewhere in the image."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, c["img_size"], (1, 2, rank)).astype(np.float32)
    if rank == 3:
        return {"points": points, "labels": np.array([[1, 0]])}
    return {"points_xy": points, "labels": np.array([[0, 1]]), "box_xyxy": np.array([[3, 5, 30, 41]], np.float32)}


@torch.no_grad()
def compute_sam(c: Config, shapes: Shapes, seed: int, given: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Every array of a SAM or SAM-Med3D fixture, at full resolution."""
    rank = len(shapes["image_encoder.pos_embed"]) - 2
    network = build_sam(c, rank)
    fill(network, shapes, seed)
    image = torch.from_numpy(tensor_input("image", (1, 3 if rank == 2 else 1, *[c["img_size"]] * rank), seed))
    mask = torch.from_numpy(tensor_input("mask", (1, 1, *[4 * (c["img_size"] // c["patch_size"])] * rank), seed))
    points, labels = torch.from_numpy(given["points_xy" if rank == 2 else "points"]), torch.from_numpy(given["labels"])
    embedding = network.image_encoder(image)
    found = {"embedding": embedding}
    scenes: dict[str, tuple[Tensor | None, ...]] = {
        "points": (points, labels, None, None),
        "points_mask": (points, labels, None, mask),
    }
    if rank == 2:
        box = torch.from_numpy(given["box_xyxy"])
        scenes |= {"box": (None, None, box, None), "all": (points, labels, box, mask)}
    for scene, prompts in scenes.items():
        found[f"{scene}.sparse"], found[f"{scene}.dense"] = network.prompt_encoder(*prompts)
        masks, quality = network(embedding, *prompts)
        found |= {f"{scene}.logits_multi": masks[:, 1:], f"{scene}.iou_multi": quality[:, 1:]}
        found |= {f"{scene}.logits_single": masks[:, :1], f"{scene}.iou_single": quality[:, :1]}
    return found


@torch.no_grad()
def compute_student(c: Config, shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Every array of a FastSAM3D fixture."""
    network = build_encoder(c, 3)
    fill(network, shapes, seed)
    image = torch.from_numpy(tensor_input("image", (1, 1, *[c["img_size"]] * 3), seed))
    *stages, embedding = network.stages(image)
    return {f"stage{index}": stage for index, stage in enumerate([*stages[::2], embedding])}


def record(folder: Path, network: str, c: Config, seed: int) -> Path:
    """Write a fixture of network "sam2d", "sam_med3d" or "fastsam3d_encoder"; gives the path of its JSON."""
    given: dict[str, np.ndarray] = {}
    if network == "fastsam3d_encoder":
        shapes = encoder_shapes(c, 3)
        arrays = compute_student(c, shapes, seed)
    else:
        rank = 2 if network == "sam2d" else 3
        shapes, given = sam_shapes(c, rank), prompts_of(c, rank, seed)
        arrays = compute_sam(c, shapes, seed, given)
    content = {"note": "", "seed": seed, "config": c, "state_dict": {name: list(s) for name, s in shapes.items()}}
    path = folder / "recorded.json"
    path.write_text(json.dumps(content))
    stored = {name: as_stored(name, array.numpy()) for name, array in arrays.items()}
    np.savez(path.with_suffix(".npz"), **given, **stored)
    return path


def as_stored(name: str, array: np.ndarray) -> np.ndarray:
    """Large arrays are kept with stride 2: dense codes, and several masks of a volume."""
    strided = name.endswith(".dense") or (name.endswith("logits_multi") and array.ndim == 5)
    return array[(slice(None), slice(None), *[slice(None, None, 2)] * (array.ndim - 2))] if strided else array
