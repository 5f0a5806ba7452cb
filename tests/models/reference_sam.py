"""SAM, SAM-Med3D and FastSAM3D's student as published: padded windows, explicit softmax, one twin a rank.

Weights keep their original names. Slow and plain; written from descriptions of the networks, to check the package
against and to record fixtures.
"""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from volsam.recipes.fixture import tensor_input, weight

Weights = dict[str, Tensor]
Config = dict[str, Any]


# --- names and shapes of the originals -----------------------------------------------------------------------------


def encoder_shapes(c: Config, rank: int) -> dict[str, tuple[int, ...]]:
    grid, width, out = c["img_size"] // c["patch_size"], c["embed_dim"], c["out_chans"]
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, *[grid] * rank, width),
        "patch_embed.proj.weight": (width, 3 if rank == 2 else 1, *[c["patch_size"]] * rank),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(c["depth"]):
        block = f"blocks.{i}."
        if i >= c.get("skip_layer", 0):
            extent = grid if i in c["global_attn_indexes"] or c["window_size"] == 0 else c["window_size"]
            shapes |= norm_shapes(f"{block}norm1", width) | linear_shapes(f"{block}attn.qkv", width, 3 * width)
            shapes |= linear_shapes(f"{block}attn.proj", width, width)
            for axis in "dhw"[3 - rank :]:
                shapes[f"{block}attn.rel_pos_{axis}"] = (2 * extent - 1, width // c["num_heads"])
        shapes |= norm_shapes(f"{block}norm2", width)
        shapes |= linear_shapes(f"{block}mlp.lin1", width, 4 * width) | linear_shapes(
            f"{block}mlp.lin2", 4 * width, width
        )
    shapes |= {"neck.0.weight": (out, width, *[1] * rank), "neck.2.weight": (out, out, *[3] * rank)}
    return shapes | norm_shapes("neck.1", out) | norm_shapes("neck.3", out)


def sam_shapes(c: Config, rank: int) -> dict[str, tuple[int, ...]]:
    width, inner, mask = c["out_chans"], c["out_chans"] // 2, c["mask_in_chans"]
    shapes = {f"image_encoder.{name}": shape for name, shape in encoder_shapes(c, rank).items()}
    p, two = "prompt_encoder.", [2] * rank
    waves = 2 if rank == 2 else 3
    shapes[f"{p}pe_layer.positional_encoding_gaussian_matrix"] = (rank, width // waves)
    labels = [f"point_embeddings.{i}" for i in range(4 if rank == 2 else 2)]
    shapes |= {f"{p}{name}.weight": (1, width) for name in [*labels, "not_a_point_embed", "no_mask_embed"]}
    for i, (a, b, size) in {0: (1, mask // 4, 2), 3: (mask // 4, mask, 2), 6: (mask, width, 1)}.items():
        shapes |= {f"{p}mask_downscaling.{i}.weight": (b, a, *[size] * rank), f"{p}mask_downscaling.{i}.bias": (b,)}
    shapes |= norm_shapes(f"{p}mask_downscaling.1", mask // 4) | norm_shapes(f"{p}mask_downscaling.4", mask)

    d, mlp, hidden = "mask_decoder.", c.get("transformer_mlp_dim", 2048), c["iou_head_hidden_dim"]
    for i in range(c.get("decoder_depth", 2)):
        layer = f"{d}transformer.layers.{i}."
        shapes |= attention_shapes(f"{layer}self_attn", width, width)
        shapes |= attention_shapes(f"{layer}cross_attn_token_to_image", width, inner)
        shapes |= attention_shapes(f"{layer}cross_attn_image_to_token", width, inner)
        shapes |= linear_shapes(f"{layer}mlp.lin1", width, mlp) | linear_shapes(f"{layer}mlp.lin2", mlp, width)
        for n in range(1, 5):
            shapes |= norm_shapes(f"{layer}norm{n}", width)
    shapes |= attention_shapes(f"{d}transformer.final_attn_token_to_image", width, inner)
    shapes |= norm_shapes(f"{d}transformer.norm_final_attn", width)
    shapes |= {f"{d}iou_token.weight": (1, width), f"{d}mask_tokens.weight": (4, width)}
    up = f"{d}output_upscaling."
    shapes |= {f"{up}0.weight": (width, width // 4, *two), f"{up}0.bias": (width // 4,)}
    shapes |= {f"{up}3.weight": (width // 4, width // 8, *two), f"{up}3.bias": (width // 8,)}
    shapes |= norm_shapes(f"{up}1", width // 4)
    for i in range(4):
        shapes |= mlp_shapes(f"{d}output_hypernetworks_mlps.{i}", (width, width, width, width // 8))
    return shapes | mlp_shapes(f"{d}iou_prediction_head", (width, hidden, hidden, 4))


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear_shapes(name: str, a: int, b: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (b, a), f"{name}.bias": (b,)}


def attention_shapes(name: str, width: int, inner: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part in "qkv":
        shapes |= linear_shapes(f"{name}.{part}_proj", width, inner)
    return shapes | linear_shapes(f"{name}.out_proj", inner, width)


def mlp_shapes(name: str, widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (a, b) in enumerate(pairwise(widths)):
        shapes |= linear_shapes(f"{name}.layers.{i}", a, b)
    return shapes


# --- image encoders ------------------------------------------------------------------------------------------------


def sub(w: Weights, prefix: str) -> Weights:
    return {name[len(prefix) :]: value for name, value in w.items() if name.startswith(prefix)}


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def channel_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return norm(w, name, x.movedim(1, -1), 1e-6).movedim(-1, 1)


def relative_rows(table: Tensor, size: int) -> Tensor:
    """(query, key, channels) by indexing."""
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    return table[torch.arange(size)[:, None] - torch.arange(size)[None, :] + size - 1]


def bias_2d(w: Weights, q: Tensor, h: int, wd: int) -> Tensor:
    q = q.reshape(*q.shape[:2], h, wd, -1)
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", q, relative_rows(w["rel_pos_h"], h))
    rel_w = torch.einsum("bnhwc,wkc->bnhwk", q, relative_rows(w["rel_pos_w"], wd))
    return (rel_h[..., :, None] + rel_w[..., None, :]).flatten(4).flatten(2, 3)


def bias_3d(w: Weights, q: Tensor, size: int) -> Tensor:
    """As released: each term is inserted into (query d h w, key d h w) one axis off."""
    q = q.reshape(*q.shape[:2], size, size, size, -1)
    rel_d = torch.einsum("bndhwc,dkc->bndhwk", q, relative_rows(w["rel_pos_d"], size))
    rel_h = torch.einsum("bndhwc,hkc->bndhwk", q, relative_rows(w["rel_pos_h"], size))
    rel_w = torch.einsum("bndhwc,wkc->bndhwk", q, relative_rows(w["rel_pos_w"], size))
    total = rel_d[:, :, :, :, :, None, None] + rel_h[:, :, :, :, None, :, None] + rel_w[:, :, :, :, None, None, :]
    return total.flatten(5).flatten(2, 4)


def self_attention(w: Weights, x: Tensor, heads: int) -> Tensor:
    """x: windows (b *grid c)."""
    grid, width = x.shape[1:-1], x.shape[-1]
    qkv = linear(w, "qkv", x.flatten(1, -2)).unflatten(-1, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
    q, k, v = qkv
    bias = bias_2d(w, q, *grid) if len(grid) == 2 else bias_3d(w, q, grid[0])
    weights = (q @ k.transpose(-1, -2) / math.sqrt(width // heads) + bias).softmax(-1)
    out = (weights @ v).transpose(1, 2).flatten(2)
    return linear(w, "proj", out).unflatten(1, grid)


def windowed_2d(w: Weights, x: Tensor, heads: int, s: int) -> Tensor:
    b, h, wd, c = x.shape
    x = F.pad(x, (0, 0, 0, -wd % s, 0, -h % s))
    hp, wp = x.shape[1:3]
    x = x.view(b, hp // s, s, wp // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s, s, c)
    x = self_attention(w, x, heads)
    x = x.view(b, hp // s, wp // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(b, hp, wp, c)
    return x[:, :h, :wd]


def windowed_3d(w: Weights, x: Tensor, heads: int, s: int) -> Tensor:
    b, d, h, wd, c = x.shape
    x = F.pad(x, (0, 0, 0, -wd % s, 0, -h % s, 0, -d % s))
    dp, hp, wp = x.shape[1:4]
    x = x.view(b, dp // s, s, hp // s, s, wp // s, s, c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, s, s, s, c)
    x = self_attention(w, x, heads)
    x = x.view(b, dp // s, hp // s, wp // s, s, s, s, c).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, dp, hp, wp, c)
    return x[:, :d, :h, :wd]


def mlp_block(w: Weights, x: Tensor) -> Tensor:
    return linear(w, "mlp.lin2", F.gelu(linear(w, "mlp.lin1", x)))


def encode(w: Weights, image: Tensor, c: Config) -> list[Tensor]:
    """Tokens after the patch embedding and after every block, last the embedding; rank by the image."""
    rank, student = image.ndim - 2, "skip_layer" in c
    conv, windowed = (F.conv2d, windowed_2d) if rank == 2 else (F.conv3d, windowed_3d)
    x = conv(image, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=c["patch_size"]).movedim(1, -1)
    stages = [x := x + w["pos_embed"]]
    for i in range(c["depth"]):
        block = sub(w, f"blocks.{i}.")
        if i >= c.get("skip_layer", 0):
            normed, attn = norm(block, "norm1", x, 1e-6), sub(block, "attn.")
            everywhere = c["window_size"] == 0 or i in c["global_attn_indexes"]
            x = x + (
                self_attention(attn, normed, c["num_heads"])
                if everywhere
                else windowed(attn, normed, c["num_heads"], c["window_size"])
            )
        normed = norm(block, "norm2", x, 1e-6)
        x = (normed if student else x) + mlp_block(block, normed)
        stages.append(x)
    x = channel_norm(w, "neck.1", conv(x.movedim(-1, 1), w["neck.0.weight"]))
    return [*stages, channel_norm(w, "neck.3", conv(x, w["neck.2.weight"], padding=1))]


# --- prompt encoders -----------------------------------------------------------------------------------------------


def fourier(w: Weights, unit: Tensor) -> Tensor:
    angles = 2 * math.pi * ((2 * unit - 1) @ w["pe_layer.positional_encoding_gaussian_matrix"])
    parts = [angles.sin(), angles.cos()] + ([angles.sin()] if unit.shape[-1] == 3 else [])
    return torch.cat(parts, dim=-1)


def dense_code(w: Weights, grid: int, rank: int) -> Tensor:
    """(1 c *grid): (x, y) in 2D; in 3D the first two axes are swapped."""
    at = (torch.arange(grid) + 0.5) / grid
    if rank == 2:
        y, x = torch.meshgrid(at, at, indexing="ij")
        return fourier(w, torch.stack([x, y], -1)).movedim(-1, 0)[None]
    i, j, k = torch.meshgrid(at, at, at, indexing="ij")
    return fourier(w, torch.stack([j, i, k], -1)).movedim(-1, 0)[None]


def encode_prompts(
    w: Weights,
    c: Config,
    rank: int,
    points: Tensor | None,
    labels: Tensor | None,
    box: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    grid, width = c["img_size"] // c["patch_size"], c["out_chans"]
    sparse = torch.zeros(1, 0, width)
    if points is not None and labels is not None:
        points = points + 0.5
        if box is None:
            points = torch.cat([points, torch.zeros(1, 1, rank)], 1)
            labels = torch.cat([labels, -torch.ones(1, 1)], 1)
        code = fourier(w, points / c["img_size"])
        code[labels == -1] = 0.0
        code[labels == -1] += w["not_a_point_embed.weight"]
        code[labels == 0] += w["point_embeddings.0.weight"]
        code[labels == 1] += w["point_embeddings.1.weight"]
        sparse = code
    if box is not None:
        corners = fourier(w, (box.reshape(1, 2, 2) + 0.5) / c["img_size"])
        corners[:, 0] += w["point_embeddings.2.weight"][0]
        corners[:, 1] += w["point_embeddings.3.weight"][0]
        sparse = torch.cat([sparse, corners], 1)
    if mask is None:
        return sparse, w["no_mask_embed.weight"].reshape(1, -1, *[1] * rank).expand(1, -1, *[grid] * rank)
    conv = F.conv2d if rank == 2 else F.conv3d
    m = "mask_downscaling."
    x = F.gelu(channel_norm(w, f"{m}1", conv(mask, w[f"{m}0.weight"], w[f"{m}0.bias"], stride=2)))
    x = F.gelu(channel_norm(w, f"{m}4", conv(x, w[f"{m}3.weight"], w[f"{m}3.bias"], stride=2)))
    return sparse, conv(x, w[f"{m}6.weight"], w[f"{m}6.bias"])


# --- mask decoder --------------------------------------------------------------------------------------------------


def attention(w: Weights, name: str, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (
        linear(w, f"{name}.{part}_proj", x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part, x in (("q", q), ("k", k), ("v", v))
    )
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return linear(w, f"{name}.out_proj", (weights @ v).transpose(1, 2).flatten(2))


def relu_mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    for i in range(2):
        x = F.relu(linear(w, f"{name}.layers.{i}", x))
    return linear(w, f"{name}.layers.2", x)


def decode(
    w: Weights, c: Config, embedding: Tensor, position: Tensor, sparse: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """All four masks and their foretold quality."""
    rank, heads = embedding.ndim - 2, c.get("decoder_heads", 8)
    tokens = torch.cat([w["iou_token.weight"], w["mask_tokens.weight"]])[None]
    code = queries = torch.cat([tokens, sparse], 1)
    keys, pe = (embedding + dense).flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2)
    t = sub(w, "transformer.")
    for i in range(c.get("decoder_depth", 2)):
        layer = sub(t, f"layers.{i}.")
        if i == 0:
            queries = attention(layer, "self_attn", queries, queries, queries, heads)
        else:
            q = queries + code
            queries = queries + attention(layer, "self_attn", q, q, queries, heads)
        queries = norm(layer, "norm1", queries, 1e-5)
        read = attention(layer, "cross_attn_token_to_image", queries + code, keys + pe, keys, heads)
        queries = norm(layer, "norm2", queries + read, 1e-5)
        change = linear(layer, "mlp.lin2", F.relu(linear(layer, "mlp.lin1", queries)))
        queries = norm(layer, "norm3", queries + change, 1e-5)
        read = attention(layer, "cross_attn_image_to_token", keys + pe, queries + code, queries, heads)
        keys = norm(layer, "norm4", keys + read, 1e-5)
    read = attention(t, "final_attn_token_to_image", queries + code, keys + pe, keys, heads)
    queries = norm(t, "norm_final_attn", queries + read, 1e-5)

    grow = F.conv_transpose2d if rank == 2 else F.conv_transpose3d
    u = sub(w, "output_upscaling.")
    x = keys.transpose(1, 2).reshape(embedding.shape)
    x = F.gelu(channel_norm(u, "1", grow(x, u["0.weight"], u["0.bias"], stride=2)))
    x = F.gelu(grow(x, u["3.weight"], u["3.bias"], stride=2))
    hyper = torch.stack([relu_mlp(w, f"output_hypernetworks_mlps.{i}", queries[:, 1 + i]) for i in range(4)], 1)
    return (hyper @ x.flatten(2)).unflatten(2, x.shape[2:]), relu_mlp(w, "iou_prediction_head", queries[:, 0])


# --- recording -----------------------------------------------------------------------------------------------------


def prompts_of(c: Config, rank: int, seed: int) -> dict[str, np.ndarray]:
    """Two points (and a box) somewhere in the image."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, c["img_size"], (1, 2, rank)).astype(np.float32)
    if rank == 3:
        return {"points": points, "labels": np.array([[1, 0]])}
    return {"points_xy": points, "labels": np.array([[0, 1]]), "box_xyxy": np.array([[3, 5, 30, 41]], np.float32)}


def compute_sam(c: Config, shapes: dict[str, Any], seed: int, given: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Every array of a SAM or SAM-Med3D fixture, at full resolution."""
    w = {name: torch.from_numpy(np.asarray(weight(name, tuple(shape), seed))) for name, shape in shapes.items()}
    rank = len(shapes["image_encoder.pos_embed"]) - 2
    image = torch.from_numpy(tensor_input("image", (1, 3 if rank == 2 else 1, *[c["img_size"]] * rank), seed))
    grid = c["img_size"] // c["patch_size"]
    mask = torch.from_numpy(tensor_input("mask", (1, 1, *[4 * grid] * rank), seed))
    points, labels = torch.from_numpy(given["points_xy" if rank == 2 else "points"]), torch.from_numpy(given["labels"])
    embedding = encode(sub(w, "image_encoder."), image, c)[-1]
    found = {"embedding": embedding}
    scenes: dict[str, tuple[Tensor | None, ...]] = {
        "points": (points, labels, None, None),
        "points_mask": (points, labels, None, mask),
    }
    if rank == 2:
        box = torch.from_numpy(given["box_xyxy"])
        scenes |= {"box": (None, None, box, None), "all": (points, labels, box, mask)}
    prompt_weights = sub(w, "prompt_encoder.")
    for scene, prompts in scenes.items():
        sparse, dense = encode_prompts(prompt_weights, c, rank, *prompts)
        masks, quality = decode(
            sub(w, "mask_decoder."), c, embedding, dense_code(prompt_weights, grid, rank), sparse, dense
        )
        found |= {f"{scene}.sparse": sparse, f"{scene}.dense": dense}
        found |= {f"{scene}.logits_multi": masks[:, 1:], f"{scene}.iou_multi": quality[:, 1:]}
        found |= {f"{scene}.logits_single": masks[:, :1], f"{scene}.iou_single": quality[:, :1]}
    return found


def compute_student(c: Config, shapes: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Every array of a FastSAM3D fixture."""
    w = {name: torch.from_numpy(np.asarray(weight(name, tuple(shape), seed))) for name, shape in shapes.items()}
    image = torch.from_numpy(tensor_input("image", (1, 1, *[c["img_size"]] * 3), seed))
    *stages, embedding = encode(w, image, c)
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
