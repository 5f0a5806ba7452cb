"""The module in a scene of Slicer's own libraries, asked click by click by `run.py`; needs `make slicer-env`.

Reads one JSON object a line: {"open": FILE, "address": URL}, {"model": NAME}, {"click": [i, j, k]} or
{"box": [low, high]}, with {"new": true} for a new segment first. Answers each with the seconds until the scene shows
what follows from it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "slicer" / "VolSam"), str(ROOT / "tests" / "slicer" / "mrml")]
TIMER = 0.01  # seconds between two calls of the module's timer


def main() -> None:
    import fakes

    sys.modules.update(fakes.qt_and_ctk())
    import slicer.util
    import vtk
    from trame_slicer.core import SlicerApp

    import slicer

    app = SlicerApp()
    vtk.vtkObject.GlobalWarningDisplayOff()
    slicer.mrmlScene = app.scene
    sys.modules["slicer.ScriptedLoadableModule"] = fakes.scripted_modules()
    slicer.util.settingsValue = lambda key, default, **_: default
    from VolSam import VolSamLogic
    from VolSamLib import geometry
    from worlds import load

    problems: list[str] = []
    logic = VolSamLogic(lambda text, is_error: problems.append(text) if is_error else None)

    def asked(task: dict) -> float:
        if task.get("new"):
            logic.add_segment()
        begin = time.perf_counter()
        if "open" in task:
            logic.use_server(task["address"])
            logic.choose(load(Path(task["open"])))
            logic.prepare()
        elif "model" in task:
            logic.use_model(task["model"])
            logic.prepare()
        elif "box" in task:
            low, high = (geometry.to_world(logic.volume, voxel) for voxel in task["box"])
            roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
            roi.SetCenterWorld((low + high) / 2)
            roi.SetSize(abs(high - low))
            logic.box(roi)
            slicer.mrmlScene.RemoveNode(roi)
        else:
            logic.click(geometry.to_world(logic.volume, task["click"]))
        while logic.is_busy:
            time.sleep(TIMER)
            logic.poll()
        return time.perf_counter() - begin

    for line in sys.stdin:
        seconds = asked(json.loads(line))
        voxels = logic.segments.part(logic.segment).voxels
        answer = {"seconds": seconds, "server": logic.seconds, "voxels": voxels, "problems": problems}
        print(json.dumps(answer), flush=True)
        problems.clear()
    logic.close()


if __name__ == "__main__":
    main()
