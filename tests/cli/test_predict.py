"""`volsam predict`: one model over many images."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from volsam.cli import app
from volsam.cli.predict import cases_of
from volsam.geometry import Grid
from volsam.recipes.families.fixture import read_fixture
from volsam.volume import Volume

RECORDED = Path(__file__).parent.parent / "reference"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small networks as files: an automatic one, and one that takes clicks."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for name in ("autosam", "sam_med3d"):
        files[name] = folder / f"{name}.safetensors"
        tensors = read_fixture(RECORDED / f"{name}.json").weights()
        if name == "autosam":  # one of its three heads
            tensors = {key: value for key, value in tensors.items() if not key.startswith(("cnn_head", "linear_head"))}
        save_file({key: value.contiguous() for key, value in tensors.items()}, files[name])
    return files


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    from volsam.data.io import write_volume

    found = []
    for index, grid in enumerate((Grid.at((20, 24, 5), (1, 1, 3)), Grid.at((18, 16, 4), (2, 2, 4), (5, -3, 9)))):
        values = np.random.default_rng(index).normal(100, 30, (1, *grid.shape)).astype(np.float32)
        found.append(tmp_path / f"scan{index}.nii.gz")
        write_volume(Volume(values, grid, "scan"), found[-1])
    return found


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def test_labels_lie_on_the_grid_of_each_image(weights: dict[str, Path], scans: list[Path], tmp_path: Path) -> None:
    status, said, errors = run("predict", weights["autosam"], *scans, "-o", tmp_path / "out")
    assert status == 0, errors
    assert len(said.splitlines()) == 2
    for scan in scans:
        image, labels = nib.load(scan), nib.load(tmp_path / "out" / scan.name)
        assert labels.shape == image.shape
        assert np.array_equal(labels.affine, image.affine)
        assert np.asarray(labels.dataobj).max() <= 2
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["background"] == 0


def test_what_is_there_is_not_made_again(weights: dict[str, Path], scans: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / scans[0].name).write_bytes(b"mine")
    status, said, _ = run("predict", weights["autosam"], *scans, "-o", out)
    assert status == 0
    assert "is there already" in said
    assert (out / scans[0].name).read_bytes() == b"mine"
    assert (out / scans[1].name).exists()
    run("predict", weights["autosam"], scans[0], "-o", out, "--overwrite")
    assert (out / scans[0].name).read_bytes() != b"mine"


def test_labels_of_another_model_are_not_taken_for_its_own(
    weights: dict[str, Path], scans: list[Path], tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.safetensors"
    assert run("predict", weights["autosam"], scans[0], "-o", out)[0] == 0
    other.write_bytes(weights["autosam"].read_bytes())
    status, _, errors = run("predict", other, *scans, "-o", out)
    assert status == 1
    assert "holds labels with another model" in errors
    assert not (out / scans[1].name).exists()
    assert run("predict", other, *scans, "-o", out, "--overwrite")[0] == 0
    assert run("predict", other, *scans, "-o", out)[0] == 0


@pytest.fixture
def of_nnunet(scans: list[Path], tmp_path: Path) -> Path:
    """One scan with two channels, and one with one, named as nnU-Net does."""
    folder = tmp_path / "imagesTs"
    folder.mkdir()
    for name in ("knee_0000", "knee_0001", "hip_7_0000"):
        (folder / f"{name}.nii.gz").write_bytes(scans[0].read_bytes())
    return folder


def test_a_folder_of_nnunet_is_cases_and_their_channels(
    weights: dict[str, Path], of_nnunet: Path, tmp_path: Path
) -> None:
    for out, images in (("a", [of_nnunet]), ("b", sorted(of_nnunet.iterdir()))):
        status, _, errors = run("predict", weights["autosam"], *images, "-o", tmp_path / out)
        assert status == 0, errors
        assert "looks at 1 of the 2 channels of knee" in errors
        assert {path.name for path in (tmp_path / out).glob("*.nii.gz")} == {"knee.nii.gz", "hip_7.nii.gz"}


def test_channels_are_given_together_to_a_model_that_looks_at_several(of_nnunet: Path, tmp_path: Path) -> None:
    elsewhere = of_nnunet.rename(tmp_path / "scans")
    files = sorted(elsewhere.iterdir(), reverse=True)
    by_name = {case.name: [path.name for path in case.images] for case in cases_of(files, channels=2)}
    assert by_name == {"knee": ["knee_0000.nii.gz", "knee_0001.nii.gz"], "hip_7": ["hip_7_0000.nii.gz"]}
    # To a model of one channel such numbers are the patients'.
    assert [case.name for case in cases_of(files, channels=1)] == ["knee_0001", "knee_0000", "hip_7_0000"]


def test_an_image_that_cannot_be_read_does_not_end_the_work(
    weights: dict[str, Path], scans: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"nothing")
    status, said, errors = run("predict", weights["autosam"], broken, *scans, "-o", tmp_path / "out")
    assert status == 1
    assert [line[:3] for line in said.splitlines()] == ["2/3", "3/3"]
    first, last = errors.splitlines()
    assert first.startswith("1/3 error: ")
    assert last.startswith("error: 1 of 3 images failed")
    assert not (tmp_path / "out" / "broken.nii.gz").exists()


def test_prompts_come_from_a_folder(weights: dict[str, Path], scans: list[Path], tmp_path: Path) -> None:
    asked = tmp_path / "prompts"
    asked.mkdir()
    clicks = {"space": "voxel", "prompts": [{"type": "point", "position": [9, 8, 2]}]}
    for scan in scans:
        (asked / scan.name.replace(".nii.gz", ".json")).write_text(json.dumps(clicks))
    status, said, errors = run("predict", weights["sam_med3d"], *scans, "-o", tmp_path / "out", "--prompts", asked)
    assert status == 0, errors
    assert said.count("expected Dice") == 2
    assert np.asarray(nib.load(tmp_path / "out" / scans[0].name).dataobj)[9, 8, 2] == 1


def test_a_model_of_clicks_asks_for_them(weights: dict[str, Path], scans: list[Path], tmp_path: Path) -> None:
    status, _, errors = run("predict", weights["sam_med3d"], scans[0], "-o", tmp_path / "out")
    assert status == 1
    assert "needs prompts" in errors
    assert not (tmp_path / "out").exists()


def test_an_automatic_model_takes_none(weights: dict[str, Path], scans: list[Path], tmp_path: Path) -> None:
    status, _, errors = run("predict", weights["autosam"], scans[0], "-o", tmp_path / "out", "--prompts", tmp_path)
    assert status == 1
    assert "takes no prompts" in errors


def test_images_of_one_name_and_images_in_the_folder_are_refused(
    weights: dict[str, Path], scans: list[Path], tmp_path: Path
) -> None:
    twin = tmp_path / "other" / scans[0].name
    twin.parent.mkdir()
    twin.write_bytes(scans[0].read_bytes())
    for words in ((scans[0], twin, "-o", tmp_path / "out"), (scans[0], "-o", tmp_path)):
        status, _, errors = run("predict", weights["autosam"], *words)
        assert status == 1
        assert len(errors.splitlines()) == 1
    assert np.asarray(nib.load(scans[0]).dataobj).max() > 10
