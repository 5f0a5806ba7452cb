"""The protocol of nnInteractive 2: its extensions for 3D Slicer and napari, its Python client.

An image has a spacing there and no orientation: voxels are the array's own, and the grid is made of them. A reset
starts the next object, so that what was made before stays in the saved session.
"""

from __future__ import annotations

from volsam.server.dialects.nninteractive.calls import OPEN, router

__all__ = ["OPEN", "router"]
