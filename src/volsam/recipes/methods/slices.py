"""AutoSAM and MA-SAM, trained: a 2D SAM made automatic for the classes of a dataset, by slices or stacks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from volsam.data.dataset import Case, Dataset
from volsam.data.io import read_grid
from volsam.data.preparation import Preparation, Prepared
from volsam.errors import BadInput
from volsam.inference.slices import AXES, plane_of
from volsam.recipes.methods.from_sam import auto_sam_from_sam, ma_sam_from_sam
from volsam.recipes.methods.method import Method, Show, Weights, all_alike, augment_of, methods, plan_of
from volsam.training.config import Percent, TrainConfig
from volsam.training.items import Items
from volsam.training.losses import auto_sam as auto_sam_loss
from volsam.training.losses import ma_sam as ma_sam_loss
from volsam.training.run import Plan
from volsam.training.stacks import Embedded, Stacks
from volsam.training.tasks import BoxTask, HeadTask, LabelTask

if TYPE_CHECKING:
    from volsam.inference.automatic import Limits, StackModel
    from volsam.inference.box_stacks import BoxStackModel

SMALL_SAM = "sam-mini"
"""What is begun with where no other SAM is named."""

PUBLISHED_CHANNELS = 384
"""Inside MA-SAM's adapters, whatever the size of its encoder."""


class SliceConfig(TrainConfig, frozen=True):
    """Settings of methods that look at slices."""

    plane: Literal["auto", "axial", "coronal", "sagittal"] = "auto"
    """Of the slices; auto: the one in which the first case was taken."""
    edge: PositiveInt = 256
    """Pixels along both sides of a slice, a multiple of 16: 256 for sam-mini, 512 in MA-SAM, 1024 in AutoSAM."""
    window: tuple[float, float] | None = None
    """Intensities, such as HU, between which all lies after clipping; None: each volume's `percentiles`."""
    percentiles: tuple[Percent, Percent] = (0.5, 99.5)
    """Between which a volume is clipped where there is no window; [0,99] for MA-SAM's prostates."""


class AutoSamConfig(SliceConfig, frozen=True):
    """Settings of AutoSAM; rate and batch are those of its code, the fall of the rate is not."""

    max_steps: PositiveInt = 2000
    learning_rate: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 0.0
    batch_size: PositiveInt = 4
    head: Literal["vit", "cnn", "linear"] = "vit"
    """SAM's mask decoder with three tokens a class, a convolutional decoder, or the smallest one."""
    versions: PositiveInt = 4
    """How many versions of every slice the frozen encoder sees: as it is, and augmented. More cost time before, and
    memory."""


class MaSamConfig(SliceConfig, frozen=True):
    """Settings of MA-SAM; rate, decay and the fall of the rate are those of its code.

    There the rate rises for 250 steps (`warm_up=250`), gradients are not clipped (`clip_norm=null`), and of 400 epochs
    that are planned 300 are made.
    """

    max_steps: PositiveInt = 2000
    learning_rate: PositiveFloat = 8e-4
    weight_decay: NonNegativeFloat = 0.1
    schedule: Literal["constant", "linear", "polynomial", "cosine"] = "polynomial"
    power: PositiveFloat = 7.0
    least: NonNegativeFloat = 0.0
    slices: PositiveInt = 5
    """Of a stack, an odd number."""
    rank: PositiveInt = 32
    """Of the factors."""
    channels: PositiveInt | None = None
    """Inside an adapter; None: 384 as published, or half of the encoder's where that is less."""


def plan(dataset: Dataset, cases: Sequence[Case], config: SliceConfig) -> Plan:
    """Slices at their own size, of one plane."""
    if config.edge % 16:
        raise BadInput(f"edge must be a multiple of 16, the patch of SAM, got {config.edge}")
    plane = plane_of(read_grid(cases[0].images[0])) if config.plane == "auto" else config.plane
    slices = config.slices if isinstance(config, MaSamConfig) else 1
    if not config.percentiles[0] < config.percentiles[1]:
        raise BadInput(f"percentiles={list(config.percentiles)} is not valid: the lower one comes first")
    preparation = Preparation(
        axes=AXES[plane],
        scaling="zscore" if config.window is None else "window",
        window=config.window,
        percentiles=config.percentiles,
    )
    channels = 3 if in_colour(dataset.channels) else 1
    return plan_of(dataset, preparation, (slices, config.edge, config.edge), config, channels)


def in_colour(channels: Sequence[str]) -> bool:
    """Whether the channels of a dataset are the colours that SAM was made for: red, green, blue, or R, G, B."""
    return [name[:1].lower() for name in channels] == ["r", "g", "b"]


def stacks(cases: Sequence[Prepared], plan: Plan, config: SliceConfig) -> Stacks:
    """Slices, or stacks of them, drawn anew for every step."""
    slices, edge, _ = plan.patch
    return Stacks(cases, slices, edge, augment_of(plan, config, slices=True), config.seed, channels=plan.channels)


def model(network: nn.Module, plan: Plan, config: SliceConfig, name: str, device: str) -> StackModel:
    """The network, slice by slice or stack by stack."""
    from volsam.inference.automatic import StackModel, StackStyle

    slices, edge, _ = plan.patch
    limits = limits_of(config)
    plane = next(plane for plane, axes in AXES.items() if axes == plan.preparation.axes)
    network.to(device).eval()
    style = StackStyle(slices, limits, coloured=plan.channels == 3)
    return StackModel(network, name, plan.labels, style, edge, device, plan.values, plane)


def limits_of(config: SliceConfig) -> Limits:
    """Between which intensities a volume is clipped."""
    from volsam.inference.automatic import between_percentiles, window

    return between_percentiles(*config.percentiles) if config.window is None else window(*config.window)


def require(weights: Weights | None, name: str) -> Weights:
    """Refuse to begin from nothing what is made of SAM."""
    if weights is None:
        raise BadInput(f"{name} is made of a SAM: give its weights by --init, or leave --init out for {SMALL_SAM}")
    return weights


# --- AutoSAM ---------------------------------------------------------------------------------------------------------


def auto_sam(plan: Plan, config: AutoSamConfig, weights: Weights | None) -> nn.Module:
    """A frozen encoder and a head that learns."""
    weights = require(weights, "autosam")
    return auto_sam_from_sam(weights, classes=len(plan.labels), head=config.head, image=plan.patch[1])


def embedded(
    cases: Sequence[Prepared], plan: Plan, config: AutoSamConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Every slice as the frozen encoder sees it, encoded once."""
    network.eval()
    return Embedded(
        stacks(cases, plan, config),
        lambda image: network.encode(image.to(device)),  # type: ignore[operator]
        config.versions if config.augment != "none" else 1,
        show,
    )


methods.add(
    "autosam",
    Method(
        name="autosam",
        title="AutoSAM",
        source="Hu et al. 2023, AutoSAM",
        config=AutoSamConfig,
        init=SMALL_SAM,
        plan=plan,
        network=auto_sam,
        task=lambda network, plan, config: HeadTask(network, auto_sam_loss()),
        items=embedded,
        model=model,
        groups=all_alike,
        keeps=r"mask_head\.quality",
    ),
)


# --- MA-SAM ----------------------------------------------------------------------------------------------------------


def ma_sam(plan: Plan, config: MaSamConfig, weights: Weights | None, classes: int | None = None) -> nn.Module:
    """Factors, adapters, prompt encoder and mask head learn; classes: those of the plan, if nothing is said."""
    weights = require(weights, "ma-sam")
    if config.slices % 2 == 0:
        raise BadInput(f"slices must be odd, so that one is in the middle, got {config.slices}")
    width = weights["image_encoder.pos_embed"].shape[-1] if "image_encoder.pos_embed" in weights else 768
    channels = config.channels or min(PUBLISHED_CHANNELS, width // 2)
    return ma_sam_from_sam(
        weights, classes=classes or len(plan.labels), image=plan.patch[1], rank=config.rank, channels=channels
    )


methods.add(
    "ma-sam",
    Method(
        name="ma-sam",
        title="MA-SAM",
        source="Chen et al. 2024, MA-SAM, Medical Image Analysis 98:103310",
        config=MaSamConfig,
        init=SMALL_SAM,
        plan=plan,
        network=ma_sam,
        task=lambda network, plan, config: LabelTask(network, ma_sam_loss()),
        items=lambda cases, plan, config, network, device, show: stacks(cases, plan, config),
        model=model,
        groups=all_alike,
    ),
)


# --- MA-SAM with a box -----------------------------------------------------------------------------------------------


def box_plan(dataset: Dataset, cases: Sequence[Case], config: MaSamConfig) -> Plan:
    """Slices of the first channel."""
    return plan(dataset, cases, config).model_copy(update={"channels": 1})


def in_boxes(
    cases: Sequence[Prepared], plan: Plan, config: MaSamConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Stacks of slices, each about one object and with the rectangle of its 3D box."""
    slices, edge, _ = plan.patch
    return Stacks(cases, slices, edge, augment_of(plan, config, slices=True), config.seed, boxed=True)


def box_model(network: nn.Module, plan: Plan, config: MaSamConfig, name: str, device: str) -> BoxStackModel:
    """The network behind a session that takes boxes."""
    from volsam.inference.box_stacks import BoxStackModel

    network.to(device).eval()
    return BoxStackModel(network, name, plan.patch[0], limits_of(config), device)  # type: ignore[arg-type]


methods.add(
    "ma-sam-box",
    Method(
        name="ma-sam-box",
        title="MA-SAM with a box",
        source="Chen et al. 2024, MA-SAM, Medical Image Analysis 98:103310",
        config=MaSamConfig,
        init=SMALL_SAM,
        plan=box_plan,
        network=lambda plan, config, weights: ma_sam(plan, config, weights, classes=2),
        task=lambda network, plan, config: BoxTask(network, ma_sam_loss()),
        items=in_boxes,
        model=box_model,
        groups=all_alike,
    ),
)
