"""Published networks as families of weights: recognised by names and shapes, built to fit, filled strictly.

A checkpoint, a manifest of one, and a fixture of `volsam models verify` say the same thing in the same way: which
weights there are, under which original names, in which shapes. From that a `Family` knows whether they are its own and
which network they need. Each family is described by one module of `volsam.recipes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from volsam.errors import BadInput
from volsam.registry import Registry

if TYPE_CHECKING:
    from volsam.inference.automatic import AutomaticModel
    from volsam.inference.session import Model
    from volsam.recipes.families.fixture import Fixture


@dataclass(frozen=True)
class Described:
    """What is known of a network before it is built.

    where: the file that says so, for messages; shapes: of its weights, under their original names; facts: what shapes
    do not tell, such as the number of attention heads of a mask head.
    """

    where: str
    shapes: Mapping[str, tuple[int, ...]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, where: str, weights: Mapping[str, Tensor]) -> Described:
        """What weights tell by their shapes alone."""
        return cls(where, {name: tuple(weight.shape) for name, weight in weights.items()})

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number among the facts."""
        value = self.facts.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BadInput(f'{self.where}: "{name}" must be a whole number, got {value!r}: repair the description')
        return value

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a weight of the original; refused if it has not `rank` axes."""
        shape = self.shapes.get(name, ())
        if len(shape) != rank:
            raise BadInput(f'{self.where}: "{name}" must have {rank} axes, got shape {list(shape)}')
        return shape

    def rows(self, name: str) -> int | None:
        """The length of a weight of the original, None where there is no such weight."""
        return self.shapes.get(name, (None,))[0]

    def count(self, prefix: str) -> int:
        """How many numbered parts follow a prefix among the names."""
        return len({name[len(prefix) :].split(".")[0] for name in self.shapes if name.startswith(prefix)})


@dataclass(frozen=True)
class Family:
    """A published network.

    name: what a user types and a card says; title: what it is called in its paper; source: the paper; licence: of the
    released weights; prompts: kinds it takes, none for an automatic one; recognises: whether described weights are of
    this family; build: the network they need, with weights of its own; convert: tensors from original names and ranks
    to ours, unknown names kept as they are; compute: every array that a fixture records; engine: a filled network, or
    what `volsam.recipes.engine` made of it, behind the interface of a session, None for an automatic family; automatic:
    the same of one that labels volumes by itself, None for a promptable family.
    """

    name: str
    title: str
    source: str
    licence: str
    prompts: tuple[str, ...]
    recognises: Callable[[Described], bool]
    build: Callable[[Described], nn.Module]
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    compute: Callable[[nn.Module, Fixture], Mapping[str, Tensor]]
    engine: Callable[[Any, str, str], Model] | None = None
    automatic: Callable[[Any, str, str], AutomaticModel] | None = None


families: Registry[Family] = Registry("family of networks")


def load_families() -> Registry[Family]:
    """All families: importing a recipe registers it."""
    import volsam.recipes.families.auto_sam
    import volsam.recipes.families.fast_sam_3d
    import volsam.recipes.families.ma_sam
    import volsam.recipes.families.sam
    import volsam.recipes.families.sam_adapter_3d
    import volsam.recipes.families.sam_med2d
    import volsam.recipes.families.sam_med3d  # noqa: F401

    return families


def family_of(described: Described, known: Sequence[Family] | None = None) -> Family:
    """The family that described weights belong to; refused with the known ones if there is none."""
    candidates = [load_families()[name] for name in load_families()] if known is None else known
    for family in candidates:
        if family.recognises(described):
            return family
    titles = ", ".join(family.title for family in candidates)
    raise BadInput(f"{described.where}: its weight names and shapes fit no network known here; known are {titles}")


def built(family: Family, described: Described) -> nn.Module:
    """The network of a family for described weights; descriptions that contradict themselves are refused."""
    try:
        return family.build(described)
    except BadInput:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"{described.where}: its sizes do not fit {family.title} ({reason})") from error


def fill(network: nn.Module, family: Family, tensors: Mapping[str, Tensor], where: str) -> None:
    """Give a network the weights of an original; refused unless names and shapes are exactly its own."""
    converted = family.convert(tensors)
    wrong = differences(network, converted)
    if wrong:
        raise BadInput(
            f"{where}: not the weights of the {family.title} they describe ({len(wrong)} differ, first: {wrong[0]})"
        )
    network.load_state_dict(converted, strict=True, assign=_is_meta(network))
    network.eval()


def differences(network: nn.Module, converted: Mapping[str, Tensor]) -> list[str]:
    """What of converted weights is not as in the network, in words; works on tensors of no device too."""
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wrong = [f"{name} is left over" for name in converted if name not in ours]
    for name, shape in ours.items():
        if name not in converted:
            wrong.append(f"{name} is missing")
        elif tuple(converted[name].shape) != shape:
            wrong.append(f"{name} is {list(converted[name].shape)} and must be {list(shape)}")
    return wrong


def on_no_device(family: Family, described: Described) -> nn.Module:
    """The network without memory for its weights, to compare names and shapes, or to be given tensors as they are."""
    with torch.device("meta"):
        return built(family, described)


def _is_meta(network: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in network.parameters())
