"""Fixtures of MA-SAM, AutoSAM and SAM-Med2D of any size, recorded from `volsam.evaluation.published`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volsam.evaluation.published.auto_sam import AutoSam, CnnHead, LinearHead
from volsam.evaluation.published.encoder import AdaptedBlock
from volsam.evaluation.published.ma_sam import MaSam
from volsam.evaluation.published.sam import Sam
from volsam.recipes.families.fixture import tensor_input, weight

Config = dict[str, Any]
Parts = dict[str, nn.Module]

SMALL: Config = {
    "img_size": 96, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3, "window_size": 4,
    "global_attn_indexes": [1], "out_chans": 32, "transformer_mlp_dim": 40, "iou_head_hidden_dim": 20,
}  # fmt: skip
"""Two blocks on a grid of 6 × 6; the window does not fit the grid, so there is padding."""


def encoder_sizes(c: Config) -> Config:
    return {
        "width": c["embed_dim"],
        "depth": c["depth"],
        "heads": c["num_heads"],
        "window": c["window_size"],
        "wide": c["global_attn_indexes"],
    }


def head_sizes(c: Config) -> Config:
    return {"hidden": c["transformer_mlp_dim"], "quality_width": c["iou_head_hidden_dim"]}


def by_rule(parts: Parts, seed: int) -> dict[str, list[int]]:
    """Fill networks with the values that their names, shapes and the seed give; returns the shapes. A part named "" has
    names without a prefix.
    """
    shapes: dict[str, list[int]] = {}
    for part, network in parts.items():
        prefix = f"{part}." if part else ""
        own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        network.load_state_dict(
            {name: torch.from_numpy(weight(prefix + name, shape, seed)) for name, shape in own.items()}
        )
        network.eval().requires_grad_(False)
        shapes |= {prefix + name: list(shape) for name, shape in own.items()}
    return shapes


def image(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(tensor_input("image", shape, seed))


def record_ma_sam(folder: Path, c: Config, seed: int, stacks: int = 1) -> Path:
    """c besides the sizes of SMALL: num_classes_plus_background, slices, rank, scale, adapter_channels."""
    network = MaSam(
        image=c["img_size"], classes=c["num_classes_plus_background"], slices=c["slices"], rank=c["rank"],
        scale=c["scale"], channels=c["adapter_channels"], out=c["out_chans"], decoder=head_sizes(c), **encoder_sizes(c),
    )  # fmt: skip
    shapes = by_rule({"": network}, seed)
    logits, quality = network(image((stacks, c["slices"], 3, c["img_size"], c["img_size"]), seed))
    return written(folder, c, seed, shapes, {"low_res_logits": logits, "masks": logits, "iou": quality})


def record_auto_sam(folder: Path, c: Config, seed: int, heads: set[str]) -> Path:
    """c besides the sizes of SMALL: num_classes, cnn_num_depth, cnn_top_channel. heads: of "vit", "cnn", "linear"."""
    width, classes, edge = c["out_chans"], c["num_classes"], c["img_size"]
    network = AutoSam(image=edge, classes=classes, out=width, decoder=head_sizes(c), **encoder_sizes(c))
    cnn = CnnHead(width=width, top=c["cnn_top_channel"], depth=c["cnn_num_depth"], classes=classes)
    linear = LinearHead(width=width, classes=classes)
    shapes = by_rule({"": network, "cnn_head": cnn, "linear_head": linear}, seed)
    embedding = network.image_encoder(image((1, 3, edge, edge), seed))
    logits, quality = network.decode(embedding)
    arrays = {"embedding": embedding}
    if "vit" in heads:
        arrays |= {"vit_logits": logits, "vit_iou": quality}
    if "cnn" in heads:
        arrays["cnn_logits"] = cnn(embedding)
    if "linear" in heads:
        arrays["linear_logits"] = linear(embedding)
    parts = {"vit": ("mask_decoder.", "pe_layer."), "cnn": ("cnn_head.",), "linear": ("linear_head.",)}
    absent = tuple(prefix for head, prefixes in parts.items() if head not in heads for prefix in prefixes)
    return written(folder, c, seed, {n: s for n, s in shapes.items() if not n.startswith(absent)}, arrays)


def record_sam_med2d(folder: Path, c: Config, seed: int) -> Path:
    network = Sam(
        2, c["img_size"], width=c["out_chans"], encoder=encoder_sizes(c) | {"block": AdaptedBlock},
        decoder=head_sizes(c),
    )  # fmt: skip
    shapes = by_rule({"": network}, seed)
    points = np.random.default_rng(seed).integers(0, c["img_size"], (1, 3, 2)).astype(np.float32)
    labels = np.array([[1, 0, 1]])
    embedding = network.image_encoder(image((1, 3, c["img_size"], c["img_size"]), seed))
    masks, quality = network(embedding, torch.from_numpy(points), torch.from_numpy(labels))
    arrays = {"embedding": embedding, "logits_multi": masks[:, 1:], "iou_multi": quality[:, 1:]}
    return written(folder, c, seed, shapes, arrays, points_xy=points, labels=labels)


def written(
    folder: Path, c: Config, seed: int, shapes: dict[str, list[int]], arrays: dict[str, Tensor], **given: np.ndarray
) -> Path:
    path = folder / "recorded.json"
    path.write_text(json.dumps({"note": "", "seed": seed, "config": c, "state_dict": shapes}))
    np.savez(path.with_suffix(".npz"), **given, **{name: array.numpy() for name, array in arrays.items()})
    return path
