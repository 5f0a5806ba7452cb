"""The predictor alone, asked the same as `scene.py` and in the same words: no server, no scene."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

import volsam


def main() -> None:
    session = None
    count = 0
    for line in sys.stdin:
        task = json.loads(line)
        if "open" in task:
            volume = volsam.read_volume(task["open"])
        if "open" in task or "model" in task:
            session = volsam.Session(volsam.load_model(task.get("model", "volsam-s")), volume)
        assert session is not None
        if task.get("new"):
            count += 1
            session.select(f"object {count}")
        begin = time.perf_counter()
        if "box" in task:
            session.add(volsam.Box(*(tuple(volume.grid.to_world(voxel)) for voxel in task["box"])))
        elif "click" in task:
            session.add(volsam.Click(tuple(volume.grid.to_world(task["click"]))))
        seconds = time.perf_counter() - begin
        voxels = int(np.count_nonzero(session.mask.data))
        print(json.dumps({"seconds": seconds, "server": {}, "voxels": voxels, "problems": []}), flush=True)


if __name__ == "__main__":
    main()
