"""Proof that a network here is a published one: rebuild what a fixture describes, run it, compare every recorded array.

A fixture is a pair NAME.json and NAME.npz. The JSON holds `config` (sizes), `state_dict` (name -> shape, in the
naming of the original) and `seed`; weights and inputs follow from a name, a shape and the seed by a fixed rule, so
none are stored. The npz holds what the original computes, and the prompts it was given.
"""

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn

from volsam.errors import BadInput
from volsam.models.attention import Shape
from volsam.models.encoder import Encoder, EncoderConfig
from volsam.models.mask_head import HeadConfig
from volsam.models.original_names import LABELS, Original, from_original, original_shape, our_name
from volsam.models.prompt_encoder import PromptBatch, PromptConfig
from volsam.models.segmenter import Segmenter, SegmenterConfig

TOLERANCE = 1e-4
"""Largest difference that counts as agreement, in float32 on a CPU."""

Array = NDArray[Any]


@dataclass(frozen=True)
class ArrayDifference:
    """How far one recorded array is from ours; `max_difference` is infinite where the shapes differ."""

    name: str
    shape: tuple[int, ...]
    max_difference: float
    agrees: bool


@dataclass(frozen=True)
class Fixture:
    """What a pair of files says."""

    path: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    seed: int
    arrays: Mapping[str, Array]

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number of the configuration."""
        value = self.config.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BadInput(f'{self.path}: config "{name}" must be a whole number, got {value!r}: repair the fixture')
        return value

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a weight of the original."""
        shape = self.shapes.get(name, ())
        if len(shape) != rank:
            raise BadInput(f'{self.path}: "{name}" must have {rank} axes, got shape {list(shape)}: repair the fixture')
        return shape

    def rows(self, name: str) -> int | None:
        """The length of a weight of the original, None where there is no such weight."""
        return self.shapes.get(name, (None,))[0]

    def count(self, prefix: str) -> int:
        """How many numbered parts follow a prefix among the names."""
        return len({name[len(prefix) :].split(".")[0] for name in self.shapes if name.startswith(prefix)})


@dataclass(frozen=True)
class Family:
    """A published network: how its fixture is recognised, and what it computes of the arrays recorded there."""

    name: str
    recognises: Callable[[Fixture], bool]
    compute: Callable[[Fixture], Mapping[str, Tensor]]


def verify(path: str | Path, families: Sequence[Family] | None = None) -> list[ArrayDifference]:
    """Compare every output recorded in a fixture with ours; `path` is its JSON."""
    fixture = read_fixture(Path(path))
    family = _family_of(fixture, FAMILIES if families is None else families)
    computed = _compute(family, fixture)
    recorded = {name: array for name, array in fixture.arrays.items() if name not in _PROMPTS}
    unknown = sorted(set(recorded) - set(computed))
    if unknown or not recorded:
        raise BadInput(
            f"{fixture.path.with_suffix('.npz')}: {family.name} computes none of {unknown or 'its arrays'}; "
            f"expected names such as {', '.join(sorted(computed)[:4])}"
        )
    return [_difference(name, array, computed[name].detach().numpy()) for name, array in recorded.items()]


def _compute(family: Family, fixture: Fixture) -> Mapping[str, Tensor]:
    try:
        with torch.no_grad():
            return family.compute(fixture)
    except BadInput:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"{fixture.path}: its sizes and prompts do not fit {family.name} ({reason})") from error


def _difference(name: str, recorded: Array, computed: Array) -> ArrayDifference:
    """Large outputs are recorded with stride 2 along their spatial axes."""
    if recorded.shape != computed.shape:
        every_second = [slice(None)] * 2 + [slice(None, None, 2)] * (computed.ndim - 2)
        computed = computed[tuple(every_second)]
    if recorded.shape != computed.shape:
        return ArrayDifference(name, recorded.shape, float("inf"), agrees=False)
    most = float(np.abs(recorded.astype(np.float64) - computed.astype(np.float64)).max(initial=0.0))
    return ArrayDifference(name, recorded.shape, most, agrees=most <= TOLERANCE)


# --- the files ---------------------------------------------------------------------------------------------


def read_fixture(path: Path) -> Fixture:
    """Both files of a fixture, given its JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shapes = {str(name): tuple(map(int, shape)) for name, shape in content["state_dict"].items()}
        config, seed = dict(content["config"]), int(content["seed"])
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give the JSON file of a fixture") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: not a fixture ({type(error).__name__}: {error}); expected JSON with config, state_dict and seed"
        ) from None
    arrays = path.with_suffix(".npz")
    try:
        with arrays.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return Fixture(path, config, shapes, seed, {name: stored[name] for name in stored})
    except FileNotFoundError:
        raise BadInput(f"{arrays}: missing; the recorded arrays belong beside {path.name}") from None
    except (OSError, ValueError, AttributeError, TypeError, EOFError, BadZipFile) as error:
        raise BadInput(f"{arrays}: not an archive of arrays ({error}); record the fixture again") from None


def _family_of(fixture: Fixture, families: Sequence[Family]) -> Family:
    for family in families:
        if family.recognises(fixture):
            return family
    known = ", ".join(family.name for family in families)
    raise BadInput(f"{fixture.path}: its config and weight names fit no network known here; known are {known}")


# --- the rule ----------------------------------------------------------------------------------------------


def weight(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """The float32 value of the weight `name` of the original."""
    values = _normal(name, shape, seed)
    if name.endswith("gaussian_matrix"):
        return values
    if name.endswith("weight") and len(shape) == 1:  # the scale of a norm
        return np.asarray(1 + 0.1 * values, dtype=np.float32)
    if len(shape) < 2:
        return np.asarray(0.1 * values, dtype=np.float32)
    return np.asarray(values / np.float64(math.sqrt(max(1, math.prod(shape[1:])))), dtype=np.float32)


def tensor_input(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """The float32 value of the input `name`: "image", "mask"."""
    return _normal(f"input:{name}", shape, seed)


def _normal(text: str, shape: tuple[int, ...], seed: int) -> Array:
    random = np.random.RandomState((zlib.crc32(text.encode()) + seed) % 2**32)  # the seed alone makes the numbers
    return np.asarray(random.standard_normal(shape), dtype=np.float32)


def load(network: nn.Module, fixture: Fixture, original: Original, rank: int) -> None:
    """Give a network the weights of a fixture; refused unless names and shapes are exactly its own."""
    wrong = _differences(network, fixture, original, rank)
    if wrong:
        raise BadInput(
            f"{fixture.path}: state_dict does not describe the network of its config ({len(wrong)} weights differ, "
            f"first: {wrong[0]}): repair the one or the other"
        )
    values = {name: torch.from_numpy(weight(name, shape, fixture.seed)) for name, shape in fixture.shapes.items()}
    network.load_state_dict(from_original(values, original), strict=True)
    network.eval()


def _differences(network: nn.Module, fixture: Fixture, original: Original, rank: int) -> list[str]:
    """What of the weights described in a fixture is not as in the network, in words."""
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wrong, found = [], Counter[str]()
    for name, shape in fixture.shapes.items():
        here = our_name(name, original)
        found[here] += 1
        if here not in ours:
            wrong.append(f"{name} is left over")
        elif shape != (expected := original_shape(here, ours[here], rank)):
            wrong.append(f"{name} is {list(shape)} and must be {list(expected)}")
    for name, shape in ours.items():
        needed = shape[0] if name == LABELS else 1  # our one table of labels is a weight for each label there
        if found[name] != needed:
            wrong.append(f"{name} is missing" if found[name] == 0 else f"{name} has {found[name]} of {needed} parts")
    return wrong


# --- SAM and SAM-Med3D -------------------------------------------------------------------------------------


def _compute_sam(fixture: Fixture) -> Mapping[str, Tensor]:
    """Embedding, prompt codes, masks and qualities for every combination of prompts that was recorded."""
    rank = len(fixture.shapes["image_encoder.pos_embed"]) - 2
    network = Segmenter(_segmenter_config(fixture, rank))
    load(network, fixture, "sam" if rank == 2 else "sam_med3d", rank)
    features = network.encode(_image(fixture, network.config.encoder, rank))
    found = {"embedding": features.embedding}
    for scene in sorted({name.partition(".")[0] for name in fixture.arrays if "." in name}):
        prompts = _prompts(fixture, scene, network.config.prompts, rank)
        found[f"{scene}.sparse"], dense = network.prompt_encoder(prompts)
        found[f"{scene}.dense"] = dense.expand_as(features.embedding)
        several = network.decode(features, prompts, "several")
        found[f"{scene}.logits_multi"], found[f"{scene}.iou_multi"] = several.low_res, several.quality
        one = network.decode(features, prompts, "one")
        found[f"{scene}.logits_single"], found[f"{scene}.iou_single"] = one.low_res, one.quality
    return {name: _at_rank(tensor, rank) for name, tensor in found.items()}


def _at_rank(tensor: Tensor, rank: int) -> Tensor:
    """An image as the original has it: without depth where it knows none."""
    return rearrange(tensor, "b c 1 h w -> b c h w") if rank == 2 and tensor.ndim == 5 else tensor


def _image(fixture: Fixture, config: EncoderConfig, rank: int) -> Tensor:
    shape = (1, config.channels, *config.image[3 - rank :])
    image = torch.from_numpy(tensor_input("image", shape, fixture.seed))
    return image.unsqueeze(2) if rank == 2 else image


_PROMPTS = ("points", "points_xy", "labels", "box_xyxy")


def _prompts(fixture: Fixture, scene: str, config: PromptConfig, rank: int) -> PromptBatch:
    """The prompts a scene is named after: "points", "box", "points_mask", "all"."""
    said = {"points", "box", "mask"} if scene == "all" else set(scene.split("_"))
    if said - {"points", "box", "mask"}:
        raise BadInput(
            f'{fixture.path.with_suffix(".npz")}: "{scene}" names no prompts; known are points, box, mask and all'
        )
    points = boxes = mask = labels = None
    if "points" in said:
        points = _from_xy(_given(fixture, "points_xy")) if rank == 2 else _given(fixture, "points")
        labels = _given(fixture, "labels").long()
    if "box" in said:
        boxes = _from_xy(rearrange(_given(fixture, "box_xyxy"), "b (corner xy) -> b 1 corner xy", corner=2))
    if "mask" in said:
        size = [tokens * step**2 for tokens, step in zip(config.grid, config.mask_stride, strict=True)]
        mask = torch.from_numpy(tensor_input("mask", (1, 1, *size[3 - rank :]), fixture.seed)).reshape(1, 1, *size)
    return PromptBatch(points, labels, boxes, mask)


def _given(fixture: Fixture, name: str) -> Tensor:
    if name not in fixture.arrays:
        raise BadInput(f'{fixture.path.with_suffix(".npz")}: a recorded scene needs "{name}", which is missing')
    return torch.from_numpy(fixture.arrays[name]).float()


def _from_xy(points: Tensor) -> Tensor:
    """Pixels (x, y) of a slice to voxels (depth, height, width)."""
    return torch.cat([torch.zeros_like(points[..., :1]), points.flip(-1)], dim=-1)


def _segmenter_config(fixture: Fixture, rank: int) -> SegmenterConfig:
    encoder = _encoder_config(fixture, rank, prefix="image_encoder.")
    step: Shape = (1, 2, 2) if rank == 2 else (2, 2, 2)
    width, head = encoder.out, "mask_decoder."
    return SegmenterConfig(
        encoder=encoder,
        prompts=PromptConfig(
            image=encoder.image,
            grid=encoder.grid,
            width=width,
            mask_width=fixture.size("mask_in_chans", fixture.rows("prompt_encoder.mask_downscaling.3.bias")),
            mask_stride=step,
            boxes=rank == 2,
            waves=("sin", "cos") if rank == 2 else ("sin", "cos", "sin"),
            dense_axes=(0, 1, 2) if rank == 2 else (1, 0, 2),
        ),
        head=HeadConfig(
            width=width,
            depth=fixture.size("decoder_depth", fixture.count(f"{head}transformer.layers.")),
            heads=fixture.size("decoder_heads", 8),
            mlp_width=fixture.size("transformer_mlp_dim", fixture.rows(f"{head}transformer.layers.0.mlp.lin1.bias")),
            inner=width // 2,
            masks=fixture.count(f"{head}output_hypernetworks_mlps."),
            upscale=(width // 4, width // 8),
            step=step,
            quality_width=fixture.size("iou_head_hidden_dim", fixture.rows(f"{head}iou_prediction_head.layers.0.bias")),
            quality_depth=fixture.count(f"{head}iou_prediction_head.layers."),
        ),
    )


def _encoder_config(fixture: Fixture, rank: int, prefix: str = "") -> EncoderConfig:
    image, patch, window = (fixture.size(name) for name in ("img_size", "patch_size", "window_size"))
    flat = rank == 2
    return EncoderConfig(
        image=(1 if flat else image, image, image),
        channels=fixture.shape(f"{prefix}patch_embed.proj.weight", rank + 2)[1],
        patch=(1 if flat else patch, patch, patch),
        width=fixture.size("embed_dim"),
        depth=fixture.size("depth"),
        heads=fixture.size("num_heads"),
        mlp_width=fixture.shape(f"{prefix}blocks.0.mlp.lin1.weight", 2)[0],
        window=(1 if flat else window, window, window),
        wide_window=(1 if flat else 0, 0, 0),
        wide_blocks=tuple(fixture.config.get("global_attn_indexes", ())),
        bias_axes="hw" if flat else "dhw",
        bias="aligned" if flat else "published",
        out=fixture.size("out_chans"),
        neck_kernel=(1 if flat else 3, 3, 3),
    )


# --- FastSAM3D ---------------------------------------------------------------------------------------------


def _compute_student(fixture: Fixture) -> Mapping[str, Tensor]:
    """Tokens after the patch embedding and after every second block, then the embedding."""
    depth = fixture.size("depth")
    changes = {
        "blocks_without_attention": fixture.size("skip_layer"),
        "shortcut": "normed",
        "taps": tuple(range(0, depth + 1, 2)),
    }
    config = _encoder_config(fixture, rank=3).model_copy(update=changes)
    encoder = Encoder(config)
    load(nn.ModuleDict({"encoder": encoder}), fixture, "fastsam3d_encoder", rank=3)
    embedding, taps = encoder(_image(fixture, config, rank=3))
    return {f"stage{index}": stage for index, stage in enumerate((*taps, embedding))}


# --- recognition -------------------------------------------------------------------------------------------

# What marks a network that has more than SAM's parts, or others.
_FOREIGN = (".Adapter.", ".adapter", "FacT", "slice_embed", "mlahead", "cnn_head", "linear_head")


def _is_sam(rank: int) -> Callable[[Fixture], bool]:
    def recognises(fixture: Fixture) -> bool:
        parts = {name.partition(".")[0] for name in fixture.shapes}
        plain = not any(mark in name for name in fixture.shapes for mark in _FOREIGN)
        position = fixture.shapes.get("image_encoder.pos_embed", ())
        return plain and len(position) == rank + 2 and parts == {"image_encoder", "prompt_encoder", "mask_decoder"}

    return recognises


def _is_student(fixture: Fixture) -> bool:
    return "skip_layer" in fixture.config and len(fixture.shapes.get("pos_embed", ())) == 5


FAMILIES: tuple[Family, ...] = (
    Family("SAM", _is_sam(rank=2), _compute_sam),
    Family("SAM-Med3D", _is_sam(rank=3), _compute_sam),
    Family("FastSAM3D student encoder", _is_student, _compute_student),
)
"""Families of plain networks; `verify(path, families=(*FAMILIES, ...))` adds those that need adapters."""
