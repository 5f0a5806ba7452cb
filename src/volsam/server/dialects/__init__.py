"""Protocols of other tools, each a thin translation onto the core.

To add one: write a module here with `router(core) -> APIRouter` and name it in DIALECTS; endpoints are plain `def`s.
It may say `OPEN`, the exact paths that need no key. Errors (`VolsamError`, `Problem` with a status) are answered as in
the API unless it catches them. Dialects are added in the order of DIALECTS; of two that share a path the first gets it.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from volsam.errors import BadInput

DIALECTS = {
    "nninteractive": "nnInteractive 2: its extensions for 3D Slicer and napari, its Python client",
    "slicer-legacy": "SlicerNNInteractive 0.x",
    "itksnap": "ITK-SNAP's deep learning extension",
    "monai-label": "MONAI Label: its extension for 3D Slicer, OHIF",
}


def present() -> list[str]:
    """The dialects that this installation can speak."""
    return [name for name in DIALECTS if find_spec(_home(name)) is not None]


def chosen(names: Iterable[str] | None) -> list[str]:
    """The dialects that a server is to speak; all that are present for None."""
    there = present()
    if names is None:
        return there
    wanted = list(names)
    for name in wanted:
        if name not in there:
            raise BadInput(f"no dialect is called {name!r}; there are: {', '.join(there)}")
    return [name for name in there if name in wanted]


def module(name: str) -> ModuleType:
    """Where a dialect is."""
    return import_module(_home(name))


def _home(name: str) -> str:
    return f"{__name__}.{name.replace('-', '_')}"
