"""MA-SAM (Chen et al. 2024): SAM on stacks of five slices, all classes at once, no prompts.

SAM's encoder stays frozen; FacT changes query and value, two adapters a block let neighbouring slices mix, and a mask
head with a token for each class and four doublings answers at full size.

Two kinds of files hold it. A whole network (`ma-sam`) has SAM's weights in it. A released file (`ma-sam-tuned`) has the
tuned tensors alone: `merge` completes them with the SAM checkpoint that they were tuned on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.adapters.freeze import train_only
from volsam.adapters.lowrank import add_fact, fold
from volsam.adapters.slices import add_slice_mixers
from volsam.errors import BadInput
from volsam.inference.automatic import StackModel, StackStyle, below_percentile, numbered, window
from volsam.models.encoder import Encoder
from volsam.models.mask_head import MaskHead
from volsam.models.original_names import from_original
from volsam.models.prompt_encoder import PromptBatch, PromptEncoder
from volsam.models.segmenter import SegmenterConfig
from volsam.recipes.families.family import Described, Family, families
from volsam.recipes.families.fixture import Fixture
from volsam.recipes.families.sam import encoder_config, head_config, prompt_config

SLICES = 5
"""Slices of a stack, as published. The network itself takes stacks of any length."""

BTCV = StackStyle(SLICES, window(-200, 250))
"""Abdominal CT in Hounsfield units. The release also takes off a mean and divides by a spread, which the scaling of
every stack to 0..1 undoes."""

PROSTATE = StackStyle(SLICES, below_percentile(99))
"""Prostate MR."""

BTCV_LABELS = (
    "background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic vein", "pancreas", "adrenal glands",
)  # fmt: skip
"""The classes of BTCV, both adrenal glands in one."""

IMAGE = 512
"""Pixels along the edge of a slice, as published; a file of tuned tensors does not tell."""

Weight = TypeVar("Weight")

_CORE = re.compile(r"^([qv])_FacTs_(\d+)$")


class StackSegmenter(nn.Module):
    """Stacks of slices to a logit for every class and pixel."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.prompt_encoder = PromptEncoder(config.prompts)
        self.mask_head = MaskHead(config.head)

    def forward(
        self, stacks: Float[Tensor, "b 3 d h w"], boxes: Float[Tensor, "b 2 2"] | None = None
    ) -> Float[Tensor, "b classes d h w"]:
        """Logits at the size of the slices; class 0 is background. See `answer`."""
        return self.answer(stacks, boxes)[0]

    def answer(
        self, stacks: Float[Tensor, "b 3 d h w"], boxes: Float[Tensor, "b 2 2"] | None = None
    ) -> tuple[Float[Tensor, "b classes d h w"], Float[Tensor, "b classes d"]]:
        """Logits, and their predicted quality in every slice.

        boxes: a rectangle for all slices of a stack, first and last (row, column), in pixels.
        """
        prompts = PromptBatch()
        if boxes is not None:
            prompts = PromptBatch(boxes=repeat(F.pad(boxes, (1, 0)), "b two c -> (b d) 1 two c", d=stacks.shape[2]))
        logits, quality = self.decode(self.encode(stacks), prompts)
        sized = rearrange(logits, "(b d) k 1 h w -> b k d h w", b=len(stacks))
        return sized, rearrange(quality, "(b d) k -> b k d", b=len(stacks))

    def encode(self, stacks: Float[Tensor, "b 3 d h w"]) -> Float[Tensor, "bd c 1 y x"]:
        """The embedding of every slice, in the light of its neighbours in the stack."""
        embedding, _ = self.encoder(stacks)
        return rearrange(embedding, "b c d y x -> (b d) c 1 y x")

    def decode(
        self, embedding: Float[Tensor, "n c 1 y x"], prompts: PromptBatch | None = None
    ) -> tuple[Float[Tensor, "n k 1 h w"], Float[Tensor, "n k"]]:
        """Logits of every class and their predicted quality, slice by slice."""
        tokens, dense = self.prompt_encoder(prompts or PromptBatch())
        return self.mask_head(embedding, self.prompt_encoder.code.of_grid, tokens, dense, "all")


def train_tuned(network: StackSegmenter) -> None:
    """Make trainable what MA-SAM tunes: factors, adapters, prompt encoder and mask head; all else is SAM's."""
    train_only(network, r"encoder\.factors|.*\.changes|.*\.before_(attention|mlp)|prompt_encoder|mask_head")


def automatic(
    network: nn.Module,
    name: str,
    device: str = "cpu",
    style: StackStyle = BTCV,
    labels: Sequence[str] | None = None,
) -> StackModel:
    """The network behind `volsam predict`; it is changed for that, its factors are folded into SAM's weights.

    labels: of every class, background first; those of BTCV, or numbers, where nothing is said.
    """
    assert isinstance(network, StackSegmenter)
    fold(network.encoder)
    classes = network.config.head.masks
    named = BTCV_LABELS if classes == len(BTCV_LABELS) else numbered(classes)
    network.to(device).eval()
    return StackModel(network, name, labels or named, style, network.config.encoder.image[2], device)


# --- one network from names and shapes -----------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """A name without MA-SAM's wrappers around SAM's parts; a core of a tuned file gets the name of its block."""
    name = name.removeprefix("sam.")
    name = re.sub(r"\.(ImageEncoderViT|Block|Attention)(?=\.)", "", name).replace(".qkv.qkv.", ".qkv.")
    return _CORE.sub(lambda m: f"image_encoder.blocks.{int(m[2])}.attn.qkv.{m[1]}_FacTs.weight", name)


def plain(described: Described) -> Described:
    """The same weights under names without wrappers. The shared factors are stored twice; once will do."""
    return replace(described, shapes=_without_wrappers(described.shapes))


def _without_wrappers(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    return {plain_name(name): weight for name, weight in weights.items() if not name.startswith("FacT")}


def build(described: Described) -> nn.Module:
    """SAM on stacks with FacT, adapters, and a head for all classes."""
    found = plain(described)
    encoder = encoder_config(found, rank=2)
    network = StackSegmenter(
        SegmenterConfig(
            encoder=encoder,
            prompts=prompt_config(found, encoder, rank=2),
            head=head_config(found, encoder.out, rank=2),
        )
    )
    rank, _ = found.shape("image_encoder.FacTu.weight", 2)
    channels, _ = found.shape("image_encoder.blocks.0.adapter_linear_down.weight", 2)
    add_fact(network.encoder, rank, float(described.facts.get("scale", 1.0)))
    add_slice_mixers(network.encoder, channels)
    return network


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names."""
    ours = from_original(_without_wrappers(tensors), "sam")
    return {re.sub(r"(attention\.qkv)\.(weight|bias)$", r"\1.linear.\2", name): ours[name] for name in ours}


def compute(network: nn.Module, fixture: Fixture) -> Mapping[str, Tensor]:
    """Masks and qualities of all slices of all stacks, one after the other."""
    assert isinstance(network, StackSegmenter)
    image = network.config.encoder.image[1]
    slices = fixture.size("slices", SLICES)
    stacks = len(fixture.arrays["low_res_logits"]) // slices
    given = fixture.input("image", (stacks, slices, network.config.encoder.channels, image, image))
    logits, quality = network.decode(network.encode(rearrange(given, "b d c h w -> b c d h w")))
    logits = rearrange(logits, "n k 1 h w -> n k h w")
    masks = F.interpolate(logits, size=(image, image), mode="bilinear", align_corners=False)
    return {"low_res_logits": logits, "masks": masks, "iou": quality}


# --- released files: tuned tensors alone ---------------------------------------------------------------------------


def needs_sam(described: Described) -> bool:
    """Whether weights are MA-SAM's tuned tensors alone, which say nothing without SAM's."""
    return "q_FacTs_000" in described.shapes and "image_encoder.pos_embed" not in plain(described).shapes


def merge(tuned: Mapping[str, Tensor], sam: Mapping[str, Tensor], image: int = IMAGE) -> dict[str, Tensor]:
    """A whole network from a released file and the SAM checkpoint it was tuned on, under the originals' names.

    The encoder is SAM's for slices of `image` pixels; prompt encoder and mask head come from the tuned file.
    """
    described = _of(sam)
    encoder = encoder_config(described, rank=2)
    _require_same_size(tuned, described, encoder.depth, encoder.width)
    merged = encoder_at(sam, image)
    return merged | {plain_name(name): tensor for name, tensor in tuned.items()}


def encoder_at(sam: Mapping[str, Tensor], image: int) -> dict[str, Tensor]:
    """The encoder of a SAM checkpoint for slices of `image` pixels, under its own names.

    Position code and relative tables of the blocks that see everything are resized from SAM's grid to that of the
    slices, linearly, as MA-SAM does before training. All else stays.
    """
    encoder = encoder_config(_of(sam), rank=2)
    patch = encoder.patch[2]
    if image < patch or image % patch:
        raise BadInput(f"slices of {image} pixels are not whole patches of {patch}: choose a multiple of {patch}")
    grid = image // patch
    resized = {name: tensor for name, tensor in sam.items() if name.startswith("image_encoder.")}
    resized["image_encoder.pos_embed"] = resized_position(resized["image_encoder.pos_embed"], (grid, grid))
    for block in encoder.wide_blocks:
        for axis in "hw":
            name = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            resized[name] = _resized_table(resized[name], 2 * grid - 1)
    return resized


def _of(sam: Mapping[str, Tensor]) -> Described:
    return Described.of("the SAM checkpoint", sam)


def _require_same_size(tuned: Mapping[str, Tensor], sam: Described, depth: int, width: int) -> None:
    missing = [name for name in ("image_encoder.FacTu.weight", "mask_decoder.mask_tokens.weight") if name not in tuned]
    if missing:
        raise BadInput(f"these are not MA-SAM's tuned tensors ({missing[0]} is missing): give a file that it has saved")
    blocks, channels = sum(name.startswith("q_FacTs_") for name in tuned), tuned["image_encoder.FacTu.weight"].shape[1]
    if (blocks, channels) != (depth, width):
        raise BadInput(
            f"the tuned tensors are for a SAM of {blocks} blocks and {channels} channels, {sam.where} has {depth} and "
            f"{width}: give the size that they were tuned on (vit_h in the paper)"
        )


def resized_position(position: Float[Tensor, "1 h w c"], grid: tuple[int, int]) -> Float[Tensor, "1 y x c"]:
    """A learned position for another grid (height, width), linearly interpolated."""
    if position.shape[1:3] == grid:
        return position
    image = rearrange(position, "1 h w c -> 1 c h w")
    resized = F.interpolate(image, size=grid, mode="bilinear", align_corners=False)
    return rearrange(resized, "1 c h w -> 1 h w c")


def _resized_table(table: Float[Tensor, "n c"], rows: int) -> Float[Tensor, "m c"]:
    if len(table) == rows:
        return table
    resized = F.interpolate(rearrange(table, "n c -> 1 c n"), size=rows, mode="linear", align_corners=False)
    return rearrange(resized, "1 c n -> n c")


def _refuse_without_sam(described: Described) -> nn.Module:
    channels = described.shape("image_encoder.FacTu.weight", 2)[1]
    size = {768: "sam_vit_b", 1024: "sam_vit_l", 1280: "sam_vit_h"}.get(channels, f"SAM with {channels} channels")
    raise BadInput(
        f"{described.where} holds what MA-SAM tuned and not the SAM below it: give the checkpoint of {size} as well"
    )


def _is_whole(described: Described) -> bool:
    names = plain(described).shapes
    return "image_encoder.FacTu.weight" in names and "image_encoder.pos_embed" in names


families.add(
    "ma-sam",
    Family(
        name="ma-sam",
        title="MA-SAM",
        source="Chen et al. 2024, MA-SAM, Medical Image Analysis 98:103310",
        licence="Apache-2.0",
        prompts=(),
        recognises=_is_whole,
        build=build,
        convert=convert,
        compute=compute,
        automatic=automatic,
    ),
)

families.add(
    "ma-sam-tuned",
    Family(
        name="ma-sam-tuned",
        title="MA-SAM's tuned tensors",
        source="Chen et al. 2024, MA-SAM, Medical Image Analysis 98:103310",
        licence="Apache-2.0",
        prompts=(),
        recognises=needs_sam,
        build=_refuse_without_sam,
        convert=convert,
        compute=compute,
    ),
)
