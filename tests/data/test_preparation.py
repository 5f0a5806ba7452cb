"""How volumes are brought to a network that is trained on them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from volsam.data.dataset import Case, read_dataset
from volsam.data.io import write_volume
from volsam.data.preparation import Preparation, prepare
from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.volume import Volume

GRID = Grid.at((40, 40, 40), (1.0, 1.0, 1.0))


def a_small_ball() -> np.ndarray:
    """Fewer voxels than any percentile looks at."""
    image = np.zeros(GRID.shape, np.float32)
    image[18:22, 18:22, 18:22] = np.linspace(500, 1000, 64, dtype=np.float32).reshape(4, 4, 4)
    return image


@pytest.mark.parametrize("scaling", ["zscore", "unclipped"])
def test_an_image_that_is_nearly_all_of_one_value_keeps_what_is_not(scaling):
    seen = Preparation(scaling=scaling).image(Volume(a_small_ball(), GRID)).astype(np.float16)
    assert np.isfinite(seen).all()
    assert len(np.unique(seen)) > 30


def test_an_image_of_one_value_is_nothing():
    assert not Preparation().image(Volume(np.full(GRID.shape, 7, np.int16), GRID)).any()


def test_label_values_without_a_name_are_refused_and_kept_nowhere(tmp_path):
    folder = tmp_path / "set"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    labels = np.zeros(GRID.shape, np.uint8)
    labels[:5], labels[5:9], labels[9:12] = 1, 7, 9
    write_volume(Volume(a_small_ball(), GRID), folder / "imagesTr/a_0000.nii.gz")
    write_volume(Volume(labels, GRID), folder / "labelsTr/a.nii.gz")
    table = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(table))
    cases = read_dataset(folder).cases
    with pytest.raises(BadInput, match=r"a.nii.gz: dataset.json has no name for the label values 7, 9: give them one"):
        prepare(cases, Preparation(), (0, 1), tmp_path / "kept", declared=(0, 1))
    assert not list((tmp_path / "kept").iterdir())
    assert len(prepare(cases, Preparation(), (0, 1), tmp_path / "kept", declared=(0, 1, 7, 9))) == 1


def test_the_limit_of_open_files_grows_with_the_cases(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        prepare([], Preparation(), (0, 1), tmp_path / "kept")
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 300
        monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 400))
        with pytest.raises(BadInput, match="open files, and this system allows a program 400: raise that limit"):
            prepare([], Preparation(), (0, 1), tmp_path / "kept")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_case_is_prepared_once_with_the_channels_that_are_looked_at(tmp_path):
    folder = tmp_path / "set"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    labels = np.zeros(GRID.shape, np.uint8)
    labels[:5] = 3  # of two labels one is nowhere
    for channel in range(2):
        write_volume(Volume(a_small_ball() * (channel + 1), GRID), folder / f"imagesTr/a_000{channel}.nii.gz")
    write_volume(Volume(labels, GRID), folder / "labelsTr/a.nii.gz")
    table = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "liver": 1, "spleen": 3}}
    (folder / "dataset.json").write_text(json.dumps({**table, "file_ending": ".nii.gz"}))
    cases = read_dataset(folder).cases
    one, both = (prepare(cases, Preparation(), (0, 1, 3), tmp_path / "kept", channels=count)[0] for count in (1, None))
    assert (len(one.image), len(both.image)) == (1, 2)
    np.testing.assert_array_equal(one.image[0], both.image[0])
    nowhere, spleen = one.places
    assert len(nowhere) == 0
    assert 0 < len(spleen) <= 4096
    assert (one.label[tuple(spleen.T)] == 2).all()
    assert len(np.unique(spleen, axis=0)) == len(spleen)
    again = prepare(cases, Preparation(), (0, 1, 3), tmp_path / "kept", channels=1)[0]
    for first, second in zip(one.places, again.places, strict=True):
        np.testing.assert_array_equal(first, second)


def written(path: Path, values: np.ndarray) -> Path:
    """A file whose size and time are those of any other."""
    path.parent.mkdir(exist_ok=True)
    write_volume(Volume(values, GRID), path)
    os.utime(path, (1e9, 1e9))
    return path


def test_labels_and_channels_of_equal_size_and_time_are_told_apart(tmp_path):
    scan = written(tmp_path / "images/a_0000.nii", a_small_ball())
    high, low = np.zeros(GRID.shape, np.uint8), np.zeros(GRID.shape, np.uint8)
    high[30:], low[:10] = 1, 1
    one, other = written(tmp_path / "one/a.nii", high), written(tmp_path / "other/a.nii", low)
    assert (one.stat().st_size, one.stat().st_mtime) == (other.stat().st_size, other.stat().st_mtime)

    def prepared(*images: Path, label: Path):
        return prepare([Case("a", images, label)], Preparation(), (0, 1), tmp_path / "kept")[0]

    np.testing.assert_array_equal(prepared(scan, label=one).label, high)
    np.testing.assert_array_equal(prepared(scan, label=other).label, low)
    written(one, low)  # drawn anew
    np.testing.assert_array_equal(prepared(scan, label=one).label, low)
    second = [written(tmp_path / f"{name}/a_0001.nii", a_small_ball() * sign) for name, sign in (("p", 1), ("n", -1))]
    first, turned = (prepared(scan, path, label=one).image[1] for path in second)
    assert first.max() > 1 > turned.max()


def test_a_spike_stays_a_number_in_half_precision(tmp_path):
    values = np.random.default_rng(0).normal(size=GRID.shape).astype(np.float32)
    values[5, 5, 5], values[6, 6, 6] = 1e6, -1e6
    labels = np.zeros(GRID.shape, np.uint8)
    case = Case("a", (written(tmp_path / "set/image.nii", values),), written(tmp_path / "set/label.nii", labels))
    kept = prepare([case], Preparation(scaling="unclipped"), (0, 1), tmp_path / "kept")[0].image
    assert np.isfinite(kept).all()
    assert kept[0, 5, 5, 5] == -kept[0, 6, 6, 6] == kept.max() > 5e4
    assert np.abs(kept[0, 20]).max() < 10


def test_of_a_case_without_a_label_every_voxel_is_background(tmp_path):
    case = Case("a", (written(tmp_path / "set/image.nii", a_small_ball()),))
    found = prepare([case], Preparation(spacing=(2.0, 2.0, 2.0)), (0, 1), tmp_path / "kept")[0]
    assert found.label.shape == found.image.shape[1:] == (20, 20, 20)
    assert not found.label.any()
    assert [len(places) for places in found.places] == [0]
