"""MONAI Label: its extension for 3D Slicer, OHIF, and whatever else calls its REST interface.

What a client knows of an image is its id in the folder of studies, or the id of an upload ("session"). All points are
sent with every call; which of them are new is found out here, so that an answer is that of a session.
"""

from __future__ import annotations

from fastapi import APIRouter

from volsam.server.core import Core
from volsam.server.dialects.monai_label import auth, infer, info, labels, learning, uploads, work
from volsam.server.dialects.monai_label.app import App

OPEN = ("/auth/", "/auth/token")


def router(core: Core) -> APIRouter:
    """All calls."""
    app = App(core)
    routes = APIRouter()
    for part in (info, infer, uploads, labels, learning, work):
        routes.include_router(part.router(app))
    if core.settings.key is not None:
        routes.include_router(auth.router(core.settings.key))
    return routes
