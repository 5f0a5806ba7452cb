"""Segment Anything for volumes.

    volume = volsam.read_volume("ct.nii.gz")
    session = volsam.Session(volsam.load_model(), volume)
    session.add(volsam.Click(volume.grid.to_world([120, 88, 40])))
    volsam.write_volume(session.mask, "liver.nii.gz")

Names are loaded when they are first used, so that `import volsam` costs next to nothing and brings in no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volsam.data.io import read_volume, write_volume
    from volsam.errors import BadFile, BadInput, MissingExtra, NotSupported, PromptOutside, VolsamError
    from volsam.geometry import Grid, resample
    from volsam.inference.session import Session
    from volsam.prompts import Box, Click, MaskHint, PromptSet, Scribble
    from volsam.recipes.recipe import load_model
    from volsam.volume import Volume

__version__ = "0.1.0"

_HOMES = {
    "BadFile": "errors",
    "BadInput": "errors",
    "Box": "prompts",
    "Click": "prompts",
    "Grid": "geometry",
    "MaskHint": "prompts",
    "MissingExtra": "errors",
    "NotSupported": "errors",
    "PromptOutside": "errors",
    "PromptSet": "prompts",
    "Scribble": "prompts",
    "Session": "inference.session",
    "Volume": "volume",
    "VolsamError": "errors",
    "load_model": "recipes.recipe",
    "read_volume": "data.io",
    "resample": "geometry",
    "write_volume": "data.io",
}

__all__ = [
    "BadFile",
    "BadInput",
    "Box",
    "Click",
    "Grid",
    "MaskHint",
    "MissingExtra",
    "NotSupported",
    "PromptOutside",
    "PromptSet",
    "Scribble",
    "Session",
    "VolsamError",
    "Volume",
    "load_model",
    "read_volume",
    "resample",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'volsam' has no attribute {name!r}")
    value = getattr(import_module(f"volsam.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
