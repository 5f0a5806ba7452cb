"""DICOM-SEG, written and read back by highdicom."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

from volsam.data.dicom_seg import Segment, write_dicom_seg
from volsam.errors import BadFile, BadInput, MissingExtra

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import highdicom
    import pydicom

SHAPE = (12, 10, 6)  # i j k of the series in tests/conftest.py


@pytest.fixture
def two_objects():
    left, right = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    left[2:6, 1:5, 1:3] = True
    right[5:9, 3:8, 2:5] = True  # they share voxels
    return [Segment("left", left, "#e6194b"), Segment("right", right)]


def test_masks_come_back_on_the_slices_they_were_drawn_on(a_dicom_series, two_objects, tmp_path):
    write_dicom_seg(two_objects, a_dicom_series, tmp_path / "seg.dcm", maker=("volsam-s", "1"), name="ct")
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = [f"1.2.3.{k + 1}" for k in range(SHAPE[2])]
    pixels = read.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    for at, segment in enumerate(two_objects):
        assert np.array_equal(pixels[..., at].transpose(2, 1, 0) > 0, segment.mask)
        assert read.get_segment_description(at + 1).segment_label == segment.name
    assert (read.PatientID, read.StudyInstanceUID, read.FrameOfReferenceUID) == ("P7", "1.2.4", "1.2.6")
    assert read.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.5"
    assert read.SegmentsOverlap == "YES"
    assert read.NumberOfFrames == 2 + 3  # slices without a voxel are left out


def test_empty_objects_are_left_out_and_nothing_is_refused(a_dicom_series, two_objects, tmp_path):
    nothing = Segment("nothing", np.zeros(SHAPE, bool))
    write_dicom_seg([nothing, two_objects[1]], a_dicom_series, tmp_path / "seg.dcm", maker=("m", "1"), name="ct")
    assert highdicom.seg.segread(tmp_path / "seg.dcm").number_of_segments == 1
    with pytest.raises(BadInput, match="no object has a voxel"):
        write_dicom_seg([nothing], a_dicom_series, tmp_path / "none.dcm", maker=("m", "1"), name="ct")
    assert not (tmp_path / "none.dcm").exists()


def test_a_mask_of_another_size_is_refused(a_dicom_series, tmp_path):
    with pytest.raises(BadInput, match="does not fit the series"):
        write_dicom_seg(
            [Segment("x", np.ones((3, 3, 3), bool))], a_dicom_series, tmp_path / "s.dcm", maker=("m", "1"), name="n"
        )


def test_a_source_that_lacks_what_must_be_repeated_is_refused_in_one_line(a_dicom_series, two_objects, tmp_path):
    for file in a_dicom_series.iterdir():
        one = pydicom.dcmread(file)
        del one.FrameOfReferenceUID
        one.save_as(file)
    with pytest.raises(BadFile, match="lacks what a DICOM-SEG must repeat") as refused:
        write_dicom_seg(two_objects, a_dicom_series, tmp_path / "s.dcm", maker=("m", "1"), name="n")
    assert "\n" not in str(refused.value)


def test_without_the_extra_it_is_named(a_dicom_series, two_objects, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtra, match=r"volsam\[dicom\]"):
        write_dicom_seg(two_objects, a_dicom_series, tmp_path / "s.dcm", maker=("m", "1"), name="n")
