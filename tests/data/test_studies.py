"""Scans with loose labels beside them, and the datasets that are made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from volsam.data.check import check
from volsam.data.convert import convert, gather, layout_of
from volsam.data.dataset import read_dataset, read_label
from volsam.data.io import write_volume
from volsam.data.studies import names_of, scans, versions
from volsam.errors import BadFile, BadInput
from volsam.geometry import Grid
from volsam.volume import Volume

GRID = Grid.at((8, 7, 6), (1, 1, 2))


def save(path: Path, data: np.ndarray, grid: Grid = GRID) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(data[None], grid, path.name), path)
    return path


def a_scan(path: Path, seed: int = 0) -> Path:
    return save(path, np.random.default_rng(seed).normal(0, 9, GRID.shape).astype(np.float32))


def a_label(path: Path, *values: int, names: dict[str, int] | None = None, grid: Grid = GRID) -> Path:
    drawn = np.zeros(grid.shape, np.uint8)
    for place, value in enumerate(values):
        drawn[2 * place + 1] = value
    if names is not None:
        listed = [{"name": name, "number": number} for name, number in names.items()]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name.partition('.')[0]}.json").write_text(json.dumps({"labels": listed}))
    return save(path, drawn, grid)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two scans as the viewer leaves them, in which the same names have other numbers, and one without a label."""
    folder = tmp_path / "studies"
    a_scan(folder / "a" / "ct.nii.gz", 1)
    a_scan(folder / "b" / "ct.nii.gz", 2)
    a_scan(folder / "c.nii.gz", 3)
    a_label(folder / "labels/final/a/ct.nii.gz", 1, 2, names={"liver": 1, "spleen": 2})
    a_label(folder / "labels/final/b/ct.nii.gz", 1, 2, names={"spleen": 1, "liver": 2})
    a_label(folder / "labels/ana/c.nii.gz", 1)
    return folder


def test_what_was_drawn_in_the_viewer_becomes_a_dataset_by_its_names(studies: Path, tmp_path: Path) -> None:
    assert layout_of(studies) == "studies"
    made = gather(studies, tmp_path / "made")
    assert (made.name, made.cases, made.labels, made.notes) == ("made", 2, 2, ())
    dataset = read_dataset(tmp_path / "made")
    assert dataset.objects == {"liver": 1, "spleen": 2}
    assert [case.name for case in dataset.cases] == ["a_ct", "b_ct"]
    first, second = (read_label(case) for case in dataset.cases)
    assert np.array_equal(second == 1, first == 2)
    assert np.array_equal(second == 2, first == 1)
    assert [problem for problem in check(dataset) if "same values" not in problem] == []


def test_other_tags_are_chosen_by_name(studies: Path, tmp_path: Path) -> None:
    gather(studies, tmp_path / "made", tag="ana")
    assert read_dataset(tmp_path / "made").objects == {"label 1": 1}
    with pytest.raises(BadFile, match="labels of the tags: ana, final"):
        gather(studies, tmp_path / "none", tag="ben")
    with pytest.raises(BadInput, match="folder of studies"):
        convert(studies, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_two_folders_become_a_dataset(tmp_path: Path) -> None:
    for case in range(3):
        a_scan(tmp_path / "scans" / f"case{case}.nii.gz", case)
    a_scan(tmp_path / "scans" / "case3_0000.nii.gz", 3)
    for case in (0, 2, 3):
        a_label(tmp_path / "masks" / f"case{case}.nrrd", 7)
    a_label(tmp_path / "masks" / "case1.nrrd")
    made = gather(tmp_path / "scans", tmp_path / "made", labels=tmp_path / "masks", names={"tumour": 7})
    assert (made.cases, made.labels) == (3, 1)
    assert made.notes == ("case1 is left out: nothing in it is labelled",)
    dataset = read_dataset(tmp_path / "made")
    assert dataset.objects == {"tumour": 1}
    assert [case.name for case in dataset.cases] == ["case0", "case2", "case3"]
    with pytest.raises(BadFile, match="no scan in"):
        gather(tmp_path / "masks", tmp_path / "none", labels=tmp_path / "scans" / "none")


def test_a_label_that_lies_elsewhere_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    a_scan(tmp_path / "scans" / "one.nii.gz")
    a_label(tmp_path / "masks" / "one.nii.gz", 1, grid=Grid.at((8, 7, 6), (1, 1, 2), (9, 0, 0)))
    with pytest.raises(BadInput, match="away from those of the image"):
        gather(tmp_path / "scans", tmp_path / "made", labels=tmp_path / "masks")
    assert not (tmp_path / "made").exists()


def test_slices_without_an_ending_are_a_scan(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "disc" / "S0001"
    folder.mkdir(parents=True)
    (folder.parent / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    for number in range(5):
        (folder / f"IM{number:04d}").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "studies" / "notes").write_text("no scan")
    a_scan(tmp_path / "studies" / "ct.nii.gz")
    assert list(scans(tmp_path / "studies")) == ["ct.nii.gz", "disc/S0001"]


def test_older_versions_of_a_label_are_found_and_damaged_records_name_nothing(tmp_path: Path) -> None:
    label = a_label(tmp_path / "ct.nii.gz", 1, names={"liver": 1})
    older = a_label(tmp_path / "ct.nrrd", 1)
    a_label(tmp_path / "ct2.nrrd", 1)
    assert versions(label) == [older]
    assert names_of(label) == {"liver": 1}
    (tmp_path / "ct.json").write_text("{")
    assert names_of(label) == {}


def test_labels_in_a_tree_go_by_their_paths(tmp_path: Path) -> None:
    for number, patient in enumerate(("p1", "p2")):
        a_scan(tmp_path / "scans" / patient / "ct.nii.gz", number)
        a_label(tmp_path / "masks" / patient / "ct.nii.gz", *[1] * (number + 1))
    gather(tmp_path / "scans", tmp_path / "made", labels=tmp_path / "masks")
    first, second = (read_label(case) for case in read_dataset(tmp_path / "made").cases)
    assert (first > 0).sum() * 2 == (second > 0).sum()
    # Where the folders do not tell, a name of several does not either.
    (tmp_path / "masks" / "p1").rename(tmp_path / "masks" / "q1")
    with pytest.raises(BadInput, match=r"which label is that of p1/ct.nii.gz"):
        gather(tmp_path / "scans", tmp_path / "none", labels=tmp_path / "masks")


def test_labels_below_the_scans_are_no_scans(tmp_path: Path) -> None:
    a_scan(tmp_path / "ct.nii.gz")
    a_label(tmp_path / "masks" / "ct.nii.gz", 1)
    assert gather(tmp_path, tmp_path / "made", labels=tmp_path / "masks").cases == 1


def test_names_that_were_given_are_those_of_their_values(tmp_path: Path) -> None:
    a_scan(tmp_path / "scans" / "ct.nii.gz")
    a_label(tmp_path / "masks" / "ct.nii.gz", 1, 2)
    gather(tmp_path / "scans", tmp_path / "made", labels=tmp_path / "masks", names={"liver": 2, "tumour": 3})
    dataset = read_dataset(tmp_path / "made")
    assert set(dataset.objects) == {"label 1", "liver"}
    labels = read_label(dataset.cases[0])
    assert (labels[3] == dataset.objects["liver"]).all()


def test_no_case_takes_the_name_of_another(tmp_path: Path) -> None:
    for path in ("a_b", "a_b_2", "a/b"):
        a_scan(tmp_path / "scans" / f"{path}.nii.gz")
        a_label(tmp_path / "masks" / f"{path}.nii.gz", 1)
    assert gather(tmp_path / "scans", tmp_path / "made", labels=tmp_path / "masks").cases == 3
    assert len(read_dataset(tmp_path / "made").cases) == 3
