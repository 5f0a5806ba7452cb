"""Methods that can be trained: what each makes of a dataset, which network it trains, on what, and what comes out.

`volsam train` knows a method by its name and nothing else; each family of methods is one module of `volsam.recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import PositiveFloat
from torch import Tensor, nn

from volsam.data.dataset import Case, Dataset
from volsam.data.preparation import Preparation, Prepared
from volsam.errors import BadInput
from volsam.registry import Registry
from volsam.training.augment import Augment
from volsam.training.config import Config, TrainConfig
from volsam.training.items import Items
from volsam.training.run import Plan

# So many volumes are few: a network would learn them by heart, see benchmarks/adaptation/log.md.
FEW = 3

if TYPE_CHECKING:
    from volsam.inference.automatic import AutomaticModel
    from volsam.inference.session import Model

    Trained: TypeAlias = AutomaticModel | Model

Weights: TypeAlias = Mapping[str, Tensor]
Show: TypeAlias = Callable[[Sequence[int]], Iterable[int]]


def augmented(config: Config, cases: int) -> Config:
    """Settings whose augmentation suits so many training cases."""
    if config.augment != "auto":
        return config
    return config.model_copy(update={"augment": "strong" if cases <= FEW else "full"})


@dataclass(frozen=True)
class Method:
    """One way to train.

    name: what a user types; title: what it is called in its paper; source: the paper; config: the settings it has,
    with its own defaults; init: the weights it begins with where the user names none, a model's name or "" for none;
    plan: what it makes of a dataset and its training cases; network: the network, with `requires_grad` set as the
    method has it, from the plan, the settings and the weights to begin with; task: what is learnt from a batch;
    items: what the network is shown; groups: which weights learn, and at which part of the rate; model: the trained
    network behind the interface of `volsam predict` or of a session; complete: settings with what the weights to begin
    with add to them; settled: settings, none of them `auto`, for so many training cases; begin: what else a new run
    takes over before its first step; teacher: the name of the model that is imitated, "" for none; recalled: settings
    of a stored run, before its network is built again, which a method may refuse;
    keeps: a pattern of names of weights that are drawn anew and do not learn, so that they must be stored all the same;
    labelled: whether it learns from labels; if not, cases need none, and none is read.
    """

    name: str
    title: str
    source: str
    config: type[TrainConfig]
    init: str
    plan: Callable[[Dataset, Sequence[Case], Any], Plan]
    network: Callable[[Plan, Any, Weights | None], nn.Module]
    task: Callable[[nn.Module, Plan, Any], nn.Module]
    items: Callable[[Sequence[Prepared], Plan, Any, nn.Module, str, Show], Items]
    model: Callable[[nn.Module, Plan, Any, str, str], Any]
    groups: Callable[[nn.Module, Any], list[tuple[list[nn.Parameter], float]]]
    complete: Callable[[Mapping[str, Any], str | None], dict[str, Any]] = lambda given, init: dict(given)
    settled: Callable[[Any, int], Any] = augmented
    begin: Callable[[nn.Module, Any], None] = lambda network, config: None
    teacher: Callable[[Any], str] = lambda config: ""
    recalled: Callable[[Any], Any] = lambda config: config
    keeps: str = ""
    labelled: bool = True


methods: Registry[Method] = Registry("method")


def load_methods() -> Registry[Method]:
    """All methods: importing a recipe registers its own."""
    import volsam.recipes.methods.adapt
    import volsam.recipes.methods.clicks
    import volsam.recipes.methods.distillation
    import volsam.recipes.methods.from_checkout
    import volsam.recipes.methods.plain_networks
    import volsam.recipes.methods.slices
    import volsam.recipes.methods.volumes  # noqa: F401

    return methods


# --- what several methods share --------------------------------------------------------------------------------------


def all_alike(network: nn.Module, _: Any) -> list[tuple[list[nn.Parameter], float]]:
    """One group of everything that learns."""
    return [([parameter for parameter in network.parameters() if parameter.requires_grad], 1.0)]


def by_part(network: nn.Module, _: Any) -> list[tuple[list[nn.Parameter], float]]:
    """A group for each part that learns, such as encoder, prompt encoder and head: each has a longest gradient."""
    parts = ([weight for weight in part.parameters() if weight.requires_grad] for part in network.children())
    return [(weights, 1.0) for weights in parts if weights]


def classes_of(dataset: Dataset) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and values of the classes, background first."""
    objects = sorted(dataset.objects.items(), key=lambda item: item[1])
    return ("background", *(name for name, _ in objects)), (0, *(value for _, value in objects))


class WindowedConfig(TrainConfig, frozen=True):
    """Settings of methods that may bring all volumes to one scale, as is done with CT."""

    window: tuple[float, float] | None = None
    """Intensities, such as HU, between which all lies after clipping; None: each volume's percentiles 0.5 and 99.5, and
    each volume's own mean and spread."""
    mean: float | None = None
    """Of all training voxels in the window, which is taken off; None: the middle of the window."""
    spread: PositiveFloat | None = None
    """Of the same, by which is divided; None: half of the window."""


def scaled(config: WindowedConfig) -> dict[str, Any]:
    """How a preparation scales intensities."""
    if config.window is None:
        if config.mean is not None or config.spread is not None:
            raise BadInput("mean and spread are of a window: set window=[LOW,HIGH] as well")
        return {}
    low, high = config.window
    if low >= high:
        raise BadInput(f"window=[{low:g},{high:g}] is not valid: the lower end comes first")
    mean = (low + high) / 2 if config.mean is None else config.mean
    spread = (high - low) / 2 if config.spread is None else config.spread
    return {"scaling": "window", "window": config.window, "mean": mean, "spread": spread}


def flippable(labels: Iterable[str]) -> bool:
    """Whether a mirror image still has the right labels."""
    return not any(word in label.lower() for label in labels for word in ("left", "right"))


def plan_of(
    dataset: Dataset,
    preparation: Preparation,
    patch: tuple[int, int, int],
    config: TrainConfig,
    channels: int | None = None,
) -> Plan:
    """A plan with the classes of a dataset, and all of its channels or the first ones."""
    labels, values = classes_of(dataset)
    return Plan(
        labels=labels,
        values=values,
        channels=channels or len(dataset.channels),
        preparation=preparation,
        patch=patch,
        flip=flippable((*labels, *dataset.regions)) if config.flip is None else config.flip,
        ignored=dataset.ignored,
    )


def augment_of(plan: Plan, config: TrainConfig, *, slices: bool = False) -> Augment:
    """What items of a plan may be changed to, by settings that are settled."""
    assert config.augment != "auto"
    axes = (1, 2) if slices else (0, 1, 2)
    return Augment(config.augment, axes if plan.flip else (), (0,) if slices else (0, 1, 2))


def cache_folder() -> Path:
    """Where prepared cases are kept."""
    from volsam.recipes.store import home

    return home() / "prepared"
