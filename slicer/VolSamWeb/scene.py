"""What Slicer's application adds to the module `slicer`, for VolSamLib where there are Slicer's libraries only."""

from __future__ import annotations

import types
from typing import Any

import slicer.util
import vtk

import slicer


def furnish(app: Any) -> None:
    """Have `slicer` speak of the scene and the logics of a trame-slicer `SlicerApp`."""
    vtk.vtkObject.GlobalWarningDisplayOff()
    slicer.mrmlScene = app.scene
    slicer.app = types.SimpleNamespace(applicationLogic=lambda: app.app_logic)
    slicer.modules = types.SimpleNamespace(
        volumes=types.SimpleNamespace(logic=lambda: app.volumes_logic),
        segmentations=types.SimpleNamespace(logic=lambda: app.segmentations_logic),
    )
