"""What is compared with what: every published network as written out beside ours, with the same weights.

A pair is a reference and the name of a family. The weights follow from their names by the rule of fixtures; the
reference takes them as they are, ours through the family's own conversion, the path of a user's checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from volsam.errors import BadInput
from volsam.evaluation.published import auto_sam, figures, ma_sam, sam, sam_adapter_3d
from volsam.evaluation.published.checkout import Checkout
from volsam.evaluation.sides import (
    Automatic,
    OurCrop,
    OurSam,
    Promptable,
    PublishedCrop,
    PublishedSam,
    Slices,
    Stacks,
)
from volsam.inference.model import box_of
from volsam.recipes.families.family import Described, built, fill, load_families
from volsam.recipes.families.fixture import weight

Kind = Literal["cube", "slice", "crop", "stack", "single"]
Which = Literal["ours", "published"]

OWN = "volsam-s"
"""Our own model: compared with a published one in time, never in numbers."""

OWN_PEER = "fastsam3d"


@dataclass(frozen=True)
class Pair:
    """name: what a user types; family: of ours; kind: how it is called; size: of the input's edge in voxels; build:
    the reference for an edge; figures: parts whose weight and cost must be the original's.
    """

    name: str
    family: str
    kind: Kind
    size: int
    build: Callable[[int], nn.Module]
    figures: tuple[str, ...]

    @property
    def promptable(self) -> bool:
        """Whether it answers clicks."""
        return self.kind in ("cube", "slice", "crop")


PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        Pair("fastsam3d", "fastsam3d", "cube", 128, sam.fast_sam_3d, ("fastsam3d.encoder", "sam-med3d.click")),
        Pair("sam-med3d", "sam-med3d", "cube", 128, sam.sam_med3d, ("sam-med3d.encoder", "sam-med3d.click")),
        Pair("sam", "sam", "slice", 1024, sam.sam_b, ("sam.encoder", "sam.decoder")),
        Pair("sam-256", "sam", "slice", 256, sam.sam_b, ("sam-256.encoder", "sam-256.decoder")),
        Pair("sam-med2d", "sam-med2d", "slice", 256, sam.sam_med2d, ("sam-med2d",)),
        Pair(
            "3dsam-adapter",
            "3dsam-adapter",
            "crop",
            128,
            sam_adapter_3d.SamAdapter3D,
            ("3dsam-adapter.encoder", "3dsam-adapter.decoder"),
        ),
        Pair("ma-sam", "ma-sam", "stack", 512, lambda edge: ma_sam.MaSam(image=edge), ("ma-sam",)),
        Pair("autosam", "autosam", "single", 1024, lambda edge: auto_sam.AutoSam(image=edge), ("autosam",)),
    )
}


def present() -> list[str]:
    """Pairs whose network of ours is in this version."""
    known = set(load_families())
    return [name for name, pair in PAIRS.items() if pair.family in known]


def pair_of(name: str) -> Pair:
    """A pair by name; refused with the names that there are."""
    if name not in present():
        raise BadInput(f"no published network is called {name!r} here; there are: {', '.join(present())}")
    return PAIRS[name]


def check(pair: Pair) -> None:
    """Refuse a reference that does not weigh and cost what the original does."""
    for part in pair.figures:
        figures.check(part)


@dataclass(frozen=True)
class Built:
    """Networks of a pair, filled alike, or one of them."""

    pair: Pair
    ours: nn.Module | None
    published: nn.Module | None


def build(pair: Pair, edge: int | None = None, *, checkout: Checkout | None = None, seed: int = 0) -> Built:
    """Both networks with the same weights, each with memory of its own, in evaluation mode."""
    edge = edge or pair.size
    reference = reference_of(pair, edge, checkout)
    tensors = {name: by_rule(name, tensor, seed) for name, tensor in reference.state_dict().items()}
    reference.load_state_dict(tensors)
    family = load_families()[pair.family]
    described = described_by(pair, tensors)
    ours = built(family, described)
    fill(ours, family, under_family_names(pair, tensors), described.where)
    return Built(pair, ours.eval(), reference.eval())


def alone(pair: Pair, which: Which, edge: int | None = None, *, checkout: Checkout | None = None) -> Built:
    """One side with whatever weights it begins with: enough to see how much memory it takes."""
    edge = edge or pair.size
    if which == "published":
        return Built(pair, None, reference_of(pair, edge, checkout).eval())
    with torch.device("meta"):
        shapes = reference_of(pair, edge, None).state_dict()
    return Built(pair, built(load_families()[pair.family], described_by(pair, shapes)).eval(), None)


def reference_of(pair: Pair, edge: int, checkout: Checkout | None) -> nn.Module:
    """The published network: as written out here, or from a checkout of the original."""
    if checkout is None:
        return pair.build(edge)
    network = checkout.build(pair.name, edge)
    encoder = pair.figures[0]
    if edge == pair.size and encoder.endswith(".encoder"):
        millions = sum(weights.numel() for weights in network.get_submodule("image_encoder").parameters()) / 1e6
        printed = figures.PUBLISHED[encoder].parameters
        if not figures.agrees(millions, printed, 0.0):
            raise BadInput(
                f"{checkout.path}: its {pair.name} encoder has {millions:.1f} M parameters, the published one "
                f"{printed}: it is another network, so no ratio to it is printed"
            )
    return network


def by_rule(name: str, tensor: Tensor, seed: int) -> Tensor:
    """The weight of that name; masks of shifted windows are no weights and stay as they are."""
    if name.endswith("attn_mask"):
        return tensor.clone()
    return torch.from_numpy(weight(name, tuple(tensor.shape), seed)).to(tensor.dtype)


def described_by(pair: Pair, tensors: dict[str, Tensor]) -> Described:
    """What a family needs to know to build ours."""
    names = under_family_names(pair, tensors)
    return Described.of(f"the reference {pair.name}", names)


def under_family_names(pair: Pair, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a whole network of the family names them. 3DSAM-adapter stores four prompt encoders and uses one."""
    if pair.kind != "crop":
        return tensors
    used = "prompt_encoders.3."
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("prompt_encoders.")}
    last = {name.replace(used, "prompt_encoder."): t for name, t in tensors.items() if name.startswith(used)}
    return kept | last


# --- sides ---------------------------------------------------------------------------------------------------------


def promptable(network: Any, pair: Pair, which: Which) -> Promptable:
    """One side of a pair that answers clicks."""
    if pair.kind == "crop":
        return OurCrop(network) if which == "ours" else PublishedCrop(network)
    return OurSam(network, box_of) if which == "ours" else PublishedSam(network)


def automatic(network: Any, pair: Pair, which: Which) -> Automatic:
    """One side of a pair without prompts."""
    if pair.kind == "stack":
        if which == "ours":  # stacks are volumes here: (1 3 slices h w)
            return Stacks(network, lambda stack: network(stack.movedim(1, 0)[None])[0].movedim(1, 0))
        return Stacks(network, lambda stack: network(stack[None])[0])
    if which == "ours":
        return Slices(network, lambda one: network(one[:, :, None])[:, :, 0])
    return Slices(network, network)
