"""A network from a user's own checkout of its code, trained and scored like the plain networks.

nnFormer, TransBTS and UNETR++ are on no package index; `PRESETS` says how their public repositories build them. Any
other callable that returns a network for (b c d h w) will do as well. Training with a checkout runs the code that lies
in it, which the user has named in that very command. A run that was trained so names it too, but a run may come from
anybody: code is run for it only where the user says again, by `VOLSAM_CHECKOUT`, which folder is to be trusted.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from volsam.data.dataset import Case, Dataset
from volsam.data.preparation import Preparation, patch_of, spacing_of
from volsam.errors import BadFile, BadInput
from volsam.recipes.methods.method import Method, Weights, all_alike, methods, plan_of, scaled
from volsam.recipes.methods.plain_networks import PlainConfig, items, model, task
from volsam.training.run import Plan

TRUSTED = "VOLSAM_CHECKOUT"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# A chance of zero has no logarithm.
LEAST_CHANCE = 1e-6


class CheckoutConfig(PlainConfig, frozen=True):
    """Settings of a network from a checkout; `width` is of networks that volsam builds and means nothing here."""

    path: str = ""
    """Folder of the checkout, from which its own imports work."""
    preset: Literal["", "nnformer", "transbts", "unetr++"] = ""
    """A published network: gives `factory`, `arguments`, `patch` and `answer`, each of which may be given as well."""
    factory: str = ""
    """MODULE:CALLABLE of the checkout; the callable returns the network."""
    arguments: Mapping[str, Any] = Field(default={})
    """Keyword arguments of the factory. $channels, $classes, $patch (three numbers) and $side (the edge of a cube)
    stand for what the dataset and the other settings make of them."""
    patch: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Voxels that the network sees at once; None: up to `edge` along each axis, a multiple of `multiple`."""
    multiple: PositiveInt = 32
    """Of which number of voxels a patch consists along each axis."""
    answer: Literal["logits", "probabilities"] = "logits"
    """What the network gives for every class."""
    output: int = 0
    """Which of several outputs is at full size; -1 is the last one."""
    sha256: str = ""
    """Of the factory's file, found out when the training begins."""


# --- what is known of published networks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """How a public repository builds its network: interface facts, as of its main branch in 2024."""

    title: str
    factory: str
    arguments: Mapping[str, Any]
    patch: tuple[int, int, int]
    answer: str = "logits"


PRESETS = {
    "nnformer": Preset(
        "nnFormer (Zhou et al. 2023)",
        "nnformer.network_architecture.nnFormer_synapse:nnFormer",
        {
            "crop_size": "$patch",
            "embedding_dim": 192,
            "input_channels": "$channels",
            "num_classes": "$classes",
            "depths": [2, 2, 2, 2],
            "num_heads": [6, 12, 24, 48],
            "patch_size": [2, 4, 4],
            "window_size": [4, 4, 8, 4],
            "deep_supervision": False,
        },
        (64, 128, 128),
    ),
    "transbts": Preset(
        "TransBTS (Wang et al. 2021)",
        "models.TransBTS.TransBTS_downsample8x_skipconnection:BTS",
        {
            "img_dim": "$side",
            "patch_dim": 8,
            "num_channels": "$channels",
            "num_classes": "$classes",
            "embedding_dim": 512,
            "num_heads": 8,
            "num_layers": 4,
            "hidden_dim": 4096,
            "dropout_rate": 0.1,
            "attn_dropout_rate": 0.1,
        },
        (128, 128, 128),  # its learnt positions are 16 x 16 x 16, whatever img_dim says
        "probabilities",
    ),
    "unetr++": Preset(
        "UNETR++ (Shaker et al. 2024)",
        "unetr_pp.network_architecture.synapse.unetr_pp_synapse:UNETR_PP",
        {
            "in_channels": "$channels",  # its encoder takes one channel whatever this says
            "out_channels": "$classes",
            "img_size": "$patch",
            "feature_size": 16,
            "num_heads": 4,
            "depths": [3, 3, 3, 3],
            "dims": [32, 64, 128, 256],
            "do_ds": False,
        },
        (64, 128, 128),  # the sizes of its attention are written for this one
    ),
}


def complete(given: Mapping[str, Any], init: str | None) -> dict[str, Any]:
    """Settings with what the preset says, the whole path, and the checksum of the code that will run."""
    found = dict(given)
    preset = PRESETS.get(str(found.get("preset", "")))
    if preset is not None:
        own = {"factory": preset.factory, "patch": preset.patch, "answer": preset.answer}
        arguments = found.get("arguments") or {}
        merged = {**preset.arguments, **arguments} if isinstance(arguments, Mapping) else arguments
        found = own | found | {"arguments": merged}
    if not found.get("path"):
        raise BadInput("a network from a checkout was asked for: say where it is with --set path=FOLDER")
    if not found.get("factory"):
        raise BadInput(
            "say what builds the network: --set factory=MODULE:CALLABLE, or --set preset=NAME with one of "
            + ", ".join(PRESETS)
        )
    path = Path(str(found["path"])).expanduser().resolve()
    return found | {"path": str(path), "sha256": checksum(path, str(found["factory"]))}


# --- the network -----------------------------------------------------------------------------------------------------


def plan(dataset: Dataset, cases: Sequence[Case], config: CheckoutConfig) -> Plan:
    """Volumes as for the plain networks; patches as the settings say."""
    spacing = config.spacing or spacing_of(cases, "RAS", config.voxels)
    edge = max(config.edge, config.multiple)
    patch = config.patch or patch_of(cases, "RAS", spacing, edge, config.multiple)
    return plan_of(dataset, Preparation(spacing=spacing, **scaled(config)), patch, config)


def network(plan: Plan, config: CheckoutConfig, weights: Weights | None) -> nn.Module:
    """The network, freshly drawn; runs the code of the checkout."""
    if weights is not None:
        raise BadInput("--init: a network from a checkout begins with what its own code draws")
    path = Path(config.path)
    if checksum(path, config.factory) != config.sha256:
        raise BadFile(
            f"{module_file(path, config.factory)} is not what it was when this run was trained: bring that version back"
        )
    arguments = filled(config.arguments, plan)
    with importable(path):
        build = factory(path, config.factory)
        try:
            built = build(**arguments)
        except Exception as error:  # whatever the code of others raises
            raise BadInput(f"{path}: {config.factory}({_in_words(arguments)}) failed: {_reason(error)}") from error
    if not isinstance(built, nn.Module):
        raise BadInput(f"{path}: {config.factory} gave a {type(built).__name__}, where a network (nn.Module) is wanted")
    return Answer(built, len(plan.labels), config)


class Answer(nn.Module):
    """The network of a checkout, with the one output that is wanted, as logits."""

    def __init__(self, inner: nn.Module, classes: int, config: CheckoutConfig) -> None:
        super().__init__()
        self.inner = inner
        self.classes = classes
        self.config = config

    def forward(self, image: Tensor) -> Tensor:
        """(b c d h w) -> (b k d h w)."""
        try:
            found = self.inner(image)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            size = " × ".join(map(str, image.shape[2:]))
            raise BadInput(
                f"{self.config.factory} failed on {image.shape[1]} channel(s) of {size} voxels: {_reason(error)}"
            ) from error
        if isinstance(found, list | tuple):
            found = found[self.config.output]
        if not isinstance(found, Tensor) or found.ndim != 5 or found.shape[1] != self.classes:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise BadInput(f"{self.config.factory} gave {got}; scores of {self.classes} classes are wanted (b k d h w)")
        if self.config.answer == "probabilities":
            return found.float().clamp_min(LEAST_CHANCE).log()
        return found


def filled(value: Any, plan: Plan) -> Any:
    """Arguments with what `$channels`, `$classes`, `$patch` and `$side` stand for."""
    if isinstance(value, Mapping):
        return {name: filled(each, plan) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [filled(each, plan) for each in value]
    if value == "$side" and len(set(plan.patch)) > 1:
        raise BadInput(f"this network wants a cube: give one with --set patch=[64,64,64], got {plan.patch}")
    known: dict[Any, Any] = {"$channels": plan.channels, "$classes": len(plan.labels), "$patch": list(plan.patch)}
    known["$side"] = plan.patch[0]
    if isinstance(value, str) and value.startswith("$") and value not in known:
        raise BadInput(f"arguments: {value} stands for nothing; there are {', '.join(known)}")
    return known.get(value, value) if isinstance(value, str) else value


# --- the code --------------------------------------------------------------------------------------------------------


def recalled(config: CheckoutConfig) -> CheckoutConfig:
    """Settings of a stored run, with the folder that the user trusts; refused where none is named."""
    named = os.environ.get(TRUSTED, "")
    if not named:
        gone = "" if Path(config.path).is_dir() else ", which is not there any more"
        raise BadInput(
            f"this run has its network from {config.path}{gone}, and loading it runs the Python code of that checkout: "
            f"if you trust both, name the folder in the environment, {TRUSTED}={config.path}"
        )
    path = Path(named).expanduser().resolve()
    return config.model_copy(update={"path": str(path)})


def module_file(path: Path, factory: str) -> Path:
    """The file that defines a factory; nothing is run."""
    if not path.is_dir():
        raise BadFile(f"there is no checkout at {path}: bring it back, or say where it is")
    if not FACTORY.fullmatch(factory):
        raise BadInput(f"factory={factory!r} is not of the form MODULE:CALLABLE, such as models.network:Network")
    parts = factory.partition(":")[0].split(".")
    places = (path.joinpath(*parts).with_suffix(".py"), path.joinpath(*parts, "__init__.py"))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise BadFile(f"{path} has no {places[0].relative_to(path)}, which factory={factory} names")
    return found


def checksum(path: Path, factory: str) -> str:
    """SHA-256 of the factory's file."""
    return hashlib.sha256(module_file(path, factory).read_bytes()).hexdigest()


@contextmanager
def importable(path: Path) -> Iterator[None]:
    """The checkout's own imports work, as in a program that is started in it."""
    sys.path.insert(0, str(path))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the code of others may have changed the list
            sys.path.remove(str(path))


def factory(path: Path, named: str) -> Callable[..., Any]:
    """What builds the network; it must be defined in the checkout, not merely be reached through it."""
    name, _, attribute = named.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{path}: {name} wants the package {error.name!r}, which is not here: install what the checkout asks for"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the code of others raises
        raise BadInput(f"{path}: {name} could not be imported: {_reason(error)}") from error
    found = getattr(module, attribute, None)
    for place in (module, sys.modules.get(getattr(found, "__module__", None) or "")):
        file = getattr(place, "__file__", None)
        if found is not None and (file is None or not Path(file).resolve().is_relative_to(path)):
            raise BadInput(
                f"{named} comes from {file or 'no file'}, not from {path}: another package has the same name, or the "
                "callable is not of the checkout"
            )
    if not callable(found):
        raise BadInput(f"{module_file(path, named)} defines no callable {attribute!r}")
    return found


def _reason(error: BaseException) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return f"memory ran out ({error})"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _in_words(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


methods.add(
    "checkout",
    Method(
        name="checkout",
        title="a network from a checkout",
        source="your own code; presets for nnFormer, TransBTS, UNETR++",
        config=CheckoutConfig,
        init="",
        plan=plan,
        network=network,
        task=task,
        items=items,
        model=model,
        groups=all_alike,
        complete=complete,
        recalled=recalled,
    ),
)
