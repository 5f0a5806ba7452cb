"""SAM-Med3D trained from nothing, and what networks of its kind share when they learn from clicks.

New networks are as SAM-Med3D's, without the quirks of its released weights: the position bias on its own axes, one code
for clicks and image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from volsam.data.dataset import Case, Dataset
from volsam.data.preparation import Preparation, Prepared
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
from volsam.training.items import Items, Patches
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
    sizes: dict[str, Any] | None = None
    """All sizes of the network, in place of those above; `volsam distill` sets them."""


def plan(dataset: Dataset, cases: Sequence[Case], config: ClicksConfig) -> Plan:
    """Cubes of equal voxels, of the first channel."""
    edge = segmenter_config(config).encoder.image
    preparation = Preparation(spacing=(config.spacing,) * 3)
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
    """Settings completed by what the weights to begin with tell: their sizes, and the voxels they were trained on."""
    if init in (None, "", "none"):
        return dict(given)
    sizes = network_of(str(init), f"--init {init}: such training begins with").config
    return {"spacing": ClickModel.spacing, **given, "sizes": sizes.model_dump(mode="json")}


def task(network: nn.Module, plan: Plan, config: ClicksConfig) -> nn.Module:
    """Simulated conversations."""
    assert isinstance(network, Segmenter)
    return ClickTask(network, config.turns)


def items(
    cases: Sequence[Prepared], plan: Plan, config: ClicksConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Cubes around one object each."""
    first = [Prepared(case.name, case.image[:1], case.label, case.places) for case in cases]
    return Patches(first, plan.patch, augment_of(plan, config), config.seed, one_object=True)


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
        image = torch.from_numpy(self.preparation.region(volume, roi))[None, None]
        return self.network.encode(image.to(self.device))


def model(network: nn.Module, plan: Plan, config: ClicksConfig, name: str, device: str) -> TrainedClickModel:
    """The network behind a session."""
    assert isinstance(network, Segmenter)
    return TrainedClickModel(network, name, device, plan)


# --- a network that is there ------------------------------------------------------------------------------------------


def network_of(name: str, need: str) -> Segmenter:
    """A promptable 3D model's network, on the CPU; need: who wants it, for the line that refuses another model."""
    network = getattr(load_model(name, device="cpu", engine=PLAIN), "network", None)
    if not isinstance(network, Segmenter) or network.config.encoder.image[0] == 1:
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
