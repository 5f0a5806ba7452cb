"""Every odd file there is either reads rightly or is refused in one line.

The table states what is expected of the files it names; a file that it does not name is walked all the same.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volsam.data.io import read_grid, read_volume, write_volume
from volsam.errors import BadFile, BadInput, VolsamError
from volsam.volume import Volume

sitk = pytest.importorskip("SimpleITK", reason='needs the extra "itk"')
pytestmark = pytest.mark.data


@dataclass(frozen=True)
class Reads:
    """A file that reads: its shape (c, i, j, k), the type of its values, and a word of the warning it comes with."""

    shape: tuple[int, ...]
    dtype: str
    warning: str = ""


@dataclass(frozen=True)
class Framed:
    """A file of several frames, each of which reads."""

    frames: int
    each: Reads


@dataclass(frozen=True)
class Refused:
    """A file that is refused with these words."""

    words: str


CROP = (1, 24, 32, 24)
SLICE = Reads((1, 64, 64, 1), "int16")
NO_IMAGE = Refused("cut short, damaged, packed in an unknown way, or without an image")

EXPECTED: dict[str, Reads | Framed | Refused] = {
    "README.md": Refused("known endings are"),
    # NIfTI and MGH
    "nifti_4d_fmri.nii.gz": Framed(2, Reads((1, 128, 96, 24), "int16")),
    "nifti_4d_small.nii": Framed(20, Reads((1, 17, 21, 3), "float32")),
    "nifti_uncompressed.nii": Reads((1, 33, 41, 25), "int16"),
    "nifti2.nii.gz": Framed(2, Reads((1, 32, 20, 12), "int16")),
    "nifti_header_only.hdr": Refused("only a header; its voxels are in nifti_header_only.img, which is missing"),
    "nifti_analyze75.hdr": Refused("Analyze 7.5"),
    "nifti_rgb.nii.gz": Reads((3, 10, 10, 4), "uint8"),
    "nifti_low_res.nii.gz": Reads((1, 7, 5, 3), "uint8"),
    "nifti_minimal.nii.gz": Reads((1, 64, 64, 10), "uint8", "neither qform nor sform"),
    "nifti_hippo.nii.gz": Reads((1, 91, 109, 91), "float32"),
    "freesurfer.mgz": Framed(2, Reads((1, 3, 4, 5), "float32")),
    "spine_t2s.nii.gz": Reads((1, 49, 54, 9), "float32"),
    # NRRD and MetaImage
    "breast_mri.nrrd": Reads((1, 45, 120, 21), "int16"),
    "breast_mri_label.nrrd": Reads((1, 45, 120, 21), "int16"),
    "prostate_phantom.nrrd": Reads((1, 82, 67, 13), "uint16"),
    "prostate_phantom_label.nrrd": Reads((1, 82, 67, 13), "int16"),
    "liver_seg_ct3slice.nrrd": Reads((1, 512, 512, 3), "int16"),
    "image.mha": Reads((1, 64, 64, 37), "int16"),
    # DICOM
    "dicom_single/CT_small.dcm": Reads((1, 128, 128, 1), "int16"),
    "dicom_single/MR_small.dcm": SLICE,
    "dicom_single/MR_small_bigendian.dcm": SLICE,
    "dicom_single/MR_small_implicit.dcm": SLICE,
    "dicom_single/MR_small_jpeg2000_lossless.dcm": SLICE,
    "dicom_single/MR_small_jpegls_lossless.dcm": SLICE,
    "dicom_single/MR_small_RLE.dcm": SLICE,
    "dicom_single/JPEG-lossy.dcm": Reads((1, 256, 1024, 1), "uint16", "does not state its position or orientation"),
    "dicom_single/JPEG2000.dcm": Reads((1, 256, 1024, 1), "int16", "does not state its position or orientation"),
    "dicom_single/MR_truncated.dcm": NO_IMAGE,
    "dicom_single/no_pixel_data_rtplan.dcm": NO_IMAGE,
    "dicom_single/rtstruct.dcm": NO_IMAGE,
    "dicom_single/no_meta.dcm": NO_IMAGE,
    "dicom_single/siemens_dwi_mosaic.dcm.gz": Refused("unpack it with gunzip"),
    "dicom_single/seg_ct_binary.dcm": Refused("a DICOM segmentation, not an image"),
    "dicom_single/ct_image_for_seg.dcm": Reads((1, 128, 128, 1), "int16"),
    "dicom_single": Refused("holds 4 DICOM series"),
    "dicom_mr_series": Reads((1, 35, 51, 32), "int16"),
    "dicom_ct_series": Reads((1, 141, 137, 6), "int16"),
    # Made from one MR of the hippocampus
    "derived_scl_slope_zero.nii.gz": Reads(CROP, "int16"),
    "derived_scl_slope_nan.nii.gz": Reads(CROP, "int16"),
    "derived_scl_slope_inf.nii.gz": Refused("repair scl_slope"),
    "derived_no_qform_no_sform.nii.gz": Reads(CROP, "int16", "neither qform nor sform"),
    "derived_pixdim_zero.nii.gz": Refused("put the true size into pixdim"),
    "derived_oblique_flipped.nii.gz": Reads(CROP, "int16"),
    "derived_oblique_flipped_label.nii.gz": Reads(CROP, "uint8"),
    "derived_label_float.nii.gz": Reads(CROP, "float32"),
    "derived_label_shape_mismatch.nii.gz": Reads((1, 22, 32, 24), "uint8"),
    "derived_label_affine_mismatch.nii.gz": Reads(CROP, "uint8"),
    "derived_2d.nii.gz": Reads((1, 24, 32, 1), "int16"),
    "derived_singleton_4th_axis.nii.gz": Reads(CROP, "int16"),
    "derived_nan_voxels.nii.gz": Reads(CROP, "float32", "152 voxels are NaN"),
    "derived_complex.nii.gz": Refused("save the magnitude"),
    "derived_constant.nii.gz": Reads(CROP, "int16"),
    "derived_big_endian.nii.gz": Reads(CROP, "int16"),
    "derived_truncated.nii.gz": Refused("cut short"),
    "derived_truncated_inside.nii.gz": Refused("cut short"),
    "derived_not_an_image.nii.gz": Refused("does not hold what its ending says"),
    "derived_gzipped_text.nii.gz": Refused("does not hold what its ending says"),
    "derived_empty.nii.gz": Refused("empty (0 bytes)"),
    "derived_not_gzipped.nii.gz": Reads(CROP, "int16"),
}
READABLE = {name: what for name, what in EXPECTED.items() if not isinstance(what, Refused)}
REFUSED = {name: what for name, what in EXPECTED.items() if isinstance(what, Refused)}


@pytest.fixture(scope="session")
def odd_files(shared_data) -> Path:
    folder = shared_data / "odd"
    if not folder.is_dir():
        pytest.skip(f"no odd files at {folder}")
    return folder


def one_line(error: pytest.ExceptionInfo[VolsamError], name: str) -> str:
    message = str(error.value)
    assert Path(name).name in message
    assert "\n" not in message
    assert len(message) > 20
    return message


# ---- What is expected


@pytest.mark.parametrize("name", READABLE)
def test_a_file_that_reads(odd_files, name, caplog):
    path, what = odd_files / name, EXPECTED[name]
    if not path.exists():
        pytest.skip(f"{name} is not among the odd files")
    if isinstance(what, Framed):
        with pytest.raises(BadInput) as refused:
            read_volume(path)
        assert f"holds {what.frames} frames: choose one with --frame 0..{what.frames - 1}" in one_line(refused, name)
        volume, what = read_volume(path, frame=what.frames - 1), what.each
    else:
        volume = read_volume(path)
    assert volume.data.shape == what.shape
    assert volume.data.dtype == what.dtype
    assert volume.grid == read_grid(path)
    assert bool(caplog.text) == bool(what.warning)
    assert what.warning in caplog.text


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_refused(odd_files, name, caplog):
    if not (odd_files / name).exists():
        pytest.skip(f"{name} is not among the odd files")
    with pytest.raises(BadInput) as refused:
        read_volume(odd_files / name)
    assert REFUSED[name].words in one_line(refused, name)
    assert name == "dicom_single" or refused.type is BadFile
    assert caplog.text == ""


@pytest.mark.parametrize("name", [name for name in READABLE if name.endswith((".nii", ".nii.gz", ".mgz"))])
def test_nibabel_sees_the_same_and_its_affine_is_that_of_the_mask(odd_files, name, tmp_path):
    if not (odd_files / name).exists():
        pytest.skip(f"{name} is not among the odd files")
    path = odd_files / name
    if name == "derived_not_gzipped.nii.gz":  # nibabel goes by the name
        path = tmp_path / "plain.nii"
        path.write_bytes((odd_files / name).read_bytes())
    image = nib.load(path)
    frame = EXPECTED[name].frames - 1 if isinstance(EXPECTED[name], Framed) else None
    volume = read_volume(odd_files / name, frame=frame)
    assert volume.grid.affine.tobytes() == image.affine.astype(np.float64).tobytes()
    if name != "nifti_rgb.nii.gz":
        values = image.get_fdata(dtype=np.float32)
        values = values[..., frame] if frame is not None else values.reshape(volume.grid.shape)
        np.testing.assert_allclose(volume.data[0], np.nan_to_num(values, nan=volume.data.min()), rtol=1e-6)

    write_volume(volume.with_data(volume.data[:1] > 0), tmp_path / "mask.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.affine.tobytes() == volume.grid.affine.tobytes()
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == image.shape[:3]


@pytest.mark.parametrize("name", [name for name in READABLE if name.endswith((".nrrd", ".mha", ".dcm"))])
def test_simpleitk_sees_the_same(odd_files, name, capfd, tmp_path):
    if not (odd_files / name).exists():
        pytest.skip(f"{name} is not among the odd files")
    image = sitk.ReadImage(str(odd_files / name))
    capfd.readouterr()
    same_as_simpleitk(read_volume(odd_files / name), image)
    if not name.endswith(".dcm"):
        volume, ending = read_volume(odd_files / name), Path(name).suffix
        write_volume(volume.with_data(volume.data > 0), tmp_path / f"mask{ending}")
        mask = sitk.ReadImage(str(tmp_path / f"mask{ending}"))
        same_geometry = [getter(mask) == getter(image) for getter in GEOMETRY]
        assert all(same_geometry)


@pytest.mark.parametrize("name", ["dicom_mr_series", "dicom_ct_series"])
def test_a_series_lies_where_simpleitk_puts_it(odd_files, name):
    if not (odd_files / name).is_dir():
        pytest.skip(f"{name} is not among the odd files")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(odd_files / name)))
    same_as_simpleitk(read_volume(odd_files / name), reader.Execute())


GEOMETRY = (sitk.Image.GetSize, sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection)


def same_as_simpleitk(volume: Volume, image) -> None:
    np.testing.assert_array_equal(volume.data[0], sitk.GetArrayFromImage(image).T)
    last = [size - 1 for size in image.GetSize()]
    for voxel in ([0, 0, 0], last):
        lps = image.TransformIndexToPhysicalPoint(voxel)
        np.testing.assert_allclose(volume.grid.to_world(voxel), np.multiply(lps, (-1, -1, 1)), atol=1e-4)


def test_labels_lie_on_their_image_or_not_as_their_names_say(odd_files):
    grids = {path.name: read_grid(path) for path in odd_files.glob("derived_oblique*.nii.gz")}
    if len(grids) < 2:
        pytest.skip("the oblique image and its label are not among the odd files")
    assert grids["derived_oblique_flipped.nii.gz"] == grids["derived_oblique_flipped_label.nii.gz"]
    image = read_grid(odd_files / "derived_label_float.nii.gz")
    assert read_grid(odd_files / "derived_label_shape_mismatch.nii.gz") != image
    assert read_grid(odd_files / "derived_label_affine_mismatch.nii.gz") != image


# ---- What holds for any file, named above or not


def test_every_file_reads_or_is_refused_in_one_line_and_nothing_is_printed(odd_files, capfd):
    walked = 0
    for path in [odd_files, *sorted(odd_files.rglob("*"))]:
        name = path.relative_to(odd_files.parent).as_posix()
        try:
            volume = first_frame(path)
        except VolsamError as error:
            message = str(error)
            assert message, name
            assert "\n" not in message, name
            continue
        walked += 1
        assert volume.data.shape == (volume.channels, *volume.grid.shape), name
        assert volume.data.dtype.isnative, name
        assert volume.data.dtype.kind in "iu" or volume.data.dtype == np.float32, name
        assert np.isfinite(volume.data).all(), name
    printed = capfd.readouterr()
    assert printed.err == printed.out == ""
    assert walked > 0


def first_frame(path: Path) -> Volume:
    """Read the only frame, or the first of several; other refusals pass through."""
    try:
        return read_volume(path)
    except BadInput as error:
        if "--frame" not in str(error):
            raise
        return read_volume(path, frame=0)


def test_no_odd_file_is_forgotten_in_the_table(odd_files):
    names = {path.relative_to(odd_files).as_posix() for path in odd_files.rglob("*")}
    in_series = {name for name in names if name.startswith(("dicom_mr_series/", "dicom_ct_series/"))}
    unnamed = names - in_series - set(EXPECTED)
    if unnamed:
        pytest.skip(f"walked without a stated expectation: {', '.join(sorted(unnamed))}")
