"""SAM's weights to networks that are about to learn: what SAM has is taken over, everything else begins anew.

Every function takes the tensors of a 2D SAM of any size, under SAM's own names, and gives a network in which exactly
those weights learn that its method trains. `classes` counts the background. What is new is drawn from torch's random
numbers: the seed is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from volsam.adapters.lowrank import add_fact
from volsam.adapters.methods import Method, require_method
from volsam.adapters.slices import add_slice_mixers
from volsam.errors import BadInput
from volsam.models.dense_heads import ConvHeadConfig, LinearHeadConfig
from volsam.models.encoder import EncoderConfig
from volsam.models.original_names import from_original
from volsam.models.segmenter import SegmenterConfig
from volsam.models.shapes import Shape
from volsam.recipes.checkpoint import sizes_fit
from volsam.recipes.families import auto_sam, ma_sam, sam_adapter_3d, sam_adapter_3d_automatic
from volsam.recipes.families.auto_sam import AutoSam, Head
from volsam.recipes.families.family import Described
from volsam.recipes.families.ma_sam import StackSegmenter, encoder_at, resized_position
from volsam.recipes.families.sam import FOREIGN, encoder_config, head_config, prompt_config
from volsam.recipes.families.sam_adapter_3d import SamAdapter3D
from volsam.recipes.families.sam_adapter_3d_automatic import AutomaticSamAdapter3D, VolumeConfig, prompted

WHERE = "the SAM checkpoint"

LEVELS = 4
"""Levels of features that the head of a volume reads, one after each quarter of the blocks."""


_OF_ATTENTION = r"attention\.(project|tables|qkv\.(linear\.)?(weight|bias))"
OF_SAM = rf"encoder\.(patches\.plane|position|blocks\.\d+\.(norm|mlp|{_OF_ATTENTION}))"
"""Names of the weights that a network for volumes has from SAM."""


# --- slices ----------------------------------------------------------------------------------------------------------


def auto_sam_from_sam(
    tensors: Mapping[str, Tensor], *, classes: int, head: Head = "vit", image: int | None = None
) -> AutoSam:
    """AutoSAM with one of its heads; the head learns, the encoder is frozen.

    The ViT head begins with SAM's two-way transformer, upscaling and first two mask networks, and with tokens of its
    own for every class; the others begin anew. Their widths follow from SAM's embedding as published.

    image: pixels along the sides of a slice, those of SAM if nothing is said; for others its position code is resized.
    """
    described = require_sam(tensors, *(["mask_decoder"] if head == "vit" else []))
    require_classes(classes)
    with sizes_fit(WHERE, "AutoSAM"):
        weights = dict(tensors) if image is None else {**tensors, **encoder_at(tensors, image)}
        config = encoder_config(shapes_of(weights), rank=2)
        width = config.out
        network = AutoSam(
            config,
            vit=head_config(described, width, rank=2).model_copy(update={"masks": 2, "classes": classes})
            if head == "vit"
            else None,
            cnn=ConvHeadConfig(width=width, widths=halved(4 * width, 5), classes=classes) if head == "cnn" else None,
            linear=LinearHeadConfig(width=width, upscale=halved(width // 4, 2), classes=classes)
            if head == "linear"
            else None,
        )
        take_over(network, from_original(weights, "sam"), r"encoder|mask_head\.(transformer|upscaling|weights)")
    auto_sam.train_heads(network)
    return network


def ma_sam_from_sam(
    tensors: Mapping[str, Tensor],
    *,
    classes: int,
    image: int = ma_sam.IMAGE,
    rank: int = 32,
    channels: int = 384,
) -> StackSegmenter:
    """MA-SAM: stacks of slices, of any length, to all classes; factors, adapters, prompt encoder and mask head learn.

    From SAM come the encoder, its position code and wide tables resized, the prompt encoder, and of the mask head the
    two-way transformer, the token of quality and the first two doublings. Two more doublings, tokens and networks for
    every class, factors and adapters are new.

    image: pixels along the sides of a slice; rank: of the factors; channels: of an adapter.
    """
    require_sam(tensors, "prompt_encoder", "mask_decoder")
    require_classes(classes)
    with sizes_fit(WHERE, "MA-SAM"):
        weights = {**tensors, **encoder_at(tensors, image)}
        described = shapes_of(weights)
        encoder = encoder_config(described, rank=2)
        head = head_config(described, encoder.out, rank=2)
        upscale = (*head.upscale, *halved(head.upscale[-1] // 2, 2))
        network = StackSegmenter(
            SegmenterConfig(
                encoder=encoder,
                prompts=prompt_config(described, encoder, rank=2),
                head=head.model_copy(update={"masks": classes, "upscale": upscale}),
            )
        )
        head_of_sam = r"mask_head\.(transformer|quality_token|upscaling\.(steps\.[01]|norms\.0))"
        take_over(network, from_original(weights, "sam"), rf"encoder|prompt_encoder|{head_of_sam}")
    add_fact(network.encoder, rank)
    add_slice_mixers(network.encoder, channels)
    ma_sam.train_tuned(network)
    return network


# --- volumes ---------------------------------------------------------------------------------------------------------


def peft_from_sam(
    tensors: Mapping[str, Tensor],
    method: Method = "3dsam-adapter",
    *,
    classes: int,
    crop: Shape = (256, 256, 256),
    enlarged: int = 2,
    window: int = 8,
    out: int | None = None,
) -> AutomaticSamAdapter3D:
    """The automatic network of 3DSAM-adapter, or the same with another method's adapters in SAM's blocks.

    Adapters and all norms of the blocks learn, and with every method the same new parts: merging of slices, code of
    depth, tables of depth, necks and head. `full` has no adapters, and everything learns.

    crop: voxels along depth, height and width; enlarged: how many times, before patches are made; window: tokens along
    an edge of the windows of attention, moved on by half of it in every second block; out: channels of a level of
    features, as many as SAM's neck has if nothing is said; the head has half as many.
    """
    config = volume_config(tensors, method, classes, crop, enlarged, window, out)
    network = AutomaticSamAdapter3D(config)
    fill_volume(network, tensors)
    sam_adapter_3d_automatic.train_tuned(network)
    return network


def sam_adapter_3d_from_sam(
    tensors: Mapping[str, Tensor],
    *,
    crop: Shape = (128, 128, 128),
    enlarged: int = 4,
    window: int = 8,
    out: int | None = None,
) -> SamAdapter3D:
    """3DSAM-adapter, which takes clicks: object and background. Sizes as in `peft_from_sam`."""
    network = prompted(volume_config(tensors, "3dsam-adapter", 2, crop, enlarged, window, out))
    fill_volume(network, tensors)
    sam_adapter_3d.train_tuned(network)
    return network


def volume_config(
    tensors: Mapping[str, Tensor],
    method: Method,
    classes: int,
    crop: Shape,
    enlarged: int,
    window: int,
    out: int | None = None,
) -> VolumeConfig:
    """The sizes of a network for volumes whose blocks are those of a SAM."""
    described = require_sam(tensors)
    require_method(method)
    require_classes(classes)
    with sizes_fit(WHERE, "3DSAM-adapter"):
        sam = encoder_config(described, rank=2)
        tables = [f"image_encoder.blocks.{index}.attn.rel_pos_h" for index in range(sam.depth)]
        return VolumeConfig(
            encoder=in_volumes(sam, crop, enlarged, window, out or sam.out),
            enlarged=enlarged,
            rows=tuple(described.shape(name, 2)[0] for name in tables),
            method=method,
            classes=classes,
        )


def in_volumes(sam: EncoderConfig, crop: Shape, enlarged: int, window: int, out: int) -> EncoderConfig:
    """The sizes of SAM's encoder as one of volumes."""
    edge = sam.patch[2]
    if enlarged < 1 or edge % enlarged or any(size < 1 or size * enlarged % edge for size in crop):
        raise BadInput(
            f"a crop of {crop} voxels, enlarged {enlarged} times, is not whole patches of {edge}: let the enlargement "
            f"divide {edge}, and what {edge} then holds divide the crop"
        )
    if window < 1:
        raise BadInput(f"a window must hold a token or more along each axis, got {window}")
    patch, levels = edge // enlarged, min(LEVELS, sam.depth)
    d, h, w = (min(window, size // patch) for size in crop)
    return EncoderConfig(
        image=crop,
        patch=(patch, patch, patch),
        width=sam.width,
        depth=sam.depth,
        heads=sam.heads,
        mlp_width=sam.mlp_width,
        window=(d, h, w),
        shift=(d // 2, h // 2, w // 2),
        shifted_blocks=tuple(range(0, sam.depth, 2)),
        out=out,
        taps=tuple(sam.depth // levels * level for level in range(1, levels)),
    )


def fill_volume(network: AutomaticSamAdapter3D | SamAdapter3D, tensors: Mapping[str, Tensor]) -> None:
    """Give a network for volumes what SAM has: patch embedding, blocks, and the position in the plane.

    The position is averaged where its grid is a multiple of ours and resized otherwise. The position table along depth
    is the mean of those along height and width.
    """
    config = network.encoder.config
    with sizes_fit(WHERE, "3DSAM-adapter"):
        weights = from_original(tensors, "sam")
        for name in [name for name in weights if name.endswith(".attention.tables.h")]:
            tables = name.removesuffix("h")
            weights[f"{tables}d"] = (weights[f"{tables}h"] + weights[f"{tables}w"]) / 2
        weights["encoder.position"] = fitted_position(tensors["image_encoder.pos_embed"], config.grid[1:])
        weights = {name.replace("encoder.patches.", "encoder.patches.plane."): weights[name] for name in weights}
        take_over(network, weights, OF_SAM)


def fitted_position(position: Float[Tensor, "1 H W c"], grid: tuple[int, int]) -> Float[Tensor, "1 1 h w c"]:
    """SAM's position on another grid: averaged where it can be, else linearly interpolated."""
    times = tuple(size // wanted for size, wanted in zip(position.shape[1:3], grid, strict=True))
    if all(size % wanted == 0 for size, wanted in zip(position.shape[1:3], grid, strict=True)):
        return reduce(position, "1 (h p) (w q) c -> 1 1 h w c", "mean", p=times[0], q=times[1])
    return rearrange(resized_position(position, grid), "1 h w c -> 1 1 h w c")


# --- taking over -----------------------------------------------------------------------------------------------------


def shapes_of(tensors: Mapping[str, Tensor]) -> Described:
    """What is known of weights before a network is built."""
    return Described.of(WHERE, tensors)


def require_sam(tensors: Mapping[str, Tensor], *parts: str) -> Described:
    """Refuse tensors that are not a 2D SAM's, or lack one of the parts besides the encoder; gives their shapes."""
    described = shapes_of(tensors)
    if len(described.shapes.get("image_encoder.pos_embed", ())) != 4:
        raise BadInput(
            f"{WHERE} has no image encoder for slices: give the weights of a 2D SAM, such as sam_vit_b_01ec64.pth"
        )
    foreign = next((name for name in tensors if any(mark in name for mark in FOREIGN)), None)
    if foreign is not None:
        raise BadInput(f"{WHERE} is a network adapted already ({foreign}): give the plain SAM that it began with")
    for part in parts:
        if not any(name.startswith(f"{part}.") for name in tensors):
            raise BadInput(f"{WHERE} has no {part}, from which this network begins: give a whole SAM")
    return described


def require_classes(classes: int) -> None:
    """Refuse less than the background and one class more."""
    if classes < 2:
        raise BadInput(f"a network needs 2 classes or more, background included, got {classes}")


def take_over(network: nn.Module, weights: Mapping[str, Tensor], pattern: str) -> None:
    """Fill those weights of a network whose names begin as `pattern`, all of which must be among the given ones."""
    # A projection that an adapter has changed stands one level deeper.
    wanted = {n: n.replace(".qkv.linear.", ".qkv.") for n in network.state_dict() if re.match(pattern, n)}
    missing = [name for name in wanted.values() if name not in weights]
    if missing:
        raise BadInput(f"{WHERE} lacks {len(missing)} weights (first: {missing[0]}): take a complete file")
    network.load_state_dict({name: weights[given] for name, given in wanted.items()}, strict=False)


def halved(first: int, count: int) -> tuple[int, ...]:
    """So many numbers of channels, each half of the one before."""
    return tuple(max(1, first >> step) for step in range(count))
