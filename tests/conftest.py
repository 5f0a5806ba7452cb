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

# A minute each, in processes of their own: at the end one worker would go through them while the others wait.
FIRST = "slicer/test_module.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests go first."""
    items.sort(key=lambda item: FIRST not in item.nodeid)


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


@pytest.fixture
def a_dicom_series(tmp_path: Path) -> Path:
    """Six slices of CT, named against their order."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    shape = (12, 10, 6)
    values = np.random.default_rng(0).integers(0, 100, shape).astype(np.int16)
    folder = tmp_path / "series"
    folder.mkdir()
    for k in range(shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
        one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        one.PatientID, one.PatientName, one.PatientBirthDate, one.PatientSex = "P7", "Doe^Jane", "", ""
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
        one.StudyID, one.StudyDate, one.StudyTime, one.AccessionNumber, one.ReferringPhysicianName = "", "", "", "", ""
        one.Modality, one.SeriesNumber, one.InstanceNumber, one.Manufacturer = "CT", 1, k + 1, "none"
        one.ImagePositionPatient, one.ImageOrientationPatient = [-10, 20, 5 + 2.5 * k], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness, one.PositionReferenceIndicator = [0.9, 0.8], 2.5, ""
        one.Rows, one.Columns, one.SamplesPerPixel, one.PhotometricInterpretation = shape[1], shape[0], 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.RescaleSlope, one.RescaleIntercept = 1, 0
        one.PixelData = np.ascontiguousarray(values[:, :, k].T).tobytes()
        one.save_as(folder / f"{99 - k}.dcm", enforce_file_format=True)
    return folder


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
