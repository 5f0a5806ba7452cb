"""3DSAM-adapter (Gong et al. 2024): SAM's weights in shifted 3D windows, one or a few clicks, one tumour in a crop.

Axes are (b c d h w) here and (b c h w d) in the original; a click is (d, h, w) here and (d, w, h) there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from volsam.adapters.freeze import train_only
from volsam.adapters.spatial import add_spatial_adapters
from volsam.errors import BadInput
from volsam.inference.volumes import CropModel
from volsam.models.aggregation_head import AggregationHead, enlarged_to_corners
from volsam.models.encoder import Encoder, EncoderConfig, Image, Neck
from volsam.models.features import Features, Prediction
from volsam.models.original_names import our_name
from volsam.models.segmenter import enlarge
from volsam.models.shapes import Shape
from volsam.models.slice_merge import MergedSlices
from volsam.models.visual_sampler import VisualSampler
from volsam.recipes.families.family import Described, Family, families
from volsam.recipes.families.fixture import Fixture


@dataclass(frozen=True)
class Organ:
    """How volumes were prepared for the weights of one task: resampled to 1 mm, clipped to `window`, then
    (HU - mean) / spread, all in HU; axes: where depth, height and width of a crop point, as the task's files have them.
    """

    window: tuple[float, float]
    mean: float
    spread: float
    axes: str


ORGANS = {
    "kits": Organ((-54.0, 247.0), 59.53867, 55.457336, "IPL"),
    "lits": Organ((-48.0, 163.0), 60.057533, 40.198017, "SAR"),
    "pancreas": Organ((-39.0, 204.0), 68.45214, 63.422806, "SAR"),
    "colon": Organ((-57.0, 175.0), 65.175035, 32.651197, "SAR"),
}
"""By the names of the release: tumours of kidney (KiTS21), liver (LiTS17), pancreas (MSD 07) and colon (MSD 10)."""


class SamAdapter3D(nn.Module):
    """Encoder with four necks, clicks that sample its deepest features, a head over all four levels."""

    def __init__(self, encoder: Encoder, sampler: VisualSampler, head: AggregationHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.sampler = sampler
        self.head = head

    def encode(self, crop: Float[Tensor, "b 1 d h w"]) -> Features:
        """The costly step, for a crop prepared as `ORGANS` says.

        embedding: the deepest level; taps: the other three, shallowest first, then what they and the crop add to every
        mask (`AggregationHead.context`), since no click changes it.
        """
        if tuple(crop.shape[1:]) != (1, *self.encoder.config.image):
            raise BadInput(
                f"the model encodes crops of (1, depth, height, width) = {(1, *self.encoder.config.image)}, "
                f"got {tuple(crop.shape[1:])}: crop or pad to that size first"
            )
        deepest, others = self.encoder(crop)
        d, h, w = self.encoder.config.grid
        return Features(deepest, (*others, self.head.context(others, enlarge(crop, (2 * d, 2 * h, 2 * w)))), crop)

    def decode(self, features: Features, points: Float[Tensor, "#b n 3"]) -> Prediction:
        """One mask (b 1 d h w): log-odds of the object at the size of the crop and, as `low_res`, at twice the grid.

        points: clicks into the object, in voxels of the crop along depth, height and width, in any order. The network
        predicts no quality; `quality` is how sure it is on average where it sees the object, and 0 if it sees none.
        """
        d, h, w = features.image.shape[2:]
        prompted = self.sampler(features.embedding, (points + 0.5) / points.new_tensor([d, h, w]))
        background, inside = self.head(features.taps[-1], prompted).split(1, dim=1)
        low_res = inside - background
        logits = enlarged_to_corners(low_res, (d, h, w))
        seen = logits > 0
        sure = reduce(logits.sigmoid() * seen, "b n d h w -> b n", "sum")
        return Prediction(logits, sure / reduce(seen, "b n d h w -> b n", "sum").clamp(min=1), low_res)

    def encode_slices(self, slices: Float[Tensor, "b 3 D H W"]) -> tuple[Image, ...]:
        """All four levels, shallowest first, of slices that come enlarged and in colour, as the original takes them."""
        deepest, others = self.encoder(slices)
        return (*others, deepest)


def train_tuned(network: SamAdapter3D) -> int:
    """Make trainable what 3DSAM-adapter tunes, all but what is SAM's own; returns the number of weights."""
    blocks = r"encoder\.blocks\.\d+\.(before_attention|norm[12]|attention\.tables\.d)"
    return train_only(network, rf"{blocks}|encoder\.(patches\.(merge|depth)|at_taps|neck)|sampler|head")


# --- sizes from shapes -----------------------------------------------------------------------------------------------

_HALVED = 2
"""SAM's learned position is of a grid twice as fine, and averaged."""


def recognises(described: Described) -> bool:
    """Whether weights are of the whole network, under the names of a fixture or of the released file."""
    named = plainly_named(described).shapes
    return "image_encoder.slice_embed.weight" in named and "mask_decoder.cls.3.weight" in named


def plainly_named(described: Described) -> Described:
    """The same with the names of a fixture, without what says nothing."""
    shapes = {
        in_parts(name): shape
        for name, shape in described.shapes.items()
        if not is_unused(name) or name.endswith(".attn_mask")  # their shapes tell the windows
    }
    return Described(described.where, shapes, described.facts)


def build(described: Described) -> SamAdapter3D:
    """The network for described weights; facts, where there are any, come first."""
    described = plainly_named(described)
    encoder = build_encoder(described)
    out, layer = encoder.config.out, "prompt_encoder.transformer.layers."
    sampler = VisualSampler(
        out,
        depth=described.count(layer),
        heads=described.size("prompt_heads", 8),
        mlp_width=described.shape(f"{layer}0.mlp.lin1.weight", 2)[0],
        inner=described.shape(f"{layer}0.cross_attn_image_to_token.q_proj.weight", 2)[0],
        queries=described.shape(f"{layer}0.global_query", 3)[1],
    )
    classes, channels = described.shape("mask_decoder.cls.3.weight", 5)[:2]
    if classes != 2:
        raise BadInput(f"{described.where}: a mask decoder of {classes} classes; only object and background are known")
    return SamAdapter3D(encoder, sampler, AggregationHead(out, channels, classes, len(encoder.at_taps) + 1))


def build_encoder(described: Described) -> Encoder:
    """SAM's blocks in 3D windows, with the patches, position, adapters, tables and necks of 3DSAM-adapter."""
    prefix = "image_encoder."
    config, factor = encoder_config(described)
    rows = [
        {axis: described.shape(f"{prefix}blocks.{index}.attn.rel_pos_{axis}", 2)[0] for axis in "dhw"}
        for index in range(config.depth)
    ]
    encoder = volume_encoder(config, factor, rows)
    add_spatial_adapters(encoder, described.shape(f"{prefix}blocks.0.adapter.linear1.weight", 2)[0])
    return encoder


def volume_encoder(config: EncoderConfig, factor: Shape, rows: Sequence[Mapping[str, int]]) -> Encoder:
    """The encoder without adapters.

    factor: how many times a crop is enlarged along each axis; rows: of the position tables of every block, by axis.
    They have the length of SAM's windows and are interpolated to ours.
    """
    d, h, w = config.grid
    encoder = Encoder(config)
    patch: Shape = tuple(n * times for n, times in zip(config.patch, factor, strict=True))  # type: ignore[assignment]
    encoder.patches = MergedSlices(config.width, patch, factor, d)  # type: ignore[assignment]
    encoder.position = nn.Parameter(torch.zeros(1, 1, h, w, config.width))
    encoder.at_taps = nn.ModuleList(Neck(config.width, config.out, config.neck_kernel) for _ in config.taps)
    for block, of_block in zip(encoder.blocks, rows, strict=True):
        tables = {axis: torch.zeros(of_block[axis], config.width // config.heads) for axis in "dhw"}
        block.attention.tables = nn.ParameterDict(tables)  # type: ignore[union-attr]
    return encoder


def encoder_config(described: Described) -> tuple[EncoderConfig, Shape]:
    """Sizes of the encoder, and how many times a crop is enlarged along each axis.

    A mask of shifted windows has the shape (windows, tokens, tokens). Where masks were left out, as they may be since
    they follow from sizes, the windows are those of the release: 8³, shifted in every second block.
    """
    prefix = "image_encoder."
    depth_grid, width = described.shape(f"{prefix}depth_embed", 3)[1:]
    rows, columns = (size // _HALVED for size in described.shape(f"{prefix}pos_embed", 4)[1:3])
    patch = described.shape(f"{prefix}patch_embed.proj.weight", 4)[-1]
    slices = described.shape(f"{prefix}slice_embed.weight", 5)[-1]
    blocks, levels = described.count(f"{prefix}blocks."), described.count(f"{prefix}neck_3d.")
    masks = {i: s for i in range(blocks) if (s := described.shapes.get(f"{prefix}blocks.{i}.attn_mask"))}
    window = round(next(iter(masks.values()))[1] ** (1 / 3)) if masks else described.size("cubic_window_size", 8)
    grid = (depth_grid, rows, columns)
    windows = prod(size // window for size in grid)
    if any(size % window for size in grid) or any(s != (windows, window**3, window**3) for s in masks.values()):
        raise BadInput(f"{described.where}: windows of {window}³ tokens and their masks do not fit {grid} tokens")
    times = described.size("enlarged", 4)
    factor = gcd(times, slices), gcd(times, patch), gcd(times, patch)
    voxels = slices // factor[0], patch // factor[1], patch // factor[2]
    head = described.shape(f"{prefix}blocks.0.attn.rel_pos_h", 2)[1]
    config = EncoderConfig(
        image=(depth_grid * voxels[0], rows * voxels[1], columns * voxels[2]),
        patch=voxels,
        width=width,
        depth=blocks,
        heads=described.size("num_heads", width // head),
        mlp_width=described.shape(f"{prefix}blocks.0.mlp.lin1.weight", 2)[0],
        window=(window, window, window),
        shift=(window // 2, window // 2, window // 2),
        shifted_blocks=tuple(masks) or tuple(range(0, blocks, 2)),
        out=described.shape(f"{prefix}neck_3d.0.0.weight", 5)[0],
        taps=tuple(blocks // levels * level for level in range(1, levels)),
    )
    return config, factor


# --- names and axes --------------------------------------------------------------------------------------------------

UNUSED = (
    r"(image_encoder|encoder_dict)\.blocks\.\d+\.attn_mask",  # follows from sizes
    r"feature_dict\[[012]\]\..*",  # prompt encoders of the other levels, which take no part
    r"(prompt_encoder|feature_dict\[(3|i)\])\.positional_encoding_gaussian_matrix",  # a code computed and dropped
    r"(prompt_encoder|feature_dict\[(3|i)\])\.transformer\.layers\.\d+\.cross_attn_token_to_image\..*",  # never called
)
"""Tensors of the originals that are left out on purpose; all others must fit."""

_PARTS = (
    (r"^encoder_dict\.", "image_encoder."),
    (r"^feature_dict\[(3|i)\]\.", "prompt_encoder."),
    (r"^decoder_dict\.", "mask_decoder."),
)
_NAMES = (
    (r"^encoder\.patches\.", "encoder.patches.plane."),
    (r"^image_encoder\.slice_embed\.weight", "encoder.patches.merge"),
    (r"^image_encoder\.slice_embed\.bias", "encoder.patches.merge_bias"),
    (r"^image_encoder\.depth_embed", "encoder.patches.depth"),
    (r"(encoder\.blocks\.\d+)\.adapter\.linear1\.", r"\1.before_attention.down."),
    (r"(encoder\.blocks\.\d+)\.adapter\.conv\.", r"\1.before_attention.mix."),
    (r"(encoder\.blocks\.\d+)\.adapter\.linear2\.", r"\1.before_attention.up."),
    (r"^image_encoder\.neck_3d\.(\d+)\.0\.", r"encoder.at_taps.\1.project."),
    (r"^image_encoder\.neck_3d\.(\d+)\.1\.", r"encoder.at_taps.\1.norm1."),
    (r"^image_encoder\.neck_3d\.(\d+)\.2\.", r"encoder.at_taps.\1.mix."),
    (r"^image_encoder\.neck_3d\.(\d+)\.3\.", r"encoder.at_taps.\1.norm2."),
    (r"^prompt_encoder\.transformer\.", "sampler."),
    (r"\.global_query", ".queries"),
    (r"^mask_decoder\.mlahead\.head2\.", "head.levels.0."),
    (r"^mask_decoder\.mlahead\.head3\.", "head.levels.1."),
    (r"^mask_decoder\.mlahead\.head4\.", "head.levels.2."),
    (r"^mask_decoder\.mlahead\.head5\.", "head.levels.3."),
    (r"(head\.levels\.\d)\.0\.", r"\1.first."),
    (r"(head\.levels\.\d)\.3\.", r"\1.second."),
    (r"^mask_decoder\.cls\.0\.", "head.mix."),
    (r"^mask_decoder\.cls\.3\.", "head.last."),
)


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original names and axes to ours; unknown names are kept as they are.

    The scalar that the original multiplies the position bias of a block with, `lr`, never learns; the tables take it
    over.
    """
    named = {in_parts(name): tensor for name, tensor in tensors.items() if not is_unused(name)}
    scales = {name[: -len("lr")]: tensor for name, tensor in named.items() if re.search(r"\.attn\.lr$", name)}
    converted = {}
    for name, tensor in named.items():
        if name.endswith(".attn.lr"):
            continue
        before, found, _ = name.partition("rel_pos_")
        converted[name] = tensor * scales[before] if found and before in scales else at_our_axes(name, tensor)
    deepest = max((level for name in named for level in _level(name)), default=-1)
    neck = f"encoder.at_taps.{deepest}."
    ours = {ours_of(name): tensor for name, tensor in converted.items()}
    return {name.replace(neck, "encoder.neck."): tensor for name, tensor in ours.items()}


def is_unused(name: str) -> bool:
    """Whether a tensor of the original is left out on purpose."""
    return any(re.fullmatch(pattern, name) for pattern in UNUSED)


def in_parts(name: str) -> str:
    """The name in a fixture of a weight in the released file."""
    for pattern, replacement in _PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def ours_of(name: str) -> str:
    """What a weight is called here: as in the other families, where it is the same, then what is only in this one."""
    name = our_name(name, "sam")
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _level(name: str) -> Iterable[int]:
    return map(int, re.findall(r"^image_encoder\.neck_3d\.(\d+)\.", name))


def at_our_axes(name: str, tensor: Tensor) -> Tensor:
    """Kernels along depth, height and width; layers of one voxel as matrices; the position averaged."""
    if name == "image_encoder.pos_embed":
        return reduce(tensor, "1 (h p) (w q) c -> 1 1 h w c", "mean", p=_HALVED, q=_HALVED)
    if name == "image_encoder.patch_embed.proj.weight":
        return rearrange(tensor, "c rgb y x -> c rgb 1 y x")
    if name == "image_encoder.slice_embed.weight":
        return rearrange(tensor, "c 1 1 1 s -> c s")
    if name == "image_encoder.depth_embed" or name.endswith(".global_query"):
        return rearrange(tensor, "1 n c -> n c")
    if re.fullmatch(r"image_encoder\.neck_3d\.\d+\.0\.weight", name):
        return rearrange(tensor, "e c 1 1 1 -> e c")
    return rearrange(tensor, "e c h w d -> e c d h w") if tensor.ndim == 5 else tensor


# --- fixtures --------------------------------------------------------------------------------------------------------


def compute(network: nn.Module, fixture: Fixture) -> Mapping[str, Tensor]:
    """Features of the four levels, the deepest with clicks, and the logits of both classes, in the original's axes."""
    assert isinstance(network, SamAdapter3D)
    patches, (d, h, w) = network.encoder.patches, network.encoder.config.grid
    assert isinstance(patches, MergedSlices)
    slices, rows, columns = patches.patch
    image = fixture.input("image", (d * slices, 3, h * rows, w * columns))
    levels = network.encode_slices(rearrange(image, "d rgb h w -> 1 rgb d h w"))
    points = (fixture.given("points")[..., [0, 2, 1]] + 0.5) / fixture.size("patch_voxels")
    prompted = network.sampler(levels[-1], points)
    raw = rearrange(fixture.input("lowres_image", (1, 1, 2 * h, 2 * w, 2 * d)), "b c h w d -> b c d h w")
    low_res = network.head(network.head.context(levels[:-1], raw), prompted)
    found = {f"feature{level}": features for level, features in enumerate(levels)}
    found |= {"prompted_feature3": prompted, "logits": enlarged_to_corners(low_res, (4 * d, 4 * h, 4 * w))}
    return {name: rearrange(tensor, "b c d h w -> b c h w d") for name, tensor in found.items()}


# --- in a session ----------------------------------------------------------------------------------------------------


def crop_model(network: nn.Module, name: str, device: str) -> CropModel:
    """The network behind a session, prepared for the task that its name tells: the weights do not."""
    assert isinstance(network, SamAdapter3D)
    tasks = [task for task in ORGANS if task in name.lower()]
    if not tasks:
        raise BadInput(
            f"{name} does not say for which task it was trained: import it under a name that holds one of "
            f"{', '.join(ORGANS)}, such as 3dsam-adapter-kits"
        )
    organ, image = ORGANS[tasks[0]], network.encoder.config.image
    if len(set(image)) > 1:
        raise BadInput(f"{name} takes crops of {image} voxels; in a session only cubes are looked at")
    return CropModel(network, name, device, image[0], organ.window, organ.mean, organ.spread, organ.axes)


families.add(
    "3dsam-adapter",
    Family(
        name="3dsam-adapter",
        title="3DSAM-adapter",
        source="Gong et al. 2024, 3DSAM-adapter",
        licence="not stated",
        prompts=("point",),
        recognises=recognises,
        build=build,
        convert=convert,
        compute=compute,
        engine=crop_model,
    ),
)
