"""`volsam train adapt`: volsam-s made automatic for the classes of a dataset, in minutes on a laptop.

Small adapters behind each level of its encoder, a decoder that goes on learning, and a new head; the rest is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt
from torch import nn

from volsam.adapters.freeze import train_only
from volsam.adapters.levels import add_level_adapters
from volsam.data.dataset import Case, Dataset
from volsam.data.preparation import Preparation, Prepared, patch_of, spacing_of
from volsam.models.dense_classes import DenseClassNet
from volsam.models.dense_prompt import DensePromptNet
from volsam.recipes.method import Method, Show, Weights, augment_of, methods, plan_of
from volsam.recipes.recipe import EMBEDDED
from volsam.training.config import TrainConfig
from volsam.training.items import Items, Patches
from volsam.training.losses import dice_and_cross_entropy
from volsam.training.run import Plan
from volsam.training.tasks import LabelTask

if TYPE_CHECKING:
    from volsam.inference.windows import WindowModel

_DECODER = r"coarse|last|base\.(skips|prompts|blocks|narrow|fine)"
_PROMPTS_ONLY = r"(?!base\.(quality|keys|coarse|fine\.3))"
TUNED = {
    "adapters": rf"{_PROMPTS_ONLY}({_DECODER}|base\.down\d\.\d+\.(down|mix|up|norm))",
    "decoder": rf"{_PROMPTS_ONLY}({_DECODER})",
    "all": rf"{_PROMPTS_ONLY}",
}
"""Names of the weights that learn; what is left out of all is what only prompts need."""


class AdaptConfig(TrainConfig, frozen=True):
    """Settings of `volsam train adapt`."""

    max_steps: PositiveInt = 400
    learning_rate: float = 2e-3
    pretrained_rate: float = 0.5
    average: float = 0.98
    tune: Literal["adapters", "decoder", "all"] = "all"
    """adapters: those, the decoder and the head; decoder: without adapters; all: every weight."""
    edge: PositiveInt = 64
    """Most voxels of what is looked at along each axis, a multiple of 16."""
    voxels: PositiveInt = 80**3
    """A volume is seen so coarsely that it holds about so many voxels."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm in which volumes are seen; None: as `voxels` says."""


def plan(dataset: Dataset, cases: Sequence[Case], config: AdaptConfig) -> Plan:
    """Volumes as coarse as the settings say."""
    spacing = config.spacing or spacing_of(cases, "RAS", config.voxels)
    preparation = Preparation(spacing=spacing, scaling="unclipped")
    return plan_of(dataset, preparation, patch_of(cases, "RAS", spacing, config.edge, 16), config)


def network(plan: Plan, config: AdaptConfig, weights: Weights | None) -> nn.Module:
    """volsam-s, or one trained from nothing, with a head for every class."""
    base = DensePromptNet()
    if weights is not None:
        base.load_state_dict(weights)
    if config.tune == "adapters":
        add_level_adapters(base)
    made = DenseClassNet(base, len(plan.labels))
    train_only(made, TUNED[config.tune])
    return made


def groups(network: nn.Module, config: AdaptConfig) -> list[tuple[list[nn.Parameter], float]]:
    """The new head and new adapters at the full rate, what volsam-s brought at a part of it."""
    new: list[nn.Parameter] = []
    old: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_new = name.startswith(("coarse", "last")) or ".up." in name or ".down." in name or ".mix." in name
        (new if is_new else old).append(parameter)
    return [(new, 1.0), (old, config.pretrained_rate)]


def task(network: nn.Module, plan: Plan, config: AdaptConfig) -> nn.Module:
    """Dice and cross-entropy of all classes."""
    return LabelTask(network, dice_and_cross_entropy())


def items(
    cases: Sequence[Prepared], plan: Plan, config: AdaptConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Cubes, each shown as volsam-s sees a region."""
    return Patches(cases, plan.patch, augment_of(plan, config), config.seed, by_region=True)


def model(network: nn.Module, plan: Plan, config: AdaptConfig, name: str, device: str) -> WindowModel:
    """The network in windows."""
    from volsam.inference.windows import WindowModel

    return WindowModel(
        network, name, plan.labels, plan.values, plan.preparation, plan.patch, plan.channels, device, by_region=True
    )


methods.add(
    "adapt",
    Method(
        name="adapt",
        title="volsam-s, adapted",
        source="this project",
        config=AdaptConfig,
        init=EMBEDDED,
        plan=plan,
        network=network,
        task=task,
        items=items,
        model=model,
        groups=groups,
    ),
)
