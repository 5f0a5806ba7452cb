"""What the tests of the module share: a ball in a volume, its mask, and commands of volsam."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
PYTHON = os.environ.get("VOLSAM_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
VOLSAM = [PYTHON, "-c", "from volsam.cli import main; main()"]
SHAPE, MIDDLE, RADIUS = (48, 44, 30), (22, 20, 14), 12.0


def oblique() -> np.ndarray:
    """1.2 × 1.4 × 2.5 mm, left-handed, some degrees off every axis."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians((11, -7, 19))):
        a, b = [other for other in range(3) if other != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.2, 1.4, 2.5])
    affine[:3, 3] = (31.5, -28.25, -40.0)
    return affine


def ball_of(affine: np.ndarray) -> np.ndarray:
    """The mask (i, j, k) of a ball around the middle voxel."""
    places = np.stack(np.indices(SHAPE), axis=-1)
    return np.linalg.norm((places - MIDDLE) @ affine[:3, :3].T, axis=-1) < RADIUS


def add_ball(name: str = "ball", affine: np.ndarray | None = None) -> Any:
    """A volume node: soft tissue with noise, and a brighter ball."""
    import slicer

    affine = oblique() if affine is None else affine
    noise = np.random.default_rng(7).normal(0, 15, SHAPE)
    values = (40 + 80 * ball_of(affine) + noise).astype(np.int16)
    return slicer.util.addVolumeFromArray(values.transpose(2, 1, 0), affine, name)


def mask_of(logic: Any, segment: str | None = None) -> np.ndarray:
    """The segment (i, j, k) as Slicer itself gives it out."""
    import slicer

    found = slicer.util.arrayFromSegmentBinaryLabelmap(logic.segments.node, segment or logic.segment, logic.volume)
    return found.transpose(2, 1, 0) > 0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def server_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {
        "VOLSAM_HOME": str(home),
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


def volsam(home: Path, *words: str) -> str:
    """Run a command of volsam to its end."""
    done = subprocess.run(
        [*VOLSAM, *words], env=server_environment(home), capture_output=True, text=True, check=False, cwd=home
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(path: Path) -> Any:
    """A volume node of a file."""
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", path.name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return node


def nifti(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    """A minimal NIfTI-1 file of int16, voxels (i, j, k)."""
    head = np.zeros(352, np.uint8)
    head[:4] = np.frombuffer(np.int32(348).tobytes(), np.uint8)

    def put(place: int, kind: str, *numbers: float) -> None:
        packed = np.array(numbers, kind).tobytes()
        head[place : place + len(packed)] = np.frombuffer(packed, np.uint8)

    put(40, "<i2", 3, *values.shape, 1, 1, 1, 1)
    put(70, "<i2", 4, 16)
    put(76, "<f4", 1, *np.linalg.norm(affine[:3, :3], axis=0), 1, 1, 1, 1)
    put(108, "<f4", 352, 1, 0)
    put(252, "<i2", 0, 1)
    put(280, "<f4", *affine[:3].ravel())
    put(344, "S4", b"n+1\0")
    path.write_bytes(head.tobytes() + values.astype("<i2").tobytes(order="F"))
    return path


def read_mask(path: Path) -> np.ndarray:
    """What `volsam segment` wrote as .nii: uint8 (i, j, k)."""
    content = path.read_bytes()
    shape = np.frombuffer(content, "<i2", 4, 40)[1:]
    first = int(np.frombuffer(content, "<f4", 1, 108)[0])
    return np.frombuffer(content, np.uint8, int(np.prod(shape.astype(int))), first).reshape(shape, order="F") > 0
