"""From the names and ranks of published checkpoints to ours: one table for the whole family.

Weights of 2D networks gain a depth of one; the position matrix of a 2D network, which takes (x, y), becomes one that
takes (depth, height, width) and gives depth no say.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Original: TypeAlias = Literal["sam", "sam_med3d", "fastsam3d_encoder"]
"""Whose names they are. MedSAM has those of `sam`; `fastsam3d_encoder` is the student alone, without a prefix."""

_STAGE_PARTS = ("first", "second", "enlarge")

_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "out": "project"}

_NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"image_encoder\.pos_embed", "encoder.position"),
    (r"image_encoder\.patch_embed\.proj\.", "encoder.patches."),
    (r"image_encoder\.blocks\.(\d+)\.", r"encoder.blocks.\1."),
    # MA-SAM's factors and adapters.
    (r"image_encoder\.FacTu\.", "encoder.factors.down."),
    (r"image_encoder\.FacTv\.", "encoder.factors.up."),
    (r"(encoder\.blocks\.\d+)\.attn\.qkv\.([qv])_FacTs\.", r"\1.attention.qkv.changes.\2.core."),
    (
        r"(encoder\.blocks\.\d+)\.adapter_(?:linear_)?(norm|down|conv|up)(_2|)\.",
        lambda m: f"{m[1]}.before_{'mlp' if m[3] else 'attention'}.{'mix' if m[2] == 'conv' else m[2]}.",
    ),
    (r"(encoder\.blocks\.\d+)\.attn\.qkv\.", r"\1.attention.qkv."),
    (r"(encoder\.blocks\.\d+)\.attn\.proj\.", r"\1.attention.project."),
    (r"(encoder\.blocks\.\d+)\.attn\.rel_pos_([dhw])", r"\1.attention.tables.\2"),
    # SAM-Med2D's adapter.
    (r"(encoder\.blocks\.\d+)\.Adapter\.norm\.", r"\1.beside_mlp.norm."),
    (
        r"(encoder\.blocks\.\d+)\.Adapter\.channel\.([02])\.",
        lambda m: f"{m[1]}.beside_mlp.gate.layers.{int(m[2]) // 2}.",
    ),
    (r"(encoder\.blocks\.\d+)\.Adapter\.spatial\.0\.", r"\1.beside_mlp.shrink."),
    (r"(encoder\.blocks\.\d+)\.Adapter\.spatial\.2\.", r"\1.beside_mlp.grow."),
    (r"image_encoder\.neck\.0\.", "encoder.neck.project."),
    (r"image_encoder\.neck\.1\.", "encoder.neck.norm1."),
    (r"image_encoder\.neck\.2\.", "encoder.neck.mix."),
    (r"image_encoder\.neck\.3\.", "encoder.neck.norm2."),
    # AutoSAM has a matrix of its own at the top.
    (r"(^|\.)pe_layer\.positional_encoding_gaussian_matrix", r"\1code.matrix"),
    (r"prompt_encoder\.mask_downscaling\.", "prompt_encoder.mask."),
    (r"prompt_encoder\.no_mask_embed\.weight", "prompt_encoder.no_mask"),
    (r"mask_decoder\.iou_token\.weight", "mask_head.quality_token"),
    (r"mask_decoder\.mask_tokens\.weight", "mask_head.mask_tokens"),
    (r"mask_decoder\.iou_prediction_head\.", "mask_head.quality."),
    (r"mask_decoder\.output_hypernetworks_mlps\.", "mask_head.weights."),
    (r"mask_decoder\.transformer\.", "mask_head.transformer."),
    (r"(transformer\.layers\.\d+)\.self_attn\.", r"\1.among_tokens."),
    (r"(transformer\.layers\.\d+)\.cross_attn_token_to_image\.", r"\1.tokens_from_image."),
    (r"(transformer\.layers\.\d+)\.cross_attn_image_to_token\.", r"\1.image_from_tokens."),
    (r"transformer\.final_attn_token_to_image\.", "transformer.last_look."),
    (r"transformer\.norm_final_attn\.", "transformer.norm."),
    (r"(transformer\..*)\.(q|k|v|out)_proj\.", lambda m: f"{m[1]}.{_PROJECTIONS[m[2]]}."),
    (r"\.mlp\.lin([12])\.", lambda m: f".mlp.layers.{int(m[1]) - 1}."),
    # AutoSAM's other heads, sequences with activations between.
    (r"^cnn_head\.input_block\.([02])\.", lambda m: f"cnn_head.widen.{int(m[1]) // 2}."),
    (r"^cnn_head\.blocks\.(\d+)\.([024])\.", lambda m: f"cnn_head.stages.{m[1]}.{_STAGE_PARTS[int(m[2]) // 2]}."),
    (r"^cnn_head\.final\.([01])\.", lambda m: f"cnn_head.{('mix', 'classify')[int(m[1])]}."),
    (r"^linear_head\.output_upscaling\.(\d+)\.", lambda m: f"linear_head.upscaling.{_upscaling_part(int(m[1]))}."),
    (r"^linear_head\.final\.([02])\.", lambda m: f"linear_head.classify.layers.{int(m[1]) // 2}."),
    # The upscaling of the original is one sequence: convolution, norm, activation, convolution, ...
    (r"mask_decoder\.output_upscaling\.(\d+)\.", lambda m: f"mask_head.upscaling.{_upscaling_part(int(m[1]))}."),
)


LABELS = "prompt_encoder.labels.weight"
"""The one weight here that is several there, a row for each label."""

_LABEL_ROWS = (
    "prompt_encoder.not_a_point_embed.weight",
    *(f"prompt_encoder.point_embeddings.{label}.weight" for label in range(4)),
)
"""Embeddings of point labels, one table here: not a point, negative, positive, low and high corner of a box."""


def from_original(state_dict: Mapping[str, Tensor], family: Original) -> dict[str, Tensor]:
    """The weights of a published network under our names and at our rank; names we do not know are kept as they are.

    Nothing is checked here: `load_state_dict(..., strict=True)` names what is missing or left over.
    """
    weights = {our_name(name, family): tensor for name, tensor in state_dict.items()}
    rows = [state_dict[name] for name in _LABEL_ROWS if name in state_dict]
    if rows:
        weights[LABELS] = torch.cat(rows)
    return {name: _at_our_rank(name, tensor) for name, tensor in weights.items()}


def our_name(name: str, family: Original) -> str:
    """What a weight of a published network is called here."""
    name = _prefix(family) + name
    if name in _LABEL_ROWS:
        return LABELS
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _prefix(family: Original) -> str:
    return "image_encoder." if family == "fastsam3d_encoder" else ""


def _upscaling_part(index: int) -> str:
    return f"{('steps', 'norms', 'activations')[index % 3]}.{index // 3}"


def _at_our_rank(name: str, tensor: Tensor) -> Tensor:
    """A depth of one for 2D weights, and rows (depth, height, width) for a position matrix of (x, y)."""
    if name.endswith("code.matrix") and len(tensor) == 2:
        return torch.cat([torch.zeros_like(tensor[:1]), tensor.flip(0)])
    if name == "prompt_encoder.no_mask":
        return tensor.squeeze(0)
    if name == "encoder.neck.project.weight":
        return tensor.flatten(start_dim=1)  # a convolution of one voxel is a linear layer
    if tensor.ndim == 4:
        return tensor.unsqueeze(1 if name == "encoder.position" else 2)
    return tensor
