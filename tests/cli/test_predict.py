"""`volsam predict`: one model over many images."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from volsam.cli import app
from volsam.cli.images import cases_of
from volsam.data import io
from volsam.errors import BadInput
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


def test_overwriting_that_was_stopped_goes_on_and_leaves_nothing_of_before(
    weights: dict[str, Path], scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.safetensors"
    assert run("predict", weights["autosam"], *scans, "-o", out)[0] == 0
    for path in (*out.glob("*.nii.gz"), out / "made_by.json"):
        os.utime(path, (1e9, 1e9))
    other.write_bytes(weights["autosam"].read_bytes())
    write = io.write_volume

    def stopped(volume: Any, path: Path) -> None:
        if path.name == scans[1].name:
            raise KeyboardInterrupt
        write(volume, path)

    with monkeypatch.context() as patch:
        patch.setattr(io, "write_volume", stopped)
        assert run("predict", other, *scans, "-o", out, "--overwrite")[0] != 0
    status, said, errors = run("predict", other, *scans, "-o", out)
    assert status == 0, errors
    first, second = said.splitlines()
    assert "is there already" in first
    assert "is there already" not in second
    assert all(path.stat().st_mtime > 1e9 for path in out.glob("*.nii.gz"))
    # All are of one model by now.
    assert run("predict", other, *scans, "-o", out)[1].count("is there already") == 2


def test_labels_of_other_images_count_as_well(weights: dict[str, Path], scans: list[Path], tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other.safetensors"
    assert run("predict", weights["autosam"], scans[0], "-o", out)[0] == 0
    other.write_bytes(weights["autosam"].read_bytes())
    status, _, errors = run("predict", other, scans[1], "-o", out)
    assert status == 1
    assert "holds labels with another model" in errors


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


def test_a_full_disk_ends_the_work(
    weights: dict[str, Path], scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Path] = []

    def full(volume: Any, path: Path) -> None:
        tried.append(path)
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise BadInput(f"{path} cannot be written: there is no room") from None

    monkeypatch.setattr("volsam.data.io.write_volume", full)
    status, _, errors = run("predict", weights["autosam"], *scans, "-o", tmp_path / "labels")
    assert status == 1
    assert "there is no room" in errors
    assert len(tried) == 1
    assert len(scans) > 1


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


def names_of(cases: list) -> dict[str, list[str]]:
    return {case.name: [path.name for path in case.images] for case in cases}


def test_a_folder_of_plainly_named_volumes_is_their_cases(
    weights: dict[str, Path], scans: list[Path], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for scan, name in zip(scans, ("ct.nii.gz", "mr_7.nii.gz"), strict=True):
        scan.rename(plain / name)
    for other in ("notes.txt", "ct.json", "._ct.nii.gz"):
        (plain / other).write_text("{}")
    status, said, errors = run("predict", weights["autosam"], plain, "-o", tmp_path / "out")
    assert status == 0, errors
    assert len(said.splitlines()) == 2
    assert errors == ""
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"ct.nii.gz", "mr_7.nii.gz"}


def test_a_pair_of_files_is_one_image_and_pictures_beside_volumes_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.hdr", "a.img", "a.nii", "b.mhd", "b.raw", "b.png"):
        (tmp_path / name).touch()
    assert [path.name for case in cases_of([tmp_path], 1) for path in case.images] == ["a.hdr", "a.nii", "b.mhd"]
    assert "left out, as pictures beside volumes are no images: b.png;" in capsys.readouterr().err
    for name in ("a.hdr", "a.img", "a.nii", "b.mhd"):
        (tmp_path / name).unlink()
    assert names_of(cases_of([tmp_path], 1)) == {"b": ["b.png"]}


def test_what_a_folder_of_nnunet_holds_besides_is_named(
    of_nnunet: Path, scans: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ct", "knee", "lost_0001", *(f"z{number}" for number in range(3))):
        (of_nnunet / f"{name}.nii.gz").write_bytes(scans[0].read_bytes())
    (of_nnunet / "z3.dcm").touch()
    found = names_of(cases_of([of_nnunet], channels=1))
    assert found == {"hip_7": ["hip_7_0000.nii.gz"], "knee": ["knee_0000.nii.gz", "knee_0001.nii.gz"]}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"warning: {of_nnunet}: left out, as they are channels of no CASE_0000: ")
    assert "ct.nii.gz, knee.nii.gz, lost_0001.nii.gz, z0.nii.gz, z1.nii.gz and 2 more;" in said


def test_a_folder_of_dicom_stays_a_series(a_dicom_series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, file in enumerate(sorted(a_dicom_series.iterdir())):
        file.rename(file.with_name(f"IM_{number:04d}.dcm"))
    assert [case.images for case in cases_of([a_dicom_series], 1)] == [(a_dicom_series,)]
    assert capsys.readouterr().err == ""
    for file in a_dicom_series.iterdir():
        file.rename(file.with_suffix(""))
    (a_dicom_series / "mask.nii.gz").touch()
    assert [case.images for case in cases_of([a_dicom_series], 1)] == [(a_dicom_series,)]
    assert "left out, as the folder is that of a DICOM series: mask.nii.gz" in capsys.readouterr().err


def test_a_folder_of_nothing_is_refused_as_an_image(weights: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, errors = run("predict", weights["autosam"], tmp_path / "empty", "-o", tmp_path / "out")
    assert status == 1
    assert "folder without a DICOM series" in errors.splitlines()[0]
    assert errors.splitlines()[1:] == ["error: the image failed, see above"]


def test_nothing_is_said_of_others_where_all_images_fail(weights: dict[str, Path], tmp_path: Path) -> None:
    broken = [tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"]
    for file in broken:
        file.write_bytes(b"nothing")
    status, _, errors = run("predict", weights["autosam"], *broken, "-o", tmp_path / "out")
    assert status == 1
    assert errors.splitlines()[-1] == "error: all 2 images failed, see above"


@pytest.mark.parametrize(
    ("output", "prompts", "told"),
    [
        ("scan0.nii.gz", None, "scan0.nii.gz is a file: give a folder"),
        ("out", "gone", "gone is no folder: give one with a file NAME.json for each image"),
        ("out", "scan0.nii.gz", "scan0.nii.gz is no folder"),
    ],
)
def test_folders_that_are_none_are_refused_at_the_start(
    weights: dict[str, Path], scans: list[Path], tmp_path: Path, output: str, prompts: str | None, told: str
) -> None:
    words = [] if prompts is None else ["--prompts", tmp_path / prompts]
    model = weights["autosam" if prompts is None else "sam_med3d"]
    status, _, errors = run("predict", model, *scans, "-o", tmp_path / output, *words)
    assert status == 1
    assert len(errors.splitlines()) == 1
    assert told in errors
    assert not (tmp_path / "out").exists()


def test_prompts_are_found_by_the_name_of_the_case_and_of_the_file(
    weights: dict[str, Path], of_nnunet: Path, tmp_path: Path
) -> None:
    asked = tmp_path / "prompts"
    asked.mkdir()
    clicks = {"space": "voxel", "prompts": [{"type": "point", "position": [9, 8, 2]}]}
    for name in ("knee", "hip_7_0000"):
        (asked / f"{name}.json").write_text(json.dumps(clicks))
    status, said, errors = run("predict", weights["sam_med3d"], of_nnunet, "-o", tmp_path / "out", "--prompts", asked)
    assert status == 0, errors
    assert said.count("expected Dice") == 2


def test_the_usage_is_written_as_usual() -> None:
    said = " ".join(run("predict", "--help")[1].split())
    assert "predict [OPTIONS] MODEL IMAGE... " in said


# --- many images -----------------------------------------------------------------------------------------------------


def lines_of(folder: Path, name: str = "cases.csv") -> dict[str, dict[str, str]]:
    with (folder / name).open(newline="") as table:
        return {row["case"]: row for row in csv.DictReader(table)}


@pytest.fixture
def asked(scans: list[Path], tmp_path: Path) -> Path:
    """A click for each scan."""
    folder = tmp_path / "asked"
    folder.mkdir()
    for scan in scans:
        point(folder / scan.name.replace(".nii.gz", ".json"), (9, 8, 2))
    return folder


def point(file: Path, voxel: tuple[int, int, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"space": "voxel", "prompts": [{"type": "point", "position": voxel}]}))


def test_a_table_says_what_came_of_every_image(weights: dict[str, Path], scans: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"nothing")
    run("predict", weights["autosam"], broken, *scans, "-o", tmp_path / "out")
    found = lines_of(tmp_path / "out")
    assert list(found) == ["broken", "scan0", "scan1"]
    assert found["broken"]["error"]
    assert found["broken"]["ml"] == found["broken"]["made"] == ""
    for scan in scans:
        line = found[scan.name.removesuffix(".nii.gz")]
        assert line["error"] == ""
        assert float(line["seconds"]) > 0
        labels = np.asarray(nib.load(tmp_path / "out" / scan.name).dataobj)
        voxel = float(np.prod(nib.load(scan).header.get_zooms()[:3]))
        told = [float(part.rpartition(" ")[2]) for part in line["ml"].split("; ") if part]
        assert sum(told) == pytest.approx((labels > 0).sum() * voxel / 1000, abs=0.02)


def test_the_table_tells_how_sure_a_mask_is(weights: dict[str, Path], scans: list[Path], asked: Path) -> None:
    run("predict", weights["sam_med3d"], *scans, "-o", asked.parent / "out", "--prompts", asked)
    assert all(0 <= float(line["quality"]) <= 1 for line in lines_of(asked.parent / "out").values())


def test_what_was_made_of_other_prompts_or_of_another_image_is_made_anew(
    weights: dict[str, Path], scans: list[Path], asked: Path, tmp_path: Path
) -> None:
    words = ("predict", weights["sam_med3d"], *scans, "-o", tmp_path / "out", "--prompts", asked)
    assert run(*words)[0] == 0
    assert run(*words)[1].count("is there already") == 2
    point(asked / "scan1.json", (2, 3, 1))
    first, second = run(*words)[1].splitlines()
    assert "is there already" in first
    assert "expected Dice" in second
    scans[0].write_bytes(scans[1].read_bytes())
    first, second = run(*words)[1].splitlines()
    assert "expected Dice" in first
    assert "is there already" in second
    # A label of which nothing is known is taken as it is, and the last line of an image counts.
    assert len(lines_of(tmp_path / "out")) == 2
    assert run(*words)[1].count("is there already") == 2
    assert len((tmp_path / "out" / "cases.csv").read_text().splitlines()) == 3


def test_parts_are_all_images_and_each_once(weights: dict[str, Path], scans: list[Path], tmp_path: Path) -> None:
    many = [tmp_path / f"s{number}.nii.gz" for number in range(7)]
    for path in many:
        path.write_bytes(scans[1].read_bytes())
    made = []
    for part in ("1/3", "2/3", "3/3"):
        status, said, errors = run("predict", weights["autosam"], *many, "-o", tmp_path / "out", "--part", part)
        assert status == 0, errors
        made += [line.split()[1] for line in said.splitlines()]
        assert len(lines_of(tmp_path / "out", f"cases-{part[0]}-of-3.csv")) == len(said.splitlines())
    assert sorted(made) == sorted(str(tmp_path / "out" / path.name) for path in many)
    # All of them together know what the parts have made.
    assert run("predict", weights["autosam"], *many, "-o", tmp_path / "out")[1].count("is there already") == 7
    for part in ("0/3", "4/3", "half"):
        assert "--part is K/N" in run("predict", weights["autosam"], *many, "-o", tmp_path / "o", "--part", part)[2]


def test_the_output_has_the_paths_of_a_tree(weights: dict[str, Path], scans: list[Path], tmp_path: Path) -> None:
    for number, scan in enumerate(scans):
        place = tmp_path / "tree" / f"p{number}" / "s1"
        place.mkdir(parents=True)
        scan.rename(place / "ct.nii.gz")
        point(tmp_path / "asked" / f"p{number}" / "s1" / "ct.json", (9, 8, 2))
    for name in (".DS_Store", "README.txt"):
        (tmp_path / "tree" / name).write_text("about the scans")
    status, _, errors = run("predict", weights["autosam"], tmp_path / "tree", "-o", tmp_path / "out")
    assert status == 0, errors
    made = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.nii.gz")]
    assert sorted(made) == ["p0/s1/ct.nii.gz", "p1/s1/ct.nii.gz"]
    assert (tmp_path / "out" / "labels.json").is_file()
    words = ("predict", weights["sam_med3d"], tmp_path / "tree", "-o", tmp_path / "masks")
    status, said, errors = run(*words, "--prompts", tmp_path / "asked")
    assert status == 0, errors
    assert said.count("expected Dice") == 2


def test_a_saved_session_is_answered_again_with_all_its_objects(
    weights: dict[str, Path], scans: list[Path], tmp_path: Path
) -> None:
    from volsam.data.io import read_volume
    from volsam.data.studies import names_of
    from volsam.inference.session import Session
    from volsam.prompts import Click
    from volsam.recipes.recipe import load_model

    volume = read_volume(scans[0])
    session = Session(load_model(str(weights["sam_med3d"]), device="cpu"), volume, object_name="liver")
    session.add(Click(tuple(volume.grid.to_world((9, 8, 2)))))
    session.select("spleen")
    session.add(Click(tuple(volume.grid.to_world((4, 15, 1)))))
    (tmp_path / "asked").mkdir()
    session.save(tmp_path / "asked" / "scan0.json")
    words = ("predict", weights["sam_med3d"], "-o", tmp_path / "out", "--prompts", tmp_path / "asked")
    status, said, errors = run(*words, scans[0])
    assert status == 0, errors
    assert "expected Dice" in said
    labels = np.asarray(nib.load(tmp_path / "out" / "scan0.nii.gz").dataobj)
    assert np.array_equal(labels == 2, session.mask_of("spleen").data[0] > 0)
    assert np.array_equal(labels > 0, (session.mask_of("liver").data[0] + session.mask_of("spleen").data[0]) > 0)
    assert names_of(tmp_path / "out" / "scan0.nii.gz") == {"liver": 1, "spleen": 2}
    # It is of that scan, and of no other one.
    (tmp_path / "asked" / "scan0.json").rename(tmp_path / "asked" / "scan1.json")
    status, _, errors = run(*words, scans[1])
    assert status == 1
    assert "belongs to scan0" in errors


def test_a_saved_session_is_not_replaced_by_what_comes_of_it(
    weights: dict[str, Path], scans: list[Path], asked: Path
) -> None:
    before = (asked / "scan0.json").read_bytes()
    status, _, errors = run("predict", weights["sam_med3d"], *scans, "-o", asked, "--prompts", asked)
    assert status == 1
    assert "is the folder of the prompts" in errors
    assert (asked / "scan0.json").read_bytes() == before


def test_labels_of_an_older_image_do_not_count_after_a_failure(
    weights: dict[str, Path], scans: list[Path], tmp_path: Path
) -> None:
    words = ("predict", weights["autosam"], scans[0], "-o", tmp_path / "out")
    assert run(*words)[0] == 0
    whole = scans[1].read_bytes()
    scans[0].write_bytes(whole[:200])
    assert run(*words)[0] == 1
    assert run(*words)[0] == 1
    scans[0].write_bytes(whole)
    assert "is there already" not in run(*words)[1]


def test_of_a_tree_only_scans_are_taken(scans: list[Path], tmp_path: Path) -> None:
    tree, content = tmp_path / "tree", scans[0].read_bytes()
    channels = ("d/imagesTr/A_0000.nii.gz", "d/imagesTr/A_0001.nii.gz")
    for name in ("p1/ct.nii.gz", "p1/view.png", "out/p1/ct.nii.gz", "d/labelsTr/A.nii.gz", *channels):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mr.nii.gz").write_bytes(content)
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    assert names_of(cases_of([tree], 1, tree / "out")) == {
        "d/imagesTr/A": ["A_0000.nii.gz", "A_0001.nii.gz"],
        "linked/mr": ["mr.nii.gz"],
        "p1/ct": ["ct.nii.gz"],
    }
    (tree / "p1" / "ct.mgz").write_bytes(content)
    assert [case.name for case in cases_of([tree], 1, tree / "out")].count("p1/ct") == 2
