"""3DSAM-adapter, trained, with clicks or without, and the methods of its table: one SAM, other things that learn."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from volsam.data.dataset import Case, Dataset
from volsam.data.preparation import Preparation, Prepared, spacing_of
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.volumes import CropModel
from volsam.recipes.methods import from_sam
from volsam.recipes.methods.method import (
    Method,
    Show,
    Weights,
    WindowedConfig,
    augment_of,
    by_part,
    methods,
    plan_of,
    scaled,
)
from volsam.recipes.methods.slices import SMALL_SAM, require
from volsam.training.items import Items
from volsam.training.losses import sam_adapter_3d as half_and_half
from volsam.training.patches import Patches
from volsam.training.run import Plan
from volsam.training.tasks import LabelTask, PointsTask
from volsam.volume import Volume

if TYPE_CHECKING:
    from volsam.inference.windows import WindowModel
    from volsam.models.features import Features

AXES = "SAR"
"""Depth, height and width of a crop, as most tasks of the paper have them."""
POINTS = (10, 20)
"""Clicks in the object and anywhere, of every step (its train.py)."""


class VolumeConfig(WindowedConfig, frozen=True):
    """Settings of methods with SAM in 3D windows.

    Rate and losses are those of 3DSAM-adapter's code; there the rate falls linearly to a hundredth without a warm-up
    (`schedule=linear`, `warm_up=0`), and gradients without clicks may be longer (`clip_norm=12`).
    """

    max_steps: PositiveInt = 1000
    batch_size: PositiveInt = 1
    learning_rate: PositiveFloat = 4e-4
    weight_decay: NonNegativeFloat = 0.0
    edge: PositiveInt = 64
    """Voxels along the edge of a crop: 128 with clicks and 256 without in the paper."""
    enlarged: PositiveInt = 4
    """How many times a crop is enlarged before SAM's patches of 16 are made: 4 with clicks and 2 without."""
    attention: PositiveInt = 8
    """Tokens along the edge of the windows of attention."""
    out: PositiveInt | None = None
    """Channels of a level of features; None: as many as SAM's neck has, 256 as published. The head's convolutions at
    full size cost by the square of it: 64 is much quicker in small crops."""
    spacing: float | None = None
    """Voxel size in mm, the same along all axes, 1 in the paper; None: so that a median volume has `voxels`."""
    voxels: PositiveInt = 64**3
    """See `spacing`."""


class FullConfig(VolumeConfig, frozen=True):
    """Settings of full fine-tuning."""

    pretrained_rate: NonNegativeFloat = 1.0
    """What part of the rate weights of SAM get; new ones get all of it."""


class ClickConfig(VolumeConfig, frozen=True):
    """Settings of 3DSAM-adapter with clicks."""

    object: str = ""
    """The label that is clicked on; empty: the first."""


def plan(dataset: Dataset, cases: Sequence[Case], config: VolumeConfig) -> Plan:
    """Cubes of equal voxels."""
    if config.out is not None and config.out % 16:
        raise BadInput(f"out must be a multiple of 16, since eight heads share half of it, got {config.out}")
    spacing = config.spacing or float(np.prod(spacing_of(cases, AXES, config.voxels)) ** (1 / 3))
    edge = round(spacing, 4)
    preparation = Preparation(spacing=(edge, edge, edge), axes=AXES, **scaled(config))
    found = plan_of(dataset, preparation, (config.edge,) * 3, config, channels=1)
    if not isinstance(config, ClickConfig):
        return found
    wanted = config.object or found.labels[1]
    if wanted not in found.labels[1:]:
        raise BadInput(f"object={wanted}: the labels of {dataset.name} are {', '.join(found.labels[1:])}")
    place = found.labels.index(wanted)
    return found.model_copy(update={"labels": ("background", wanted), "values": (0, found.values[place])})


def items(
    points: tuple[int, int] | None,
    cases: Sequence[Prepared],
    plan: Plan,
    config: VolumeConfig,
    network: nn.Module,
    device: str,
    show: Show,
) -> Items:
    """Crops of the first channel."""
    return Patches(_first_channel(cases), plan.patch, augment_of(plan, config), config.seed, points=points)


def _first_channel(cases: Sequence[Prepared]) -> list[Prepared]:
    return [Prepared(case.name, case.image[:1], case.label, case.places) for case in cases]


def task(network: nn.Module, plan: Plan, config: VolumeConfig) -> nn.Module:
    """Half Dice, half cross-entropy."""
    return LabelTask(network, half_and_half())


# --- without clicks --------------------------------------------------------------------------------------------------


def automatic(method: from_sam.Method, plan: Plan, config: VolumeConfig, weights: Weights | None) -> nn.Module:
    """The automatic network with the adapters of a method."""
    return from_sam.peft_from_sam(
        require(weights, method),
        method,
        classes=len(plan.labels),
        crop=plan.patch,
        enlarged=config.enlarged,
        window=config.attention,
        out=config.out,
    )


def windows(network: nn.Module, plan: Plan, config: VolumeConfig, name: str, device: str) -> WindowModel:
    """The network in windows."""
    from volsam.inference.windows import WindowModel

    return WindowModel(network, name, plan.labels, plan.values, plan.preparation, plan.patch, plan.channels, device)


# --- with clicks -----------------------------------------------------------------------------------------------------


def clicked(plan: Plan, config: ClickConfig, weights: Weights | None) -> nn.Module:
    """The network that takes clicks."""
    return from_sam.sam_adapter_3d_from_sam(
        require(weights, "3dsam-adapter"),
        crop=plan.patch,
        enlarged=config.enlarged,
        window=config.attention,
        out=config.out,
    )


class TrainedCropModel(CropModel):
    """3DSAM-adapter as it was trained on a dataset: its voxel size, and each volume's own scale."""

    def __init__(self, network: nn.Module, name: str, device: str, plan: Plan) -> None:
        super().__init__(network, name, device, plan.patch[0], (0.0, 0.0), 0.0, 1.0, plan.preparation.axes)
        assert plan.preparation.spacing is not None
        self.spacing = plan.preparation.spacing[0]
        self.preparation = plan.preparation

    @torch.inference_mode()
    def encode(self, volume: Volume, roi: Grid) -> Features:
        """Features of a region of the volume's first channel; beyond the scan is its lowest value, as in training."""
        image = torch.from_numpy(self.preparation.region(volume, roi))[None, None]
        return self.network.encode(image.to(self.device))  # type: ignore[operator]


def _points_task(network: nn.Module, plan: Plan, config: ClickConfig) -> nn.Module:
    return PointsTask(network, half_and_half())


def _crop_model(network: nn.Module, plan: Plan, config: ClickConfig, name: str, device: str) -> TrainedCropModel:
    return TrainedCropModel(network, name, device, plan)


methods.add(
    "3dsam-adapter",
    Method(
        name="3dsam-adapter",
        title="3DSAM-adapter",
        source="Gong et al. 2024, 3DSAM-adapter",
        config=ClickConfig,
        init=SMALL_SAM,
        plan=plan,
        network=clicked,
        task=_points_task,
        items=partial(items, POINTS),
        model=_crop_model,
        groups=by_part,
    ),
)


def of_full(network: nn.Module, config: FullConfig) -> list[tuple[list[nn.Parameter], float]]:
    """The groups of `by_part`, those that hold weights of SAM in two, if these have a rate of their own."""
    if config.pretrained_rate == 1:
        return by_part(network, config)
    old = {weight for name, weight in network.named_parameters() if re.match(from_sam.OF_SAM, name)}
    halves = (
        ([weight for weight in weights if (weight in old) == is_old], config.pretrained_rate if is_old else share)
        for weights, share in by_part(network, config)
        for is_old in (True, False)
    )
    return [(weights, share) for weights, share in halves if weights]


def _add(name: str, method: from_sam.Method, title: str, source: str) -> None:
    build: Callable[[Plan, VolumeConfig, Weights | None], nn.Module] = partial(automatic, method)
    methods.add(
        name,
        Method(
            name=name,
            title=title,
            source=source,
            config=FullConfig if method == "full" else VolumeConfig,
            init=SMALL_SAM,
            plan=plan,
            network=build,
            task=task,
            items=partial(items, None),
            model=windows,
            groups=of_full if method == "full" else by_part,
        ),
    )


TITLES: dict[from_sam.Method, tuple[str, str]] = {
    "3dsam-adapter": ("3DSAM-adapter without clicks", "Gong et al. 2024, 3DSAM-adapter"),
    "full": ("full fine-tuning", "all weights of SAM's encoder, in the setting of 3DSAM-adapter"),
    "adapter": ("Adapter", "Houlsby et al. 2019"),
    "pro-tuning": ("Pro-tuning", "Nie et al. 2022"),
    "st-adapter": ("ST-Adapter", "Pan et al. 2022"),
    "med-tuning": ("Med-tuning", "Shen et al. 2023"),
    "fact": ("FacT", "Jie and Deng 2023"),
    "lora": ("LoRA", "Hu et al. 2022; on SAM: Zhang and Liu 2023, SAMed"),
    "sam-med2d": ("SAM-Med2D's adapter", "Cheng et al. 2023, SAM-Med2D"),
}
assert set(TITLES) == set(get_args(from_sam.Method))
for _method, (_title, _source) in TITLES.items():
    _add("3dsam-adapter-auto" if _method == "3dsam-adapter" else _method, _method, _title, _source)
