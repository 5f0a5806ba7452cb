"""SAM and its 2D relatives: one network, told from its weights alone.

SAM (Kirillov et al. 2023), MedSAM (Ma et al. 2024: the same network, tuned for boxes) and the shared description from
which SAM-Med3D and the other systems start.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from volsam.errors import BadInput
from volsam.inference.slices import MEDSAM, SAM, SliceModel
from volsam.models.encoder import EncoderConfig
from volsam.models.mask_head import HeadConfig
from volsam.models.original_names import from_original
from volsam.models.prompt_encoder import PromptBatch, PromptConfig
from volsam.models.segmenter import Segmenter, SegmenterConfig
from volsam.models.shapes import Shape
from volsam.recipes.families.family import Described, Family, families
from volsam.recipes.families.fixture import Fixture

# What marks a network that has more than SAM's parts, or others.
FOREIGN = (".Adapter.", ".adapter", "FacT", "slice_embed", "mlahead", "cnn_head", "linear_head")


# --- sizes from shapes ---------------------------------------------------------------------------------------------


def encoder_config(described: Described, rank: int, prefix: str = "image_encoder.") -> EncoderConfig:
    """An encoder's sizes, from the shapes of its weights; facts, where there are any, come first.

    A relative position table of 2n - 1 rows belongs to windows of n tokens; where n is the whole grid the block attends
    to everything. The width of its rows is that of a head.
    """
    flat = rank == 2
    position = described.shape(f"{prefix}pos_embed", rank + 2)
    patches = described.shape(f"{prefix}patch_embed.proj.weight", rank + 2)
    patch = described.size("patch_size", patches[-1])
    image = described.size("img_size", position[1] * patch)
    blocks = described.size("depth", described.count(f"{prefix}blocks."))
    tables = {
        index: shape
        for index in range(blocks)
        if (shape := described.shapes.get(f"{prefix}blocks.{index}.attn.rel_pos_h")) is not None
    }
    extents = {index: (shape[0] + 1) // 2 for index, shape in tables.items()}
    parts = [extent for extent in extents.values() if extent != position[1]]
    window = described.size("window_size", parts[0] if parts else 0)
    wide = tuple(index for index, extent in extents.items() if extent == position[1])
    head = next(iter(tables.values()))[1] if tables else 64
    without = [f"{prefix}blocks.{index}.attn.qkv.weight" not in described.shapes for index in range(blocks)]
    return EncoderConfig(
        image=(1 if flat else image, image, image),
        channels=patches[1],
        patch=(1 if flat else patch, patch, patch),
        width=described.size("embed_dim", patches[0]),
        depth=blocks,
        heads=described.size("num_heads", max(1, patches[0] // head)),
        mlp_width=described.shape(f"{prefix}blocks.0.mlp.lin1.weight", 2)[0],
        window=(1 if flat else window, window, window),
        wide_window=(1 if flat else 0, 0, 0),
        wide_blocks=tuple(described.facts.get("global_attn_indexes", wide)),
        bias_axes="hw" if flat else "dhw",
        bias="aligned" if flat else "published",
        blocks_without_attention=described.size("skip_layer", sum(without)),
        out=described.size("out_chans", described.shape(f"{prefix}neck.0.weight", rank + 2)[0]),
        neck_kernel=(1 if flat else 3, 3, 3),
    )


def prompt_config(described: Described, encoder: EncoderConfig, rank: int) -> PromptConfig:
    """A prompt encoder's sizes. The 3D networks were trained with a code of three waves and two swapped axes."""
    flat = rank == 2
    return PromptConfig(
        image=encoder.image,
        grid=encoder.grid,
        width=encoder.out,
        mask_width=described.size("mask_in_chans", described.rows("prompt_encoder.mask_downscaling.3.bias")),
        mask_stride=(1, 2, 2) if flat else (2, 2, 2),
        boxes=flat,
        waves=("sin", "cos") if flat else ("sin", "cos", "sin"),
        dense_axes=(0, 1, 2) if flat else (1, 0, 2),
    )


def head_config(described: Described, width: int, rank: int, prefix: str = "mask_decoder.") -> HeadConfig:
    """A mask head's sizes; eight attention heads unless the facts say otherwise, shapes do not tell."""
    ups = sorted(
        int(name.split(".")[-2])
        for name, shape in described.shapes.items()
        if name.startswith(f"{prefix}output_upscaling.") and name.endswith("weight") and len(shape) == rank + 2
    )
    return HeadConfig(
        width=width,
        depth=described.size("decoder_depth", described.count(f"{prefix}transformer.layers.")),
        heads=described.size("decoder_heads", 8),
        mlp_width=described.size("transformer_mlp_dim", described.rows(f"{prefix}transformer.layers.0.mlp.lin1.bias")),
        inner=width // 2,
        masks=described.count(f"{prefix}output_hypernetworks_mlps."),
        upscale=tuple(described.shape(f"{prefix}output_upscaling.{index}.weight", rank + 2)[1] for index in ups),
        step=(1, 2, 2) if rank == 2 else (2, 2, 2),
        quality_width=described.size(
            "iou_head_hidden_dim", described.rows(f"{prefix}iou_prediction_head.layers.0.bias")
        ),
        quality_depth=described.count(f"{prefix}iou_prediction_head.layers."),
    )


def segmenter_config(described: Described, rank: int) -> SegmenterConfig:
    """All three parts."""
    encoder = encoder_config(described, rank)
    return SegmenterConfig(
        encoder=encoder,
        prompts=prompt_config(described, encoder, rank),
        head=head_config(described, encoder.out, rank),
    )


def is_plain(described: Described, rank: int) -> bool:
    """Whether weights are those of encoder, prompt encoder and mask decoder of a rank, and of nothing else."""
    parts = {name.partition(".")[0] for name in described.shapes}
    plain = not any(mark in name for name in described.shapes for mark in FOREIGN)
    position = described.shapes.get("image_encoder.pos_embed", ())
    return plain and len(position) == rank + 2 and parts == {"image_encoder", "prompt_encoder", "mask_decoder"}


def slice_model(network: nn.Module, name: str, device: str) -> SliceModel:
    """The network behind a session. MedSAM's weights have SAM's names and shapes, so its name must say what it is."""
    assert isinstance(network, Segmenter)
    return SliceModel(network, name, MEDSAM if "medsam" in name.lower() else SAM, device)


# --- fixtures ------------------------------------------------------------------------------------------------------


def compute(network: nn.Module, fixture: Fixture) -> Mapping[str, Tensor]:
    """Embedding, prompt codes, masks and qualities for every combination of prompts that was recorded.

    A scene is named after its prompts: "points", "box", "points_mask", "all"; arrays without a scene's name belong to
    points.
    """
    assert isinstance(network, Segmenter)
    rank = 2 if network.config.encoder.image[0] == 1 else 3
    features = network.encode(image_of(fixture, network.config.encoder, rank))
    found = {"embedding": features.embedding}
    scenes = {name.partition(".")[0] + "." for name in fixture.arrays if "." in name}
    if "logits_multi" in fixture.arrays:
        scenes.add("")
    for scene in sorted(scenes):
        prompts = prompts_of(fixture, scene[:-1] or "points", network.config.prompts, rank)
        found[f"{scene}sparse"], dense = network.prompt_encoder(prompts)
        found[f"{scene}dense"] = dense.expand_as(features.embedding)
        several = network.decode(features, prompts, "several")
        found[f"{scene}logits_multi"], found[f"{scene}iou_multi"] = several.low_res, several.quality
        one = network.decode(features, prompts, "one")
        found[f"{scene}logits_single"], found[f"{scene}iou_single"] = one.low_res, one.quality
    return {name: at_rank(tensor, rank) for name, tensor in found.items()}


def at_rank(tensor: Tensor, rank: int) -> Tensor:
    """An image as the original has it: without depth where it knows none."""
    return rearrange(tensor, "b c 1 h w -> b c h w") if rank == 2 and tensor.ndim == 5 else tensor


def image_of(fixture: Fixture, config: EncoderConfig, rank: int) -> Tensor:
    """The image that an encoder was given when a fixture was recorded, at our rank."""
    image = fixture.input("image", (1, config.channels, *config.image[3 - rank :]))
    return image.unsqueeze(2) if rank == 2 else image


def prompts_of(fixture: Fixture, scene: str, config: PromptConfig, rank: int) -> PromptBatch:
    """The prompts a scene is named after."""
    said = {"points", "box", "mask"} if scene == "all" else set(scene.split("_"))
    if said - {"points", "box", "mask"}:
        raise BadInput(f'{fixture.where}: "{scene}" names no prompts; known are points, box, mask and all')
    points = boxes = mask = labels = None
    if "points" in said:
        points = _from_xy(fixture.given("points_xy")) if rank == 2 else fixture.given("points")
        labels = fixture.given("labels").long()
    if "box" in said:
        boxes = _from_xy(rearrange(fixture.given("box_xyxy"), "b (corner xy) -> b 1 corner xy", corner=2))
    if "mask" in said:
        size: Shape = tuple(n * step**2 for n, step in zip(config.grid, config.mask_stride, strict=True))  # type: ignore[assignment]
        mask = fixture.input("mask", (1, 1, *size[3 - rank :])).reshape(1, 1, *size)
    return PromptBatch(points, labels, boxes, mask)


def _from_xy(points: Tensor) -> Tensor:
    """Pixels (x, y) of a slice to voxels (depth, height, width)."""
    return torch.cat([torch.zeros_like(points[..., :1]), points.flip(-1)], dim=-1)


families.add(
    "sam",
    Family(
        name="sam",
        title="SAM",
        source="Kirillov et al. 2023, Segment Anything",
        licence="Apache-2.0",
        prompts=("point", "box", "scribble", "mask"),
        recognises=lambda described: is_plain(described, rank=2),
        build=lambda described: Segmenter(segmenter_config(described, rank=2)),
        convert=lambda tensors: from_original(tensors, "sam"),
        compute=compute,
        engine=slice_model,
    ),
)
