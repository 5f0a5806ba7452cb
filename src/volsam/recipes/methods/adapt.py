"""volsam-s adapted to a dataset, in minutes on a laptop: `adapt` makes it automatic, `adapt-clicks` a better listener.

`adapt` has a new head for the classes of the dataset, `adapt-clicks` keeps the head that answers prompts. All weights
learn, or the decoder, or that and small adapters behind each level of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from volsam.adapters.freeze import train_only
from volsam.adapters.levels import add_level_adapters
from volsam.data.dataset import Case, Dataset
from volsam.data.preparation import Preparation, Prepared, patch_of, spacing_of
from volsam.data.preprocess import normalise
from volsam.errors import BadInput
from volsam.models.dense_classes import DenseClassNet
from volsam.models.dense_prompt import DensePromptNet
from volsam.recipes.methods.method import FEW, Method, Show, Weights, all_alike, augment_of, augmented, methods, plan_of
from volsam.recipes.recipe import EMBEDDED
from volsam.training.augment import Strength
from volsam.training.config import Decay, Share, TrainConfig
from volsam.training.dense_clicks import DenseClickTask
from volsam.training.items import Items
from volsam.training.losses import dice_and_cross_entropy
from volsam.training.patches import Patches
from volsam.training.run import Plan
from volsam.training.tasks import LabelTask

if TYPE_CHECKING:
    from volsam.inference.model import DensePromptModel
    from volsam.inference.windows import WindowModel

_DECODER = r"coarse|last|place|(base\.)?(skips|prompts|blocks|narrow|fine|quality)"
_PROMPTS_ONLY = r"(?!base\.(quality|keys|coarse|fine\.3))"
TUNED = {
    "adapters": rf"{_PROMPTS_ONLY}({_DECODER}|(base\.)?down\d\.\d+\.(down|mix|up|norm))",
    "decoder": rf"{_PROMPTS_ONLY}({_DECODER})",
    "all": rf"{_PROMPTS_ONLY}",
}
"""Names of the weights that learn; what is left out where there is a head for classes is what only prompts need."""

NEW = ("coarse", "last", "place")
"""How names of weights begin that volsam-s did not bring, adapters aside."""


class AdaptedConfig(TrainConfig, frozen=True):
    """Settings of both."""

    max_steps: PositiveInt = 400
    average: Decay = 0.98
    tune: Literal["adapters", "decoder", "all", "auto"] = "all"
    """adapters: those, the decoder and the head; decoder: without adapters; all: every weight; auto: adapters for up to
    three volumes, else all."""
    edge: PositiveInt | Literal["auto"] = 64
    """Most voxels of what is looked at along each axis, a multiple of 16; auto: 96 for up to three volumes, else 64."""
    voxels: PositiveInt | Literal["auto"] = 80**3
    """A volume is seen so coarsely that it holds about so many voxels; auto: 52³ for up to three volumes, which are
    then seen whole, else 80³."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm in which volumes are seen; None: as `voxels` says."""


Adapted = TypeVar("Adapted", bound=AdaptedConfig)


class AdaptConfig(AdaptedConfig, frozen=True):
    """Settings of `volsam train adapt`."""

    learning_rate: PositiveFloat = 2e-3
    pretrained_rate: NonNegativeFloat = 0.5
    """What part of the rate weights of volsam-s get; new ones get all of it."""
    augment: Strength | Literal["auto"] = "auto"
    tune: Literal["adapters", "decoder", "all", "auto"] = "auto"
    edge: PositiveInt | Literal["auto"] = "auto"
    voxels: PositiveInt | Literal["auto"] = "auto"
    placed: bool = True
    """Whether the network is told where every voxel lies in the volume; false for scans that begin just anywhere."""


class AdaptClicksConfig(AdaptedConfig, frozen=True):
    """Settings of `volsam train adapt-clicks`."""

    learning_rate: PositiveFloat = 5e-4
    early: Share = 0.25
    """Part of the schedule in which simulated conversations are short."""


FOR_FEW: dict[str, Any] = {"tune": "adapters", "edge": 96, "voxels": 52**3}
FOR_MANY: dict[str, Any] = {"tune": "all", "edge": 64, "voxels": 80**3}


def settled(config: Adapted, cases: int) -> Adapted:
    """Settings that suit so many training cases: of few, the network is not to learn more than it must."""
    suited = FOR_FEW if cases <= FEW else FOR_MANY
    wanted = {name: value for name, value in suited.items() if getattr(config, name) == "auto"}
    return augmented(config.model_copy(update=wanted), cases)


def plan(dataset: Dataset, cases: Sequence[Case], config: AdaptedConfig) -> Plan:
    """Volumes as coarse as the settings say."""
    assert config.edge != "auto"
    assert config.voxels != "auto"
    spacing = config.spacing or spacing_of(cases, "RAS", config.voxels)
    preparation = Preparation(spacing=spacing, scaling="unclipped")
    return plan_of(dataset, preparation, patch_of(cases, "RAS", spacing, config.edge, 16), config, channels=1)


def _begun(config: AdaptedConfig, weights: Weights | None) -> DensePromptNet:
    """volsam-s, or one that begins from nothing, with adapters if they are wanted."""
    base = DensePromptNet()
    if weights is not None:
        wanted = {name: value.shape for name, value in base.state_dict().items()}
        strange = sorted(
            name for name in {*wanted, *weights} if wanted.get(name) != getattr(weights.get(name), "shape", None)
        )
        if strange:
            raise BadInput(
                f"the weights to begin with are not those of {EMBEDDED}, {len(strange)} differ, such as {strange[0]}: "
                "leave --init out, or give a run of adapt-clicks with tune=all"
            )
        base.load_state_dict(weights)
    if config.tune == "adapters":
        add_level_adapters(base)
    return base


def _is_new(name: str) -> bool:
    """Whether a weight is an adapter's."""
    return ".up." in name or ".down." in name or ".mix." in name


# --- without prompts -------------------------------------------------------------------------------------------------


def network(plan: Plan, config: AdaptConfig, weights: Weights | None) -> nn.Module:
    """The network with a head for every class."""
    made = DenseClassNet(_begun(config, weights), len(plan.labels), placed=config.placed)
    train_only(made, TUNED[config.tune])
    return made


def groups(network: nn.Module, config: AdaptConfig) -> list[tuple[list[nn.Parameter], float]]:
    """The new head and new adapters at the full rate, what volsam-s brought at a part of it."""
    new: list[nn.Parameter] = []
    old: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (new if name.startswith(NEW) or _is_new(name) else old).append(parameter)
    return [(new, 1.0), (old, config.pretrained_rate)]


def task(network: nn.Module, plan: Plan, config: AdaptConfig) -> nn.Module:
    """Dice and cross-entropy of all classes."""
    return LabelTask(network, dice_and_cross_entropy())


def items(
    cases: Sequence[Prepared], plan: Plan, config: AdaptConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Cubes, each shown as volsam-s sees a region."""
    augment = augment_of(plan, config)
    return Patches(cases, plan.patch, augment, config.seed, seen=normalise, placed=config.placed)


def model(network: nn.Module, plan: Plan, config: AdaptConfig, name: str, device: str) -> WindowModel:
    """The network in windows."""
    from volsam.inference.windows import WindowModel

    return WindowModel(
        network,
        name,
        plan.labels,
        plan.values,
        plan.preparation,
        plan.patch,
        plan.channels,
        device,
        by_region=True,
        placed=config.placed,
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
        settled=settled,
    ),
)


# --- with prompts ----------------------------------------------------------------------------------------------------


def prompted(plan: Plan, config: AdaptClicksConfig, weights: Weights | None) -> nn.Module:
    """The network as it is, prompts included."""
    made = _begun(config, weights)
    train_only(made, "" if config.tune == "all" else TUNED[config.tune].removeprefix(_PROMPTS_ONLY))
    return made


def click_task(network: nn.Module, plan: Plan, config: AdaptClicksConfig) -> nn.Module:
    """Simulated conversations, as volsam-s itself has learnt."""
    assert isinstance(network, DensePromptNet)
    return DenseClickTask(network, config.early)


def objects(
    cases: Sequence[Prepared], plan: Plan, config: AdaptClicksConfig, network: nn.Module, device: str, show: Show
) -> Items:
    """Cubes around one object each, shown as volsam-s sees a region."""
    return Patches(cases, plan.patch, augment_of(plan, config), config.seed, seen=normalise, one_object=True)


def click_model(network: nn.Module, plan: Plan, config: AdaptClicksConfig, name: str, device: str) -> DensePromptModel:
    """The network behind a session."""
    from volsam.inference.model import DensePromptModel

    assert isinstance(network, DensePromptNet)
    return DensePromptModel(network, name, device)


methods.add(
    "adapt-clicks",
    Method(
        name="adapt-clicks",
        title="volsam-s, adapted, with prompts",
        source="this project",
        config=AdaptClicksConfig,
        init=EMBEDDED,
        plan=plan,
        network=prompted,
        task=click_task,
        items=objects,
        model=click_model,
        groups=all_alike,
        settled=settled,
    ),
)
