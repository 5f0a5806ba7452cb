"""Other models than the default: those of slices work in the plane that was clicked."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from VolSamLib import geometry
from worlds import MIDDLE, PYTHON, ROOT, add_ball, mask_of, nifti, read_mask, server_environment, volsam

import slicer

A_TINY_SAM = """
import sys, torch
sys.path.insert(0, {folder!r})
from sams import a_tiny_sam
weights = a_tiny_sam()
for name in weights:  # so that it finds everything to be the object, in the slice that was clicked
    if "hypernetworks_mlps" in name and ".layers.2." in name:
        weights[name] = -weights[name]
torch.save(weights, {file!r})
"""


@pytest.fixture(scope="module")
def two_models(serve, home, tmp_path_factory):
    """A server with the default model and a very small SAM that was never trained."""
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    code = A_TINY_SAM.format(folder=str(ROOT / "tests" / "recipes"), file=str(file))
    subprocess.run([PYTHON, "-c", code], env=server_environment(home), check=True)
    volsam(home, "models", "import", str(file), "--name", "tiny-sam")
    return serve("--models", "volsam-s,tiny-sam")


@pytest.fixture
def of_slices(logic, two_models):
    logic.use_server(two_models.address)
    logic.use_model("tiny-sam")
    return logic


def view(plane: str):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode")
    node.SetOrientation(plane.capitalize())
    return node


def click(logic, voxel, slice_node=None) -> None:
    logic.click(geometry.to_world(logic.volume, voxel), True, slice_node)
    assert logic.wait()


@pytest.mark.parametrize("plane", geometry.PLANES)
def test_a_model_of_slices_looks_at_the_plane_that_was_clicked(of_slices, said, home, tmp_path, plane):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])[:, [2, 0, 1, 3]]
    affine[:3, 0] *= -1
    volume = add_ball(affine=affine)
    of_slices.choose(volume)
    click(of_slices, MIDDLE, view(plane))
    assert not said.errors
    image = nifti(tmp_path / "ball.nii", geometry.voxels_of(volume), affine)
    point = ",".join(map(str, MIDDLE))
    asked = ("segment", str(image), "-p", point, "--model", "tiny-sam", "--plane", plane)
    volsam(home, *asked, "-o", str(tmp_path / "mask.nii"))
    expected = read_mask(tmp_path / "mask.nii")
    found = mask_of(of_slices)
    assert np.array_equal(found, expected)
    across = [geometry.PLANES[along] for along in geometry.anatomical_axes(affine)].index(plane)
    assert len(np.unique(np.nonzero(found)[across])) == 1
    assert found.sum() == found.size / found.shape[across]


def test_models_and_planes_can_be_changed_on_the_way(of_slices, said):
    of_slices.choose(add_ball(affine=np.eye(4)))
    of_slices.use_model("volsam-s")
    click(of_slices, MIDDLE, view("coronal"))
    volumes = mask_of(of_slices)
    of_slices.use_model("tiny-sam")
    of_slices.again()
    assert of_slices.wait()
    slices = mask_of(of_slices)
    assert not np.array_equal(slices, volumes)
    of_slices.add_segment()
    click(of_slices, MIDDLE, view("sagittal"))
    assert not np.array_equal(mask_of(of_slices), slices)
    of_slices.select(of_slices.segments.ids[0])
    of_slices.again()
    assert of_slices.wait()
    assert np.array_equal(mask_of(of_slices), slices)
    of_slices.use_model("volsam-s")
    of_slices.again()
    assert of_slices.wait()
    assert np.array_equal(mask_of(of_slices), volumes)
    assert not said.errors


def test_uncertainty_of_a_model_of_slices_is_refused_with_a_reason(of_slices, said):
    of_slices.choose(add_ball())
    click(of_slices, MIDDLE)
    of_slices.ask_doubt()
    assert of_slices.wait()
    assert len(said.errors) == 1
    assert "one slice at a time" in said.errors[0]
    assert len(of_slices.said.turns) == 1
