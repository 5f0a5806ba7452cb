"""What computes a network on this machine: torch, or for clicks OpenVINO on a CPU, recorded CUDA graphs on a GPU."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from volsam.errors import BadInput, NotSupported

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import nn

Engine = Literal["torch", "openvino", "graphs"]
CHOICES = ("auto", *get_args(Engine))

PLAIN = "plain"
"""In place of an engine: torch, with a network as it was stored, that can learn or be saved."""

ENGINE_VARIABLE = "VOLSAM_ENGINE"
"""Where an engine is named for all commands."""


def choose_engine(wanted: str | None, device: str) -> Engine:
    """The engine that "auto" means on a device, or the wanted one; None asks the environment.

    OpenVINO if it is installed and the device is a CPU. Refused if it was asked for and cannot be had.
    """
    wanted = _wanted(wanted)
    on_cpu = device.split(":")[0] == "cpu"
    if wanted == "graphs" and device.split(":")[0] != "cuda":
        raise BadInput(f"the engine graphs needs a GPU of NVIDIA, and the device is {device}: take --device cuda")
    if wanted == "openvino":
        if not on_cpu:
            raise BadInput(f"the engine openvino runs on a CPU, and the device is {device}: take --device cpu")
        from volsam.inference.openvino import openvino

        openvino()
    if wanted == "auto":
        return "openvino" if on_cpu and find_spec("openvino") is not None else "torch"
    return cast(Engine, wanted)


def prepared(network: nn.Module, name: str, device: str, wanted: str | None = None) -> Any:
    """A filled network as it answers fastest on a device; it can learn or be saved no more.

    On a CPU changes of low rank go into the weights of encoders, these are packed, and a 3D `Segmenter` becomes an
    `OpenVinoSegmenter` if that is the engine; on a GPU it becomes a `FastSegmenter` if "graphs" is `wanted`. Refused if
    an engine other than torch is `wanted` by name for another network; left as it is if `PLAIN` is.
    """
    if wanted == PLAIN:
        return network
    from volsam.adapters.lowrank import fold
    from volsam.models.encoder import Encoder
    from volsam.models.fused import pack
    from volsam.models.segmenter import Segmenter

    engine = choose_engine(wanted, device)
    clicks = type(network) is Segmenter and network.config.encoder.image[0] > 1
    if not clicks:
        require_torch(wanted, name)
    if engine == "graphs" and clicks:
        from volsam.inference.fast import FastSegmenter

        return FastSegmenter(cast(Segmenter, network), device)
    if device.split(":")[0] != "cpu":
        return network
    for part in network.modules():
        if isinstance(part, Encoder):
            fold(part)
            pack(part, prod(part.config.grid))
    if not clicks or engine == "torch":
        return network
    from volsam.inference.openvino import OpenVinoSegmenter
    from volsam.recipes.store import home

    try:
        return OpenVinoSegmenter(cast(Segmenter, network), home() / "openvino")
    except NotSupported as error:
        if _wanted(wanted) == "openvino":
            raise
        log.warning("%s: clicks of %s go through torch", error, name)
        return network


def require_torch(wanted: str | None, name: str) -> None:
    """Refuse an engine that was asked for by name where a network has none but torch."""
    if wanted not in (None, PLAIN, "auto", "torch"):
        raise NotSupported(
            f"{name} runs on torch alone; the engine {wanted} is for the clicks of SAM-Med3D and FastSAM3D: take the "
            "engine auto or torch"
        )


def _wanted(given: str | None) -> str:
    found = given or os.environ.get(ENGINE_VARIABLE) or "auto"
    if found not in CHOICES:
        where = "--engine" if given else ENGINE_VARIABLE
        raise BadInput(f"{where} is {', '.join(CHOICES[:-1])} or {CHOICES[-1]}, got {found!r}")
    return found
