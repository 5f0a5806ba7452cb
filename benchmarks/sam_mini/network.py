"""sam-mini before training: its sizes, a start from which a SAM learns quickly, and its weights under SAM's names.

A vision transformer with a token decoder, drawn at random, needs many thousand steps before it follows a click at all.
Three things are therefore not left to chance. A patch is first seen as its cosine transform, low frequencies raised as
images have little of the others. Positions are waves. And a token reads the image with queries and keys made by the
same matrix, so that a click attends to where it is, and the image to what resembles the click.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from volsam.models.encoder import EncoderConfig
from volsam.models.mask_head import HeadConfig
from volsam.models.original_names import our_name
from volsam.models.prompt_encoder import PromptConfig
from volsam.models.segmenter import Segmenter, SegmenterConfig

EDGE, PATCH, WIDTH, OUT = 256, 16, 192, 128


def sizes(depth: int = 8) -> SegmenterConfig:
    """SAM with a fraction of everything: 16 x 16 tokens, every second block attends to all of them."""
    encoder = EncoderConfig(
        image=(1, EDGE, EDGE),
        channels=3,
        patch=(1, PATCH, PATCH),
        width=WIDTH,
        depth=depth,
        heads=WIDTH // 32,
        mlp_width=4 * WIDTH,
        window=(1, 8, 8),
        wide_window=(1, 0, 0),
        wide_blocks=tuple(range(1, depth, 2)),
        bias_axes="hw",
        out=OUT,
        neck_kernel=(1, 3, 3),
    )
    return SegmenterConfig(
        encoder=encoder,
        prompts=PromptConfig(image=encoder.image, grid=encoder.grid, width=OUT, mask_stride=(1, 2, 2)),
        head=HeadConfig(
            width=OUT,
            inner=OUT // 2,
            mlp_width=4 * OUT,
            upscale=(OUT // 4, OUT // 8),
            step=(1, 2, 2),
            quality_width=OUT,
        ),
    )


# --- the start -----------------------------------------------------------------------------------------------------


def fresh(seed: int, depth: int = 8) -> Segmenter:
    """The network as training finds it."""
    torch.manual_seed(seed)
    model = Segmenter(sizes(depth))
    with torch.no_grad():
        encoder, head, prompts = model.encoder, model.mask_head, model.prompt_encoder
        encoder.patches.weight.copy_(_cosines(WIDTH))
        nn.init.zeros_(encoder.patches.bias)
        encoder.position.copy_(0.5 * _waves(encoder.config.grid[1], WIDTH))
        for block in encoder.blocks:
            for layer in (block.attention.qkv, *block.mlp.layers):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5 * 0.7)
                nn.init.zeros_(layer.bias)
            query, key, _ = block.attention.qkv.weight.chunk(3)
            key.lerp_(query, 0.6)  # tokens look at what resembles them
            for layer in (block.attention.project, block.mlp.layers[-1]):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5 * 0.3)
                nn.init.zeros_(layer.bias)
        for embedding in (prompts.labels.weight, prompts.no_mask, head.quality_token, head.mask_tokens):
            embedding.mul_(0.4)
        looks = [head.transformer.last_look]
        for layer in head.transformer.layers:
            looks += [layer.tokens_from_image, layer.image_from_tokens]
        for look in looks:
            nn.init.normal_(look.query.weight, std=1.6 * OUT**-0.5)
            look.key.weight.copy_(look.query.weight)
            nn.init.zeros_(look.query.bias)
            nn.init.zeros_(look.key.bias)
    return model


def _cosines(count: int) -> Tensor:
    """(count 3 1 16 16): the lowest cosines of a patch, three equal colours, louder the higher they are."""
    places = (np.arange(PATCH) + 0.5) * np.pi / PATCH
    waves = np.stack([np.cos(k * places) * (math.sqrt(0.5) if k == 0 else 1) for k in range(PATCH)])
    waves *= math.sqrt(2 / PATCH)  # orthonormal
    order = sorted(((k, m) for k in range(PATCH) for m in range(PATCH)), key=lambda pair: (sum(pair), pair))[:count]
    filters = np.stack([np.outer(waves[k], waves[m]) * (0.06 + 0.12 * math.hypot(k, m)) for k, m in order])
    filters = np.repeat(filters[:, None, None], 3, axis=1) / 3
    # Mixed, so that no head and no norm sees one frequency alone.
    turn = torch.linalg.qr(torch.randn(count, count))[0]
    return torch.einsum("ij,jcdhw->icdhw", turn, torch.from_numpy(filters).float())


def _waves(size: int, width: int) -> Tensor:
    """(1 1 size size width): sines and cosines of row and column, from half a period to size / 2."""
    places = (torch.arange(size) + 0.5) / size
    frequencies = torch.logspace(math.log10(0.5), math.log10(size / 2), width // 4)
    angles = 2 * math.pi * places[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, size, -1), line[None].expand(size, -1, -1)
    return torch.cat([rows, columns], dim=-1)[None, None]


# --- under SAM's names -----------------------------------------------------------------------------------------------


def original(tensors: dict[str, Tensor], depth: int = 8) -> dict[str, Tensor]:
    """The weights under SAM's names and in its shapes."""
    labels = "prompt_encoder.labels.weight"
    found: dict[str, Tensor] = {}
    for name in _names(depth):
        ours = our_name(name, "sam")
        if ours == labels:
            row = int(name.split(".")[2]) + 1 if "point_embeddings" in name else 0
            found[name] = tensors[labels][row : row + 1]
        else:
            found[name] = _at_rank_two(ours, tensors[ours])
    left = set(tensors) - {our_name(name, "sam") for name in found}
    if left:
        raise ValueError(f"weights without a name in SAM: {', '.join(sorted(left))}")
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _at_rank_two(name: str, tensor: Tensor) -> Tensor:
    if name == "prompt_encoder.code.matrix":
        return tensor[1:].flip(0)  # depth has no say, and SAM has (x, y)
    if name == "prompt_encoder.no_mask":
        return tensor[None]
    if name == "encoder.neck.project.weight":
        return tensor[:, :, None, None]
    if tensor.ndim == 5:
        return tensor.squeeze(1 if name == "encoder.position" else 2)
    return tensor


def _names(depth: int) -> Iterator[str]:
    """Every weight of SAM."""
    encoder, prompts, decoder = "image_encoder.", "prompt_encoder.", "mask_decoder."
    yield f"{encoder}pos_embed"
    yield from _pairs(f"{encoder}patch_embed.proj")
    for block in range(depth):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2"):
            yield from _pairs(f"{encoder}blocks.{block}.{part}")
        yield from (f"{encoder}blocks.{block}.attn.rel_pos_{axis}" for axis in "hw")
    yield from (f"{encoder}neck.{index}.weight" for index in (0, 2))
    for index in (1, 3):
        yield from _pairs(f"{encoder}neck.{index}")
    yield f"{prompts}pe_layer.positional_encoding_gaussian_matrix"
    yield from (f"{prompts}point_embeddings.{label}.weight" for label in range(4))
    yield from (f"{prompts}{part}_embed.weight" for part in ("not_a_point", "no_mask"))
    for index in (0, 1, 3, 4, 6):
        yield from _pairs(f"{prompts}mask_downscaling.{index}")
    yield from (f"{decoder}{part}.weight" for part in ("iou_token", "mask_tokens"))
    for layer in range(2):
        at = f"{decoder}transformer.layers.{layer}."
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            yield from _attention(f"{at}{attention}")
        for part in ("norm1", "norm2", "norm3", "norm4", "mlp.lin1", "mlp.lin2"):
            yield from _pairs(f"{at}{part}")
    yield from _attention(f"{decoder}transformer.final_attn_token_to_image")
    yield from _pairs(f"{decoder}transformer.norm_final_attn")
    for index in (0, 1, 3):
        yield from _pairs(f"{decoder}output_upscaling.{index}")
    for layer in range(3):
        yield from _pairs(f"{decoder}iou_prediction_head.layers.{layer}")
        for mask in range(4):
            yield from _pairs(f"{decoder}output_hypernetworks_mlps.{mask}.layers.{layer}")


def _attention(at: str) -> Iterator[str]:
    for part in "qkv":
        yield from _pairs(f"{at}.{part}_proj")
    yield from _pairs(f"{at}.out_proj")


def _pairs(at: str) -> Iterator[str]:
    yield f"{at}.weight"
    yield f"{at}.bias"
