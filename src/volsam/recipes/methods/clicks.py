"""SAM-Med3D trained from nothing, and what networks of its kind share when they learn from clicks.

New networks are as SAM-Med3D's, without the quirks of its released weights: the position bias on its own axes, one code
for clicks and image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeGuard

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from volsam.data.dataset import Case, Dataset
from volsam.data.preparation import Preparation, Prepared
from volsam.data.preprocess import above_zero
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.volumes import ClickModel
from volsam.models.encoder import EncoderConfig
from volsam.models.features import Features
from volsam.models.mask_head import HeadConfig
from volsam.models.prompt_encoder import PromptConfig
from volsam.models.segmenter import Segmenter, SegmenterConfig
from volsam.recipes.engine import PLAIN
from volsam.recipes.families.family import fill, load_families
from volsam.recipes.methods.method import Method, Show, Weights, augment_of, methods, plan_of
from volsam.recipes.recipe import load_model
from volsam.training.clicks import ClickTask
from volsam.training.config import TrainConfig
from volsam.training.items import Items
from volsam.training.patches import Patches
from volsam.training.run import Plan
from volsam.volume import Volume


class ClicksConfig(TrainConfig, frozen=True):
    """Settings of SAM-Med3D; the paper has cubes of 128 voxels, patches of 16, width 768, depth 12 and 12 heads."""

    max_steps: PositiveInt = 4000
    batch_size: PositiveInt = 2
    learning_rate: PositiveFloat = 8e-4
    weight_decay: NonNegativeFloat = 0.1
    edge: PositiveInt = 64
    """Voxels along the edge of the cube that is looked at."""
    patch: PositiveInt = 8
    """Voxels along the edge of a token."""
    spacing: PositiveFloat = 1.5
    """Voxel size in mm."""
    width: PositiveInt = 192
    """Channels of a token."""
    depth: PositiveInt = 12
    """Blocks of the encoder."""
    heads: PositiveInt = 6
    """Of the encoder's attention."""
    still: NonNegativeInt = 0
    """Blocks without attention, at the beginning."""
    sparse: Literal["none", "columns", "published", "dilated"] = "none"
    """What attention reads: see `EncoderConfig.sparse`. The released checkpoints were distilled with `none`."""
    out: PositiveInt = 96
    """Channels of the embedding."""
    turns: PositiveInt = 6
    """Of a simulated conversation; 11 in the paper."""
    head_rate: NonNegativeFloat = 1.0
    """What part of the rate prompt encoder and mask head get; a tenth in the paper's code."""
    scaling: Literal["volume", "above zero"] = "volume"
    """How intensities are scaled: over a whole volume, clipped to its percentiles 0.5 and 99.5; or as SAM-Med3D has it,
    over those voxels of a cube that are above zero, which released weights want and get."""
    sizes: dict[str, Any] | None = None
    """All sizes of the network, in place of those above; set where there are weights to begin with, or a teacher."""


SIZES = ("edge", "patch", "width", "depth", "heads", "still", "sparse", "out")
"""Settings that say how large a network is."""


def plan(dataset: Dataset, cases: Sequence[Case], config: ClicksConfig) -> Plan:
    """Cubes of equal voxels, of the first channel."""
    edge = segmenter_config(config).encoder.image
    preparation = Preparation(
        spacing=(config.spacing,) * 3, scaling="zscore" if config.scaling == "volume" else "above zero"
    )
    return plan_of(dataset, preparation, edge, config, channels=1)


def segmenter_config(config: ClicksConfig) -> SegmenterConfig:
    """The sizes of a network."""
    if config.sizes is not None:
        return SegmenterConfig.model_validate(config.sizes)
    cube = (config.edge,) * 3
    encoder = EncoderConfig(
        image=cube,
        patch=(config.patch,) * 3,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_width=4 * config.width,
        blocks_without_attention=config.still,
        sparse=config.sparse,
        out=config.out,
    )
    if any(size % 4 for size in encoder.grid):
        raise BadInput(f"edge / patch must be a multiple of 4, got {config.edge} / {config.patch}")
    return SegmenterConfig(
        encoder=encoder,
        prompts=PromptConfig(image=cube, grid=encoder.grid, width=config.out, boxes=False),
        head=HeadConfig(
            width=config.out,
            inner=config.out // 2,
            mlp_width=4 * config.out,
            upscale=(config.out // 4, config.out // 8),
        ),
    )


def network(plan: Plan, config: ClicksConfig, weights: Weights | None) -> nn.Module:
    """A network from nothing, or with the weights of a SAM-Med3D or a FastSAM3D."""
    made = Segmenter(segmenter_config(config))
    if weights is not None:
        fill(made, load_families()["sam-med3d"], weights, "--init")
    return made.train()


def sizes_of_init(given: Mapping[str, Any], init: str | None) -> dict[str, Any]:
    """Settings completed by what the weights to begin with tell."""
    if init in (None, "", "none"):
        return dict(given)
    told = f"--init {init}"
    network = network_of(str(init), f"{told}: such training begins with")
    require_no_sizes(given, SIZES, told)
    return {**seen_by(str(init)), **given, **sized(network.config)}


def require_no_sizes(given: Mapping[str, Any], sizes: Iterable[str], told: str) -> None:
    """Refuse settings that say how large a network is, where something else says it."""
    if wrong := [name for name in sizes if name in given]:
        raise BadInput(f"{told} says how large the network is: leave {' and '.join(wrong)} out")


def sized(config: SegmenterConfig) -> dict[str, Any]:
    """All settings of a size, from those of a network."""
    encoder = config.encoder
    return {
        "edge": encoder.image[0],
        "patch": encoder.patch[0],
        "width": encoder.width,
        "depth": encoder.depth,
        "heads": encoder.heads,
        "still": encoder.blocks_without_attention,
        "sparse": encoder.sparse,
        "out": encoder.out,
        "sizes": config.model_dump(mode="json"),
    }


def seen_by(name: str) -> dict[str, Any]:
    """Voxel size and scaling that a model was trained on: a run's own, or those of SAM-Med3D."""
    model = load_model(name, device="cpu", engine=PLAIN)
    if isinstance(model, TrainedClickModel) and model.preparation.scaling == "zscore":
        return {"spacing": model.spacing, "scaling": "volume"}
    return {"spacing": getattr(model, "spacing", ClickModel.spacing), "scaling": "above zero"}


def task(network: nn.Module, plan: Plan, config: ClicksConfig) -> nn.Module:
    """Simulated conversations."""
    assert isinstance(network, Segmenter)
    return ClickTask(network, config.turns)


def items(
    cases: Sequence[Prepared], plan: Plan, config: ClicksConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Cubes around one object each."""
    first = [Prepared(case.name, case.image[:1], case.label, case.places) for case in cases]
    above = plan.preparation.scaling == "above zero"
    seen = above_zero if above else None
    return Patches(first, plan.patch, augment_of(plan, config), config.seed, one_object=True, seen=seen, still=above)


def groups(network: nn.Module, config: ClicksConfig) -> list[tuple[list[nn.Parameter], float]]:
    """The encoder at the full rate, prompt encoder and mask head at theirs."""
    assert isinstance(network, Segmenter)
    rest = [*network.prompt_encoder.parameters(), *network.mask_head.parameters()]
    return [(list(network.encoder.parameters()), 1.0), (rest, config.head_rate)]


class TrainedClickModel(ClickModel):
    """SAM-Med3D, or a student of it, as it was trained on a dataset: its voxel size, and each volume's own scale."""

    def __init__(self, network: Segmenter, name: str, device: str, plan: Plan) -> None:
        super().__init__(network, name, device)
        assert plan.preparation.spacing is not None
        self.spacing = plan.preparation.spacing[0]
        self.axes = plan.preparation.axes
        self.preparation = plan.preparation

    @torch.inference_mode()
    def encode(self, volume: Volume, roi: Grid) -> Features:
        """Features of a region of the volume's first channel."""
        if self.preparation.scaling == "above zero":
            return super().encode(volume, roi)
        image = torch.from_numpy(self.preparation.region(volume, roi))[None, None]
        return self.network.encode(image.to(self.device))


def model(network: nn.Module, plan: Plan, config: ClicksConfig, name: str, device: str) -> TrainedClickModel:
    """The network behind a session."""
    assert isinstance(network, Segmenter)
    return TrainedClickModel(network, name, device, plan)


# --- a network that is there ------------------------------------------------------------------------------------------


def is_of_volumes(network: object) -> TypeGuard[Segmenter]:
    """Whether a network is SAM-Med3D or one like it, and not SAM, which is made of the same parts for slices."""
    return isinstance(network, Segmenter) and network.config.encoder.image[0] > 1


def network_of(name: str, need: str) -> Segmenter:
    """A promptable 3D model's network, on the CPU; need: who wants it, for the line that refuses another model."""
    network = getattr(load_model(name, device="cpu", engine=PLAIN), "network", None)
    if not is_of_volumes(network):
        raise BadInput(f"{need} SAM-Med3D or a network like it, and {name} is none")
    return network


methods.add(
    "sam-med3d",
    Method(
        name="sam-med3d",
        title="SAM-Med3D",
        source="Wang et al. 2023, SAM-Med3D",
        complete=sizes_of_init,
        config=ClicksConfig,
        init="",
        plan=plan,
        network=network,
        task=task,
        items=items,
        model=model,
        groups=groups,
    ),
)
