"""Networks to compare with, trained from nothing: MONAI's UNet, DynUNet, SwinUNETR, UNETR, MedNeXt, and 3D UX-Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from volsam.data.dataset import Case, Dataset
from volsam.data.preparation import Preparation, Prepared, patch_of, spacing_of
from volsam.errors import BadInput
from volsam.recipes.methods.method import (
    Method,
    Show,
    Weights,
    WindowedConfig,
    all_alike,
    augment_of,
    methods,
    plan_of,
    scaled,
)
from volsam.training.contrast import ContrastTask, Views, projection
from volsam.training.items import Items
from volsam.training.losses import dice_and_cross_entropy
from volsam.training.patches import Patches
from volsam.training.run import Plan
from volsam.training.tasks import LabelTask

if TYPE_CHECKING:
    from volsam.inference.windows import WindowModel


class PlainConfig(WindowedConfig, frozen=True):
    """Settings of a network that is trained from nothing."""

    max_steps: PositiveInt = 2000
    learning_rate: PositiveFloat = 1e-3
    edge: PositiveInt = 64
    """Most voxels of what is looked at along each axis, a multiple of 32."""
    voxels: PositiveInt = 96**3
    """A volume is seen so coarsely that it holds about so many voxels."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm in which volumes are seen; None: as `voxels` says."""
    width: PositiveInt = 16
    """Channels of the first level; deeper ones have more."""


def plan(multiple: int, dataset: Dataset, cases: Sequence[Case], config: PlainConfig) -> Plan:
    """Volumes as coarse as the settings say, with mean 0 and spread 1; patches of whole `multiple`s of voxels."""
    spacing = config.spacing or spacing_of(cases, "RAS", config.voxels)
    patch = patch_of(cases, "RAS", spacing, max(config.edge, multiple), multiple)
    return plan_of(dataset, Preparation(spacing=spacing, **scaled(config)), patch, config)


def items(
    cases: Sequence[Prepared], plan: Plan, config: PlainConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Cubes of the volume."""
    return Patches(cases, plan.patch, augment_of(plan, config), config.seed)


def task(network: nn.Module, plan: Plan, config: PlainConfig) -> nn.Module:
    """Dice and cross-entropy of all classes."""
    return LabelTask(network, dice_and_cross_entropy())


def model(network: nn.Module, plan: Plan, config: PlainConfig, name: str, device: str) -> WindowModel:
    """The network in windows."""
    from volsam.inference.windows import WindowModel

    return WindowModel(network, name, plan.labels, plan.values, plan.preparation, plan.patch, plan.channels, device)


# --- the networks ----------------------------------------------------------------------------------------------------


def unet(plan: Plan, config: PlainConfig) -> nn.Module:
    """A residual U-Net of five levels."""
    from monai.networks.nets.unet import UNet

    widths = [config.width * 2**level for level in range(5)]
    return UNet(
        3, plan.channels, len(plan.labels), widths, (2, 2, 2, 2), num_res_units=2, norm=("instance", {"affine": True})
    )


def dynunet(plan: Plan, config: PlainConfig) -> nn.Module:
    """nnU-Net's topology, without its planner and its training."""
    from monai.networks.nets.dynunet import DynUNet

    widths = [min(320, 2 * config.width * 2**level) for level in range(5)]
    return DynUNet(
        3, plan.channels, len(plan.labels), [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=widths, res_block=False
    )


def swin_unetr(plan: Plan, config: PlainConfig) -> nn.Module:
    """Swin UNETR; the paper has 48 channels (`--set width=48`)."""
    from monai.networks.nets.swin_unetr import SwinUNETR

    return SwinUNETR(plan.channels, len(plan.labels), feature_size=12 * max(1, config.width // 12))


def unetr(plan: Plan, config: PlainConfig) -> nn.Module:
    """UNETR with a smaller transformer than the paper's: 12 times `width` channels (768 with width 64)."""
    from monai.networks.nets.unetr import UNETR

    return UNETR(
        plan.channels,
        len(plan.labels),
        plan.patch,
        feature_size=config.width,
        hidden_size=12 * config.width,
        mlp_dim=48 * config.width,
        num_heads=12,
    )


def mednext(plan: Plan, config: PlainConfig) -> nn.Module:
    """MedNeXt, size S with width 32."""
    from monai.networks.nets.mednext import MedNeXt

    return MedNeXt(3, init_filters=config.width, in_channels=plan.channels, out_channels=len(plan.labels))


def ux_net(plan: Plan, config: PlainConfig) -> nn.Module:
    """3D UX-Net; the paper has 48 channels (`--set width=48`)."""
    from volsam.models.ux_net import UXNet

    return UXNet(plan.channels, len(plan.labels), [config.width * 2**level for level in range(4)])


class _OneOutput(nn.Module):
    """A network of which only the finest of several outputs is wanted."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, image: Tensor) -> Tensor:
        """(b c d h w) -> (b k d h w)."""
        found = self.inner(image)
        return found[0] if isinstance(found, (list, tuple)) else found


def begun(network: nn.Module, weights: Weights | None) -> nn.Module:
    """With the weights of a run of `simclr` wherever it learnt any: on the way down."""
    if weights is not None:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("project.")}
        own = network.state_dict()
        wrong = [name for name, tensor in weights.items() if name not in own or own[name].shape != tensor.shape]
        if wrong:
            raise BadInput(f"--init: {wrong[0]} does not fit this network: give a run of simclr with the same width")
        network.load_state_dict(weights, strict=False)
    return network


def _built(
    make: Callable[[Plan, PlainConfig], nn.Module], plan: Plan, config: PlainConfig, weights: Weights | None
) -> nn.Module:
    return begun(_OneOutput(make(plan, config)), weights)


NETWORKS: dict[str, tuple[str, str, Callable[[Plan, PlainConfig], nn.Module]]] = {
    "unet": ("U-Net", "Ronneberger et al. 2015; MONAI's residual 3D form", unet),
    "dynunet": ("DynUNet", "Isensee et al. 2021, the topology of nnU-Net; MONAI", dynunet),
    "swin-unetr": ("Swin UNETR", "Hatamizadeh et al. 2022; MONAI", swin_unetr),
    "unetr": ("UNETR", "Hatamizadeh et al. 2022; MONAI", unetr),
    "ux-net": ("3D UX-Net", "Lee et al. 2023; rebuilt on MONAI's blocks", ux_net),
    "mednext": ("MedNeXt", "Roy et al. 2023; MONAI", mednext),
}

for _name, (_title, _source, _make) in NETWORKS.items():
    methods.add(
        _name,
        Method(
            name=_name,
            title=_title,
            source=_source,
            config=PlainConfig,
            init="",
            plan=partial(plan, 64 if _name == "swin-unetr" else 32),
            network=partial(_built, _make),
            task=task,
            items=items,
            model=model,
            groups=all_alike,
        ),
    )


# --- before any label ------------------------------------------------------------------------------------------------


class ContrastConfig(PlainConfig, frozen=True):
    """Settings of SimCLR for the UNet."""

    batch_size: PositiveInt = 8
    """Places per step; the more, the harder it is to find a view again."""
    validate_every: float = 2.0
    """Nothing to validate: there are no labels."""


def contrasted(plan: Plan, config: ContrastConfig, weights: Weights | None) -> nn.Module:
    """The UNet; what learns are its levels on the way down."""
    made = begun(_OneOutput(unet(plan, config)), weights)
    made.requires_grad_(False)
    for part in way_down(made):
        part.requires_grad_(True)
    made.add_module("project", projection(16 * config.width))
    return made


def way_down(network: nn.Module) -> list[nn.Module]:
    """The levels of MONAI's UNet from the finest to the deepest, each of which halves the image but the last."""
    level, found = network.inner.model, []  # type: ignore[union-attr]
    while isinstance(level, nn.Sequential):
        found.append(level[0])
        level = level[1].submodule
    return [*found, level]  # type: ignore[list-item]


def contrast_task(network: nn.Module, plan: Plan, config: ContrastConfig) -> nn.Module:
    """Views of the same place are alike, and unlike those of other places in the same batch."""
    if config.batch_size < 2:
        raise BadInput("SimCLR tells the places of a batch apart, so it needs two or more: batch_size=1 is one")
    return ContrastTask(network, nn.Sequential(*way_down(network)), config.accumulate)


def views(
    cases: Sequence[Prepared], plan: Plan, config: ContrastConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Two views of every patch."""
    return Views(cases, plan.patch, augment_of(plan, config), config.seed)


methods.add(
    "simclr",
    Method(
        name="simclr",
        title="SimCLR, to begin a UNet with",
        source="Chen et al. 2020; AutoSAM's comparison",
        config=ContrastConfig,
        init="",
        plan=partial(plan, 32),
        network=contrasted,
        task=contrast_task,
        items=views,
        model=model,
        groups=all_alike,
        labelled=False,
    ),
)
