"""Things that many tests need: a small scan, something in it to find, a click on it, and the folder of real volumes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from volsam.geometry import Grid
from volsam.prompts import Click
from volsam.volume import Volume

# No deadline: how long an example takes says nothing on a machine that others use. The same examples in every run.
settings.register_profile("volsam", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("volsam")

# Recording a network for OpenVINO takes seconds; tests that are about it say so.
os.environ["VOLSAM_ENGINE"] = "torch"

BALL_VOXEL = (22, 20, 14)
BALL_RADIUS = 12.0  # mm


def rotation(*degrees: float) -> np.ndarray:
    """A rotation by angles about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        step = np.eye(3)
        a, b = [other for other in range(3) if other != axis]
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        matrix = step @ matrix
    return matrix


@pytest.fixture
def an_oblique_grid() -> Grid:
    """48 × 44 × 30 voxels of 1.2 × 1.4 × 2.5 mm, left-handed, some degrees off every axis."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(11, -7, 19) @ np.diag([-1.2, 1.4, 2.5])
    affine[:3, 3] = (31.5, -28.25, -40.0)
    return Grid((48, 44, 30), affine.astype(np.float32))


@pytest.fixture
def a_ball(an_oblique_grid: Grid) -> np.ndarray:
    """The mask (i, j, k) of a round lesion in the small CT."""
    voxels = np.stack(np.indices(an_oblique_grid.shape), axis=-1)
    center = an_oblique_grid.to_world(BALL_VOXEL)
    return np.linalg.norm(an_oblique_grid.to_world(voxels) - center, axis=-1) < BALL_RADIUS


@pytest.fixture
def a_small_ct(an_oblique_grid: Grid, a_ball: np.ndarray) -> Volume:
    """Soft tissue with noise and a brighter ball, in Hounsfield units, int16."""
    noise = np.random.default_rng(7).normal(0, 15, an_oblique_grid.shape)
    values = (40 + 80 * a_ball + noise).astype(np.int16)
    return Volume(values, an_oblique_grid, "small_ct")


@pytest.fixture
def a_click(an_oblique_grid: Grid) -> Click:
    """A positive click in the middle of the ball."""
    return Click(tuple(an_oblique_grid.to_world(BALL_VOXEL)))


@pytest.fixture(autouse=True)
def a_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where volsam keeps models, one of its own for every test: nobody's real one is read or changed."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("VOLSAM_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes; tests that ask for it are skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VOLSAM_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}: set VOLSAM_DATA to their folder")
    return folder
