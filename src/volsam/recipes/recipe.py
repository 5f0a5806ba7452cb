"""Names of models, what is known of each, and how one is loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from volsam.errors import BadFile, BadInput
from volsam.recipes.engine import require_torch
from volsam.registry import Registry
from volsam.training import processes

if TYPE_CHECKING:
    from volsam.inference.session import Model

EMBEDDED = "volsam-s"


@dataclass(frozen=True)
class Recipe:
    """A model a user can name.

    name: what is typed; summary: one line; prompts: kinds it takes; source: paper or page; licence: of the weights;
    weights: the file in this package, or None where a user brings their own; card: what is known of the weights;
    build: from a weights file and a device to a model.
    """

    name: str
    summary: str
    prompts: tuple[str, ...]
    source: str
    licence: str
    weights: Path | None
    card: Path | None
    build: Callable[[Path, str], Model]

    @property
    def present(self) -> bool:
        """Whether weights are here."""
        return self.weights is not None and self.weights.is_file()

    def checksum(self) -> str | None:
        """SHA-256 of the weights, hexadecimal; None without weights."""
        if self.weights is None or not self.weights.is_file():
            return None
        return hashlib.sha256(self.weights.read_bytes()).hexdigest()


recipes: Registry[Recipe] = Registry("model")


def shipped() -> Registry[Recipe]:
    """The models that come with the package; asking costs no import of torch."""
    import volsam.recipes.sam_mini  # they register themselves
    import volsam.recipes.volsam_s  # noqa: F401

    return recipes


def load_model(
    name_or_path: str | os.PathLike[str] | None = None, *, device: str = "auto", engine: str | None = None
) -> Model:
    """A model ready for a `Session`: the embedded default, a name from `volsam models list`, or a file of weights.

    device: "auto" (cuda, then mps, then cpu), or one of them. engine: "auto", "torch", "openvino" or "graphs"; if None,
    what VOLSAM_ENGINE says, else "auto". Of the clicks of published 3D models "auto" is OpenVINO on a CPU, where it is
    installed; "graphs" is for them on a GPU of NVIDIA, both steps recorded as CUDA graphs, in bfloat16. With "plain" it
    is torch, and the network can learn and be saved, as it cannot with the others.

    Raises:
        BadInput: the name is unknown, the model takes no prompts, or the device is not there.
        BadFile: weights are missing or damaged, or are of no network that is known.
    """
    wanted = EMBEDDED if name_or_path is None else os.fspath(name_or_path)
    if wanted not in shipped():
        from volsam.recipes.importing import load

        return load(wanted, choose_device(device), engine)
    recipe = recipes[wanted]
    if recipe.weights is None or not recipe.weights.is_file():
        raise BadFile(f"the weights of {recipe.name} are missing from this installation: run `volsam doctor`")
    require_torch(engine, recipe.name)
    return recipe.build(recipe.weights, choose_device(device))


def choose_device(wanted: str) -> str:
    """The device that "auto" means here, or the wanted one if it is there.

    Each of several processes that torchrun started gets a graphics card of its own.
    """
    import torch

    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        wanted = next(name for name, here in present.items() if here)
    kind, _, index = wanted.partition(":")
    if kind not in present or (index and not index.isdecimal()):
        raise BadInput(f"--device is auto, cpu, cuda or mps, or one card such as cuda:1, got {wanted!r}")
    if not present[kind]:
        here = ", ".join(name for name, is_here in present.items() if is_here)
        raise BadInput(f"the device {wanted} was asked for, this machine has: {here}; use --device auto")
    if kind == "cuda":
        return _card(wanted, torch.cuda.device_count())
    return wanted


def _card(wanted: str, count: int) -> str:
    """A graphics card that is there; in one of several processes the one that is its own."""
    index = wanted.partition(":")[2]
    if processes.count() > 1:
        if index:
            raise BadInput(f"--device {wanted}: torchrun gives every process a card of its own, so say --device cuda")
        index = str(processes.place_here())
        wanted = f"cuda:{index}"
    if index and int(index) >= count:
        raise BadInput(f"the device {wanted} was asked for, this machine has {count}, counted from cuda:0")
    return wanted
