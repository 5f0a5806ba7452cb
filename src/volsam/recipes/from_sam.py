"""SAM's weights to networks that are about to learn: what SAM has is taken over, everything else begins anew.

Every function takes the tensors of a 2D SAM of any size, under SAM's own names, and gives a network in which exactly
those weights learn that its method trains. `classes` counts the background. What is new is drawn from torch's random
numbers: the seed is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from volsam.adapters.lowrank import add_fact
from volsam.adapters.slices import add_slice_mixers
from volsam.errors import BadInput
from volsam.models.dense_heads import ConvHeadConfig, LinearHeadConfig
from volsam.models.segmenter import SegmenterConfig
from volsam.recipes import auto_sam, ma_sam
from volsam.recipes.auto_sam import AutoSam, Head
from volsam.recipes.checkpoint import sizes_fit
from volsam.recipes.family import Described
from volsam.recipes.ma_sam import StackSegmenter, encoder_at
from volsam.recipes.sam import FOREIGN, encoder_config, head_config, prompt_config

WHERE = "the SAM checkpoint"


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
        take_over(network, auto_sam.convert(weights), r"encoder|mask_head\.(transformer|upscaling|weights)")
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
        add_fact(network.encoder, rank)
        add_slice_mixers(network.encoder, channels)
        of_encoder = r"encoder\.(?!factors|.*(changes|before_attention|before_mlp))"
        of_head = r"mask_head\.(transformer|quality_token|upscaling\.(steps\.[01]|norms\.0))"
        take_over(network, ma_sam.convert(weights), rf"{of_encoder}|prompt_encoder|{of_head}")
    ma_sam.train_tuned(network)
    return network


# --- taking over -----------------------------------------------------------------------------------------------------


def shapes_of(tensors: Mapping[str, Tensor]) -> Described:
    """What is known of weights before a network is built."""
    return Described(WHERE, {name: tuple(tensor.shape) for name, tensor in tensors.items()})


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
    wanted = [name for name in network.state_dict() if re.match(pattern, name)]
    missing = [name for name in wanted if name not in weights]
    if missing:
        raise BadInput(f"{WHERE} lacks {len(missing)} weights (first: {missing[0]}): take a complete file")
    network.load_state_dict({name: weights[name] for name in wanted}, strict=False)


def halved(first: int, count: int) -> tuple[int, ...]:
    """So many numbers of channels, each half of the one before."""
    return tuple(max(1, first >> step) for step in range(count))
