import gzip
import sys
import tracemalloc
from contextlib import suppress

import nibabel as nib
import numpy as np
import pytest

from volsam.data.io import WRITABLE, read_grid, read_volume, volume_name, write_volume
from volsam.errors import BadFile, BadInput, MissingExtra, VolsamError
from volsam.geometry import Grid
from volsam.volume import Volume

sitk = pytest.importorskip("SimpleITK", reason='needs the extra "itk"')

SHAPE = (9, 8, 7)
NIFTI = [".nii", ".nii.gz"]


@pytest.fixture
def some_values() -> np.ndarray:
    return np.random.default_rng(3).integers(-1000, 1000, SHAPE).astype(np.int16)


@pytest.fixture
def an_affine(an_oblique_grid) -> np.ndarray:
    return an_oblique_grid.affine


@pytest.fixture
def a_scan(some_values, an_affine) -> Volume:
    return Volume(some_values, Grid(SHAPE, an_affine), "scan")


def refusal(call, *arguments, kind=BadInput, **options) -> str:
    """The one line with which a call is refused."""
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


# ---- There and back


@pytest.mark.parametrize("ending", WRITABLE)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_a_volume_comes_back_as_it_went(tmp_path, a_scan, ending, dtype):
    volume = a_scan.with_data(np.abs(a_scan.data).astype(dtype))
    write_volume(volume, tmp_path / f"scan{ending}")
    back = read_volume(tmp_path / f"scan{ending}")
    assert back.name == "scan"
    assert back.data.dtype == dtype
    np.testing.assert_array_equal(back.data, volume.data)
    np.testing.assert_allclose(back.grid.affine, a_scan.grid.affine, atol=1e-4)
    assert back.grid == read_grid(tmp_path / f"scan{ending}")
    assert [file.name for file in tmp_path.iterdir()] == [f"scan{ending}"]


@pytest.mark.parametrize("ending", WRITABLE)
def test_a_mask_is_written_as_bytes_in_every_format(tmp_path, a_scan, ending):
    write_volume(a_scan.with_data(a_scan.data > 0), tmp_path / f"mask{ending}")
    back = read_volume(tmp_path / f"mask{ending}")
    assert back.data.dtype == np.uint8
    np.testing.assert_array_equal(back.data, a_scan.data > 0)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_channels_come_back_as_channels(tmp_path, a_scan, ending):
    volume = a_scan.with_data(np.stack([a_scan.data[0], a_scan.data[0] // 2, a_scan.data[0] // 3]))
    write_volume(volume, tmp_path / f"channels{ending}")
    back = read_volume(tmp_path / f"channels{ending}")
    assert back.channels == 3
    np.testing.assert_array_equal(back.data, volume.data)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_mask_of_an_itk_file_repeats_its_geometry(tmp_path, a_scan, ending):
    image = sitk.GetImageFromArray(a_scan.data[0].T)
    image.SetSpacing((0.1 + 0.2, 1 / 3, 2.7))
    image.SetOrigin((-123.456789, 1e-3, 77.1))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"scan{ending}"))
    volume = read_volume(tmp_path / f"scan{ending}")
    write_volume(volume.with_data(volume.data > 0), tmp_path / f"mask{ending}")
    source, mask = (sitk.ReadImage(str(tmp_path / f"{name}{ending}")) for name in ("scan", "mask"))
    assert mask.GetSpacing() == source.GetSpacing()
    assert mask.GetOrigin() == source.GetOrigin()
    assert mask.GetDirection() == source.GetDirection()
    for other in WRITABLE:
        write_volume(volume.with_data(volume.data > 0), tmp_path / f"other{other}")
        np.testing.assert_allclose(read_grid(tmp_path / f"other{other}").affine, volume.grid.affine, atol=1e-5)


def test_what_itk_reads_lies_where_itk_says(tmp_path, a_scan):
    write_volume(a_scan, tmp_path / "scan.nrrd")
    image = sitk.ReadImage(str(tmp_path / "scan.nrrd"))
    volume = read_volume(tmp_path / "scan.nrrd")
    lps = image.TransformIndexToPhysicalPoint((3, 2, 1))
    np.testing.assert_allclose(volume.grid.to_world((3, 2, 1)), np.multiply(lps, (-1, -1, 1)), atol=1e-5)
    assert image.GetPixel(3, 2, 1) == volume.data[0, 3, 2, 1]


@pytest.mark.parametrize("ending", NIFTI)
def test_the_same_mask_makes_the_same_bytes(tmp_path, a_scan, ending):
    for name in ("a", "b"):
        write_volume(a_scan.with_data(a_scan.data > 0), tmp_path / f"{name}{ending}")
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("scans/ct.nii.gz", "ct"),
        ("a.b.nii", "a.b"),
        ("CT.NII.GZ", "CT"),
        ("brain.mgz", "brain"),
        ("breast.seg.nrrd", "breast.seg"),
        ("1.2.840.10008", "1.2.840.10008"),
        ("slice.dcm", "slice"),
        ("series/", "series"),
        (".nii.gz", ".nii.gz"),
    ],
)
def test_the_name_is_the_file_name_without_its_endings(path, name):
    assert volume_name(path) == name


# ---- The affine of a mask, to the last bit


def sform_only(values, affine):
    image = nib.Nifti1Image(values, affine)
    image.header["qform_code"] = 0
    return image


def qform_only(values, affine):
    image = nib.Nifti1Image(values, None)
    image.header.set_qform(affine, code=1)
    image.header["sform_code"] = 0
    return nib.Nifti1Image(values, None, image.header)


def neither_form(values, affine):
    image = nib.Nifti1Image(values, None)
    image.header.set_zooms((0.7, 0.9, 1.1))
    return image


def both_forms(values, affine):
    image = qform_only(values, affine)
    image.header.set_sform(np.float32(affine) * 1.0001, code=4)
    return nib.Nifti1Image(values, None, image.header)


def double_precision(values, affine):
    return nib.Nifti2Image(values, np.diag([1 / 3, -0.7, 2.1, 1]) @ affine.astype(np.float64))


def big_endian(values, affine):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    image = nib.Nifti1Image(values, affine, header)
    assert image.header.endianness == ">"
    return image


@pytest.mark.parametrize("make", [sform_only, qform_only, neither_form, both_forms, double_precision, big_endian])
@pytest.mark.parametrize("ending", NIFTI)
def test_the_affine_of_a_nifti_mask_equals_that_of_its_nifti_image(tmp_path, some_values, an_affine, make, ending):
    nib.save(make(some_values, an_affine), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    write_volume(volume.with_data(volume.data > 0), tmp_path / f"mask{ending}")
    source, mask = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / f"mask{ending}")
    assert mask.affine.tobytes() == source.affine.tobytes() == volume.grid.affine.tobytes()
    assert mask.shape == source.shape
    assert type(mask) is type(source)
    assert mask.header.get_zooms() == source.header.get_zooms()
    for code in ("qform_code", "sform_code"):
        assert mask.header[code] == source.header[code]
    np.testing.assert_array_equal(mask.header.get_qform(), source.header.get_qform())
    assert read_volume(tmp_path / f"mask{ending}").grid == volume.grid


def test_the_affine_of_a_nifti_mask_equals_that_of_its_mgh_image(tmp_path, some_values, an_affine):
    nib.save(nib.MGHImage(some_values, np.diag([1.1, 1.1, 1.1, 1]) @ an_affine), tmp_path / "scan.mgz")
    volume = read_volume(tmp_path / "scan.mgz")
    for ending in (".nii.gz", ".mgz"):
        write_volume(volume.with_data(volume.data > 0), tmp_path / f"mask{ending}")
        mask = nib.load(tmp_path / f"mask{ending}")
        np.testing.assert_array_equal(mask.affine, nib.load(tmp_path / "scan.mgz").affine)
    assert isinstance(nib.load(tmp_path / "mask.nii.gz"), nib.Nifti1Image)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_the_affine_of_a_nifti_mask_equals_that_of_its_itk_volume(tmp_path, a_scan, ending):
    tilted = Volume(a_scan.data, Grid(SHAPE, np.diag([1.1, 1.1, 1.1, 1]) @ a_scan.grid.affine), "scan")
    write_volume(tilted, tmp_path / f"scan{ending}")
    volume = read_volume(tmp_path / f"scan{ending}")
    write_volume(volume.with_data(volume.data > 0), tmp_path / "mask.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert isinstance(mask, nib.Nifti1Image)
    np.testing.assert_array_equal(mask.affine, volume.grid.affine)


def test_an_affine_in_double_precision_is_kept_by_nifti_2_and_said_so(tmp_path, a_scan, caplog):
    grid = Grid(SHAPE, np.diag([1 + 1e-12, 1, 1, 1]) @ a_scan.grid.affine)
    write_volume(Volume(a_scan.data, grid, "resampled"), tmp_path / "out.nii.gz")
    image = nib.load(tmp_path / "out.nii.gz")
    assert isinstance(image, nib.Nifti2Image)
    np.testing.assert_array_equal(image.affine, grid.affine)
    assert "resampled needs the double precision of NIfTI-2" in caplog.text


def test_a_volume_moved_to_another_grid_does_not_keep_the_old_fields(tmp_path, a_scan):
    nib.save(nib.Nifti1Image(a_scan.data[0], a_scan.grid.affine), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    moved = Volume(volume.data, Grid.at(SHAPE, 2, (1, 2, 3)), "moved", volume.header)
    write_volume(moved, tmp_path / "moved.nii")
    np.testing.assert_array_equal(nib.load(tmp_path / "moved.nii").affine, moved.grid.affine)


@pytest.mark.parametrize("ending", WRITABLE)
def test_a_sheared_lattice_stays_sheared(tmp_path, a_scan, ending):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 0.75
    write_volume(Volume(a_scan.data, Grid(SHAPE, affine)), tmp_path / f"tilted{ending}")
    np.testing.assert_allclose(read_grid(tmp_path / f"tilted{ending}").affine, affine, atol=1e-6)
    if ending in NIFTI:
        assert nib.load(tmp_path / f"tilted{ending}").header["qform_code"] == 0


def test_other_programs_find_the_mask_in_the_same_place(tmp_path, a_scan):
    write_volume(a_scan, tmp_path / "scan.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    lps = image.TransformIndexToPhysicalPoint((3, 2, 1))
    np.testing.assert_allclose(a_scan.grid.to_world((3, 2, 1)), np.multiply(lps, (-1, -1, 1)), atol=1e-4)
    assert image.GetPixel(3, 2, 1) == a_scan.data[0, 3, 2, 1]


# ---- Values


@pytest.mark.parametrize("dtype", [">i2", "<i2", ">u4", "|u1", ">f4", "<i8"])
def test_unscaled_values_keep_their_type_in_native_order(tmp_path, a_scan, dtype):
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    values = np.abs(a_scan.data[0]).astype(dtype)
    nib.save(nib.Nifti1Image(values, a_scan.grid.affine, header), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.data.dtype == np.dtype(dtype).newbyteorder("=")
    assert volume.data.dtype.isnative
    np.testing.assert_array_equal(volume.data[0], values)


def scaled(path, values, slope, inter, endianness="<"):
    header = nib.Nifti1Header(endianness=endianness)
    header.set_data_shape(values.shape)
    header.set_data_dtype(values.dtype.newbyteorder(endianness))
    header.set_sform(np.eye(4), 1)
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, inter, 352
    path.write_bytes(header.binaryblock + bytes(4) + values.astype(header.get_data_dtype()).tobytes("F"))
    return path


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.float32, np.float64])
def test_scaled_values_become_float32_as_nibabel_has_them(tmp_path, some_values, dtype, endianness):
    path = scaled(tmp_path / "scan.nii", np.abs(some_values).astype(dtype), 0.0371, -1024, endianness)
    volume = read_volume(path)
    assert volume.data.dtype == np.float32
    np.testing.assert_allclose(volume.data[0], nib.load(path).get_fdata(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(("slope", "inter"), [(0, 5), (np.nan, np.nan), (np.nan, 3), (1, 0)])
def test_a_slope_that_says_nothing_leaves_the_values_alone(tmp_path, some_values, slope, inter):
    volume = read_volume(scaled(tmp_path / "scan.nii", some_values, slope, inter))
    assert volume.data.dtype == np.int16
    np.testing.assert_array_equal(volume.data[0], some_values)


@pytest.mark.parametrize(("slope", "inter"), [(np.inf, 0), (-np.inf, 0), (2, np.inf), (2, np.nan)])
def test_a_scaling_that_is_no_number_is_refused(tmp_path, some_values, slope, inter):
    path = scaled(tmp_path / "scan.nii", some_values, slope, inter)
    assert "repair scl_slope" in refusal(read_volume, path, kind=BadFile)


def test_doubles_become_floats(tmp_path, an_affine):
    values = np.random.default_rng(0).normal(size=SHAPE)
    for name, save in (("scan.nii", nib.save), ("scan.nrrd", None)):
        if save:
            save(nib.Nifti1Image(values, an_affine), tmp_path / name)
        else:
            sitk.WriteImage(sitk.GetImageFromArray(values.T), str(tmp_path / name))
        volume = read_volume(tmp_path / name)
        assert volume.data.dtype == np.float32
        np.testing.assert_array_equal(volume.data[0], values.astype(np.float32))


@pytest.mark.parametrize("slope", [1, 0.5])
def test_reading_takes_little_memory_beside_the_result(tmp_path, slope):
    path = scaled(tmp_path / "scan.nii", np.zeros((200, 200, 100), np.int16), slope, 0)
    tracemalloc.start()
    volume = read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < volume.data.nbytes + 24 * 2**20


def test_nan_is_background_and_infinities_are_the_extremes(tmp_path, an_affine, caplog):
    values = np.full(SHAPE, 5, np.float32)
    values[0, 0, :5] = (np.nan, np.inf, -np.inf, -3, 9)
    nib.save(nib.Nifti1Image(values, an_affine), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.data[0, 0, 0, :6], (-3, 9, -3, -3, 9, 5))
    assert "scan.nii.gz: 3 voxels are NaN or infinite; NaN is read as -3" in caplog.text


def test_nothing_but_nan_is_refused(tmp_path, an_affine):
    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), an_affine), tmp_path / "scan.nii.gz")
    assert "no finite value" in refusal(read_volume, tmp_path / "scan.nii.gz", kind=BadFile)


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd"])
def test_complex_values_are_refused(tmp_path, an_affine, name):
    values = np.zeros(SHAPE, np.complex64)
    if name.endswith(".nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / name))
    else:
        nib.save(nib.Nifti1Image(values, an_affine), tmp_path / name)
    assert "save the magnitude" in refusal(read_volume, tmp_path / name, kind=BadFile)


# ---- Frames, channels, slices


@pytest.fixture
def four_axes() -> np.ndarray:
    return np.arange(np.prod(SHAPE) * 3, dtype=np.int16).reshape(*SHAPE, 3)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mgz", "scan.mha"])
def test_one_frame_of_several_must_be_chosen(tmp_path, four_axes, an_affine, name):
    path = tmp_path / name
    if name.endswith(".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(four_axes.T.copy(), isVector=False), str(path))
    else:
        nib.save((nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image)(four_axes, an_affine), path)
    assert f"{name} holds 3 frames: choose one with --frame 0..2" in refusal(read_volume, path)
    for frame in range(3):
        np.testing.assert_array_equal(read_volume(path, frame=frame).data[0], four_axes[..., frame])
    for frame in (-1, 3):
        assert "3 frames, 0..2" in refusal(read_volume, path, frame=frame)
    assert read_grid(path).shape == SHAPE


def test_the_only_frame_may_be_named(tmp_path, a_scan):
    write_volume(a_scan, tmp_path / "scan.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii", frame=0).data, a_scan.data)
    assert "one frame" in refusal(read_volume, tmp_path / "scan.nii", frame=1)


def test_an_axis_of_length_one_is_dropped(tmp_path, some_values, an_affine):
    nib.save(nib.Nifti1Image(some_values[..., None, None, None], an_affine), tmp_path / "scan.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii").data[0], some_values)


def test_a_fifth_axis_and_a_vector_intent_are_channels(tmp_path, four_axes, an_affine):
    fifth = nib.Nifti1Image(four_axes[..., None, :], an_affine)
    fourth = nib.Nifti1Image(four_axes, an_affine)
    fourth.header.set_intent("vector")
    for image in (fifth, fourth):
        nib.save(image, tmp_path / "scan.nii.gz")
        np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii.gz").data, np.moveaxis(four_axes, 3, 0))


def test_frames_of_several_channels(tmp_path, an_affine):
    values = np.random.default_rng(0).integers(0, 99, (*SHAPE, 2, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, an_affine), tmp_path / "scan.nii.gz")
    assert "2 frames" in refusal(read_volume, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz", frame=1)
    np.testing.assert_array_equal(volume.data, np.moveaxis(values[..., 1, :], 3, 0))


def test_six_axes_are_refused(tmp_path, an_affine):
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 1, 1, 2), np.int16), an_affine), tmp_path / "scan.nii")
    assert "2 × 2 × 2 × 1 × 1 × 2" in refusal(read_volume, tmp_path / "scan.nii", kind=BadFile)


@pytest.mark.parametrize("parts", ["RGB", "RGBA"])
def test_colours_are_channels(tmp_path, an_affine, parts):
    values = np.random.default_rng(0).integers(0, 255, (*SHAPE, len(parts))).astype(np.uint8)
    coloured = np.ascontiguousarray(values).view([(part, "u1") for part in parts])[..., 0]
    nib.save(nib.Nifti1Image(coloured, an_affine), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert volume.data.dtype == np.uint8
    np.testing.assert_array_equal(volume.data, np.moveaxis(values, 3, 0))


def test_a_flat_image_is_one_slice_and_its_mask_is_flat_too(tmp_path, some_values, an_affine):
    nib.save(nib.Nifti1Image(some_values[..., 0], an_affine), tmp_path / "slice.nii.gz")
    volume = read_volume(tmp_path / "slice.nii.gz")
    assert volume.data.shape == (1, 9, 8, 1)
    write_volume(volume.with_data(volume.data > 0), tmp_path / "mask.nii.gz")
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == (9, 8)
    np.testing.assert_array_equal(mask.affine, volume.grid.affine)
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii.gz").data, volume.data > 0)


def test_a_picture_is_one_slice_of_three_channels(tmp_path, caplog):
    picture = np.random.default_rng(0).integers(0, 255, (6, 5, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), str(tmp_path / "frame.png"))
    volume = read_volume(tmp_path / "frame.png")
    np.testing.assert_array_equal(volume.data[..., 0], picture.transpose(2, 1, 0))
    assert "orientation is a guess" in caplog.text


# ---- Headers that say too little


def test_a_scan_without_orientation_is_read_as_nibabel_reads_it_with_a_warning(tmp_path, some_values, caplog):
    nib.save(neither_form(some_values, None), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    np.testing.assert_array_equal(volume.grid.affine, nib.load(tmp_path / "scan.nii").affine)
    assert "neither qform nor sform" in caplog.text


@pytest.mark.parametrize("make", [neither_form, qform_only])
@pytest.mark.parametrize("pixdim", [0, np.nan])
def test_voxels_without_a_size_are_refused(tmp_path, some_values, an_affine, make, pixdim):
    nib.save(make(some_values, an_affine), tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[84:88] = np.float32(pixdim).tobytes()  # pixdim[2]
    (tmp_path / "scan.nii").write_bytes(content)
    assert "put the true size into pixdim" in refusal(read_volume, tmp_path / "scan.nii", kind=BadFile)


def test_an_affine_that_flattens_space_is_refused_with_the_name_of_the_file(tmp_path, some_values):
    nib.save(nib.Nifti1Image(some_values, np.eye(4)), tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[280:296] = bytes(16)  # srow_x
    (tmp_path / "scan.nii").write_bytes(content)
    assert "scan.nii: the voxel axes do not span space" in refusal(read_volume, tmp_path / "scan.nii", kind=BadFile)


def test_lengths_that_are_not_millimetres_are_mentioned(tmp_path, some_values, caplog):
    image = nib.Nifti1Image(some_values, np.eye(4))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "scan.nii")
    read_volume(tmp_path / "scan.nii")
    assert "metres or microns" in caplog.text


def test_an_nrrd_without_a_space_is_mentioned(tmp_path, caplog):
    (tmp_path / "scan.nrrd").write_bytes(
        b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nencoding: raw\n\n" + bytes(range(24))
    )
    assert read_volume(tmp_path / "scan.nrrd").data[0, 1, 2, 3] == 23
    assert "does not say where its axes point" in caplog.text


# ---- Nothing is read from a file that is cut short


def saved_in_every_form(folder, values):
    """Files of each format and packing that can be cut."""
    image = sitk.GetImageFromArray(values.T)
    for name in ("raw.nrrd", "raw.mha"):
        sitk.WriteImage(image, str(folder / name))
    for name in ("packed.nrrd", "packed.mha"):
        sitk.WriteImage(image, str(folder / name), useCompression=True)
    for name in ("plain.nii", "packed.nii.gz"):
        nib.save(nib.Nifti1Image(values, np.eye(4)), folder / name)
        nib.save(nib.Nifti2Image(values, np.eye(4)), folder / f"two_{name}")
    for name in ("plain.mgh", "packed.mgz"):
        nib.save(nib.MGHImage(values, np.eye(4)), folder / name)
    sitk.WriteImage(sitk.Cast(image[:, :, 0], sitk.sitkUInt8), str(folder / "picture.png"))


FORMS = [
    *("raw.nrrd", "raw.mha", "packed.nrrd", "packed.mha", "plain.nii", "two_plain.nii", "packed.nii.gz"),
    *("two_packed.nii.gz", "plain.mgh", "packed.mgz", "picture.png"),
]


@pytest.mark.parametrize("name", FORMS)
def test_a_file_cut_anywhere_is_refused(tmp_path, some_values, name, capfd):
    saved_in_every_form(tmp_path, some_values)
    path = tmp_path / name
    whole = path.read_bytes()
    expected = read_volume(path).data
    voxels_end = len(whole)
    if name == "plain.mgh":
        voxels_end = 284 + some_values.nbytes  # a footer of remarks follows
    for kept in [*np.linspace(1, voxels_end - 9, 24).astype(int), *range(voxels_end - 8, voxels_end)]:
        path.write_bytes(whole[:kept])
        refusal(read_volume, path, kind=BadFile)
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_volume(path).data, expected)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", FORMS)
def test_garbage_behind_the_voxels_does_no_harm(tmp_path, some_values, name):
    saved_in_every_form(tmp_path, some_values)
    path = tmp_path / name
    expected = read_volume(path).data
    path.write_bytes(path.read_bytes() + b"\0\0left behind by some program")
    np.testing.assert_array_equal(read_volume(path).data, expected)


@pytest.mark.parametrize("name", ["packed.nii.gz", "packed.mgz", "packed.nrrd", "packed.mha"])
def test_packed_data_that_do_not_add_up_are_refused(tmp_path, some_values, name):
    saved_in_every_form(tmp_path, some_values)
    content = bytearray((tmp_path / name).read_bytes())
    content[-6] ^= 0xFF  # in the checksum of gzip, in the last voxels or the checksum of zlib
    content[-3] ^= 0xFF
    (tmp_path / name).write_bytes(content)
    refusal(read_volume, tmp_path / name, kind=BadFile)


def test_a_header_that_promises_the_moon_is_refused_before_memory_is_taken(tmp_path, some_values):
    for name in ("scan.nii", "scan.nii.gz"):
        nib.save(nib.Nifti1Image(some_values, np.eye(4)), tmp_path / name)
        opener = gzip.open if name.endswith(".gz") else open
        with opener(tmp_path / name, "rb") as file:
            content = bytearray(file.read())
        content[42:48] = np.array([30000] * 3, "<i2").tobytes()
        with opener(tmp_path / name, "wb") as file:
            file.write(content)
        assert "cut short" in refusal(read_volume, tmp_path / name, kind=BadFile)


def test_a_frame_is_not_read_from_a_file_whose_later_frames_are_missing(tmp_path, four_axes, an_affine):
    for name in ("scan.nii", "scan.nii.gz"):
        nib.save(nib.Nifti1Image(four_axes, an_affine), tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * 3 // 4])
        assert "cut short" in refusal(read_volume, tmp_path / name, frame=0, kind=BadFile)


# ---- Names and contents


def test_a_plain_file_under_a_packed_name_and_the_other_way_round(tmp_path, a_scan):
    write_volume(a_scan, tmp_path / "a.nii")
    write_volume(a_scan, tmp_path / "b.nii.gz")
    (tmp_path / "a.nii").rename(tmp_path / "plain.nii.gz")
    (tmp_path / "b.nii.gz").rename(tmp_path / "packed.nii")
    for name in ("plain.nii.gz", "packed.nii"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).data, a_scan.data)


def test_members_of_a_gzip_file_follow_one_another(tmp_path, a_scan):
    write_volume(a_scan, tmp_path / "scan.nii")
    content = (tmp_path / "scan.nii").read_bytes()
    parts = [gzip.compress(content[:100]), gzip.compress(content[100:500]), gzip.compress(content[500:])]
    (tmp_path / "scan.nii.gz").write_bytes(b"".join(parts))
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii.gz").data, a_scan.data)


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_content_counts_more_than_the_ending(tmp_path, a_scan, ending):
    write_volume(a_scan, tmp_path / f"scan{ending}")
    for name in ("scan.txt", "scan", "scan.nii.gz"):
        (tmp_path / f"scan{ending}").rename(tmp_path / name)
        np.testing.assert_array_equal(read_volume(tmp_path / name).data, a_scan.data)
        (tmp_path / name).rename(tmp_path / f"scan{ending}")


def test_a_pair_is_read_by_either_name_and_refused_without_its_other_half(tmp_path, a_scan):
    nib.save(nib.Nifti1Pair(a_scan.data[0], a_scan.grid.affine), tmp_path / "scan.hdr")
    for name in ("scan.hdr", "scan.img"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).data, a_scan.data)
    (tmp_path / "scan.img").rename(tmp_path / "other.img")
    assert "its voxels are in scan.img, which is missing" in refusal(read_volume, tmp_path / "scan.hdr", kind=BadFile)
    assert "needs its header other.hdr" in refusal(read_volume, tmp_path / "other.img", kind=BadFile)


@pytest.mark.parametrize(
    ("header", "raw"),
    [
        ("NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 3 4\nencoding: raw\ndata file: {}\n", "scan.nhdr"),
        ("NDims = 3\nDimSize = 2 3 4\nElementType = MET_UCHAR\nElementDataFile = {}\n", "scan.mhd"),
    ],
)
def test_voxels_in_a_file_of_their_own(tmp_path, header, raw):
    path = tmp_path / raw
    path.write_text(header.format("voxels.raw"))
    (tmp_path / "voxels.raw").write_bytes(bytes(range(24)))
    assert read_volume(path).data[0, 1, 2, 3] == 23
    (tmp_path / "voxels.raw").write_bytes(bytes(range(23)))
    assert "voxels.raw is cut short: 23 bytes of 24" in refusal(read_volume, path, kind=BadFile)
    (tmp_path / "voxels.raw").unlink()
    assert "voxels.raw, which is missing" in refusal(read_volume, path, kind=BadFile)
    path.write_text(header.format("/etc/passwd"))
    assert "put it beside" in refusal(read_volume, path, kind=BadFile)
    path.write_text(header.format("slice%03d.raw 1 4 1"))
    assert "several files" in refusal(read_volume, path, kind=BadFile)


def test_voxels_as_text_are_counted(tmp_path):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nencoding: ascii\n\n"
    path = tmp_path / "scan.nrrd"
    path.write_text(header + " ".join(map(str, range(24))))
    assert read_volume(path).data[0, 1, 2, 3] == 23
    path.write_text(header + " ".join(map(str, range(20))))
    assert "20 numbers of 24" in refusal(read_volume, path, kind=BadFile)


def test_a_list_of_values_in_an_nrrd_is_channels_wherever_it_stands(tmp_path):
    fields = (
        "NRRD0004\ntype: uchar\ndimension: 4\nspace: left-posterior-superior\nencoding: raw\nspace origin: (1,2,3)\n"
    )
    axes = "(1,0,0) (0,2,0) (0,0,3)"
    first = f"sizes: 2 3 4 5\nkinds: list domain domain domain\nspace directions: none {axes}\n\n"
    last = f"sizes: 3 4 5 2\nkinds: domain domain domain list\nspace directions: {axes} none\n\n"
    values = np.arange(120, dtype=np.uint8)
    for name, rest in (("first.seg.nrrd", first), ("last.seg.nrrd", last)):
        (tmp_path / name).write_bytes((fields + rest).encode() + values.tobytes())
    expected = values.reshape(2, 3, 4, 5, order="F")
    np.testing.assert_array_equal(read_volume(tmp_path / "first.seg.nrrd").data, expected)
    np.testing.assert_array_equal(
        read_volume(tmp_path / "last.seg.nrrd").data, np.moveaxis(values.reshape(3, 4, 5, 2, order="F"), 3, 0)
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("scan.nii.gz", b"", "empty"),
        ("scan.nii", b"this is no scan", "not hold what its ending says"),
        ("scan.nii.gz", gzip.compress(b"<html>not found</html>", mtime=0), "not hold what its ending says"),
        ("scan.mgz", b"version https://git-lfs.github.com/spec/v1", "not hold what its ending says"),
        ("scan.nrrd", b"NRRD0004\nnonsense\n\n", "cannot be read as NRRD"),
        ("scan.nrrd", b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: bzip2\n\n", "NRRD"),
        ("scan.mha", b"ObjectType = Image\nNDims = 9\n", "MetaImage"),
        ("notes.txt", b"hello", "no kind that is read; known endings are .nii, .nii.gz"),
        ("scan.pdf", b"%PDF-1.7", "known endings"),
        ("scan.dcm", b"no DICOM either", "cannot be read as DICOM"),
        ("scan.nrrd.gz", gzip.compress(b"NRRD0004\ntype: short\n\n", mtime=0), "gunzip"),
        ("scan.hdr", (348).to_bytes(4, "little") + bytes(344), "Analyze"),
        ("scan.nii", (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(200), "cannot be read|axes|0 mm|size"),
        ("scan.nii", b"\xff" * 344 + b"n+1\0" + b"\xff" * 200, "scan.nii"),
        ("scan.mgh", b"\0\0\0\x01" + b"\xff" * 300, "axes"),
        ("scan.mgh", b"\0\0\0\x01" + b"\0\0\0\x02" * 100, "scan.mgh"),
    ],
)
def test_what_is_no_volume_is_refused_in_one_line(tmp_path, name, content, says, capfd):
    (tmp_path / name).write_bytes(content)
    message = refusal(read_volume, tmp_path / name, kind=BadFile)
    assert name in message
    assert any(part in message for part in says.split("|"))
    assert "0x" not in message
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_nothing_and_a_folder_of_nothing_are_refused(tmp_path):
    assert "does not exist" in refusal(read_volume, tmp_path / "scan.nii.gz", kind=BadFile)
    assert "folder without a DICOM series" in refusal(read_volume, tmp_path, kind=BadFile)


def test_random_headers_never_end_in_a_traceback(tmp_path, a_scan):
    write_volume(a_scan, tmp_path / "scan.nii")
    whole = (tmp_path / "scan.nii").read_bytes()
    random = np.random.default_rng(5)
    for _ in range(150):
        content = bytearray(whole)
        for place in random.integers(4, 344, 4):
            content[place] = random.integers(0, 256)
        (tmp_path / "broken.nii").write_bytes(content)
        with suppress(VolsamError):
            read_volume(tmp_path / "broken.nii")


def test_formats_of_the_extra_name_it_when_it_is_missing(tmp_path, a_scan, monkeypatch):
    write_volume(a_scan, tmp_path / "scan.nrrd")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    says = 'needs the extra "itk": pip install "volsam[itk]"'
    assert f"reading scan.nrrd {says}" in refusal(read_volume, tmp_path / "scan.nrrd", kind=MissingExtra)
    assert f"writing mask.mha {says}" in refusal(write_volume, a_scan, tmp_path / "mask.mha", kind=MissingExtra)
    write_volume(a_scan, tmp_path / "scan.nii.gz")
    assert read_volume(tmp_path / "scan.nii.gz").grid == a_scan.grid


# ---- Writing whole or not at all


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mask.stl", "choose one of .nii, .nii.gz"),
        ("mask", "choose one of"),
        ("mask.mhd", "write .mha instead"),
        ("mask.nhdr", "write .nrrd instead"),
        ("mask.img", "write .nii instead"),
        ("missing/mask.nii.gz", "does not exist: make it first"),
        ("", "is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(tmp_path, a_scan, name, says):
    assert says in refusal(write_volume, a_scan, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", WRITABLE)
@pytest.mark.parametrize("trouble", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
def test_what_stops_half_way_leaves_the_old_file_and_no_other(tmp_path, a_scan, monkeypatch, ending, trouble):
    path = tmp_path / f"mask{ending}"
    path.write_bytes(b"the old mask")

    def fail(*_, **__):
        assert len(list(tmp_path.iterdir())) <= 2
        raise trouble

    monkeypatch.setattr("volsam.data.nifti.rearrange", fail)
    monkeypatch.setattr("volsam.data.itk.rearrange", fail)
    monkeypatch.setattr(nib.MGHImage, "to_filename", fail)
    with pytest.raises((BadInput, KeyboardInterrupt, RuntimeError)):
        write_volume(a_scan, path)
    assert path.read_bytes() == b"the old mask"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line(tmp_path, a_scan, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("volsam.data.nifti.rearrange", fail)
    assert "mask.nii cannot be written: No space left on device" in refusal(write_volume, a_scan, tmp_path / "mask.nii")


@pytest.mark.parametrize("ending", WRITABLE)
@pytest.mark.parametrize("dtype", [">i2", ">f4", "float16", "longdouble"])
def test_any_way_to_hold_numbers_is_written_rightly(tmp_path, a_scan, ending, dtype):
    write_volume(a_scan.with_data(a_scan.data.astype(dtype)), tmp_path / f"scan{ending}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"scan{ending}").data, a_scan.data)


@pytest.mark.parametrize("ending", [".NII", ".NII.GZ", ".MGZ", ".NRRD", ".MHA"])
def test_endings_may_be_in_capitals(tmp_path, a_scan, ending):
    write_volume(a_scan, tmp_path / f"SCAN{ending}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"SCAN{ending}").data, a_scan.data)
    assert [file.name for file in tmp_path.iterdir()] == [f"SCAN{ending}"]
    assert ((tmp_path / f"SCAN{ending}").read_bytes()[:2] == b"\x1f\x8b") == ending.endswith("Z")


def test_what_a_format_cannot_hold_is_refused(tmp_path, a_scan):
    two = a_scan.with_data(np.concatenate([a_scan.data, a_scan.data]))
    assert "a.mgz cannot hold 2 channels" in refusal(write_volume, two, tmp_path / "a.mgz")
    wide = a_scan.with_data(a_scan.data.astype(np.int64) + 2**40)
    assert "beyond 32 bits" in refusal(write_volume, wide, tmp_path / "a.mgz")
    imaginary = a_scan.with_data(a_scan.data.astype(np.complex64))
    assert "complex64" in refusal(write_volume, imaginary, tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "kept"), [("float16", "float32"), ("float64", "float32"), ("int8", "int32")])
def test_types_that_mgh_lacks_become_wider_ones(tmp_path, a_scan, dtype, kept):
    values = (a_scan.data % 100).astype(dtype)
    write_volume(a_scan.with_data(values), tmp_path / "scan.mgz")
    back = read_volume(tmp_path / "scan.mgz").data
    assert back.dtype == kept
    np.testing.assert_array_equal(back, values)


# ---- DICOM


def save_series(folder, values, positions, uid="1.2.3", slope=lambda _: None):
    """Write the slices of (i, j, k) values as DICOM files at `positions` (LPS mm)."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, position in enumerate(positions):
        image = sitk.GetImageFromArray(values[:, :, k].T)
        image.SetSpacing((0.8, 0.9))
        tags = {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.128",
            "0008|0018": f"{uid}.{k + 1}",
            "0008|0060": "PT",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0013": str(k),
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        if slope(k) is not None:
            tags |= {"0028|1053": str(slope(k)), "0028|1052": "0"}
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        # Names against the order of the slices, which the reader has to find by position.
        writer.SetFileName(str(folder / f"{99 - k}.dcm"))
        writer.Execute(image)
    return folder


def straight(count, gap=2.5):
    return [(-10.0, 20.0, 5 + gap * k) for k in range(count)]


def test_a_series_is_put_in_order_by_position(tmp_path, some_values):
    folder = save_series(tmp_path / "series", some_values, straight(7))
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.data[0], some_values)
    np.testing.assert_allclose(volume.grid.affine @ (0, 0, 0, 1), (10, -20, 5, 1))
    np.testing.assert_allclose(volume.grid.spacing, (0.8, 0.9, 2.5))
    assert volume.name == "series"
    assert volume.grid == read_grid(folder)
    write_volume(volume.with_data(volume.data > 0), tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "mask.nii.gz").affine, volume.grid.affine)


def test_a_tilted_gantry_makes_a_sheared_lattice(tmp_path, some_values):
    folder = save_series(tmp_path / "series", some_values, [(0, -0.5 * k, 2.0 * k) for k in range(7)])
    grid = read_grid(folder)
    np.testing.assert_allclose(grid.to_world((0, 0, 4)), (0, 2, 8), atol=1e-6)


def test_a_missing_slice_is_refused(tmp_path, some_values):
    folder = save_series(tmp_path / "series", some_values, straight(7))
    (folder / "96.dcm").unlink()
    assert "2.5 to 5 mm apart" in refusal(read_volume, folder)


def test_slices_in_one_place_are_refused(tmp_path, some_values):
    folder = save_series(tmp_path / "series", some_values, straight(7, gap=0))
    assert "several stacks" in refusal(read_volume, folder)


@pytest.mark.parametrize("kept", [0, 10, 140, 300, -40])
def test_a_slice_that_is_cut_short_is_refused_even_at_the_end(tmp_path, some_values, kept):
    folder = save_series(tmp_path / "series", some_values, straight(7))
    last = folder / "93.dcm"
    last.write_bytes(last.read_bytes()[:kept])
    assert "93.dcm is cut short or damaged" in refusal(read_volume, folder, kind=BadFile)


def test_notes_beside_a_series_do_no_harm(tmp_path, some_values):
    folder = save_series(tmp_path / "series", some_values, straight(7))
    (folder / "notes.txt").write_text("hello")
    (folder / "._99.dcm").write_bytes(b"what macOS leaves on a stick")
    slice_ = (folder / "99.dcm").read_bytes()
    (folder / "report.dcm").write_bytes(slice_[:300].replace(b"5.1.4.1.1.128", b"5.1.4.1.1.888"))
    (folder / "masks").mkdir()
    np.testing.assert_array_equal(read_volume(folder).data[0], some_values)


def test_two_series_in_a_folder_are_refused(tmp_path, some_values):
    folder = save_series(tmp_path / "series", some_values, straight(7))
    save_series(tmp_path / "other", some_values, straight(7), uid="1.2.4")
    for file in (tmp_path / "other").iterdir():
        file.rename(folder / f"b{file.name}")
    refused = refusal(read_volume, folder)
    assert "holds 2 DICOM series" in refused
    assert refused.count("7 slices such as") == 2


def test_slices_of_another_size_are_refused(tmp_path, some_values):
    folder = save_series(tmp_path / "series", some_values, straight(6))
    save_series(tmp_path / "other", some_values[:5], [(-10.0, 20.0, 20.0)])
    (tmp_path / "other" / "99.dcm").rename(folder / "x.dcm")
    assert "different size or direction" in refusal(read_volume, folder)


def test_each_slice_keeps_its_own_slope(tmp_path, some_values):
    folder = save_series(tmp_path / "series", some_values // 2 * 2, straight(7), slope=lambda _: 2)
    for k in range(1, 7):
        # SimpleITK writes whole slopes only, so the text of the tag is changed in the file.
        content = (folder / f"{99 - k}.dcm").read_bytes()
        two, own = b"\x28\0\x53\x10\2\0\0\x002 ", b"\x28\0\x53\x10\4\0\0\x000.%d5" % k
        assert two in content
        (folder / f"{99 - k}.dcm").write_bytes(content.replace(two, own))
    volume = read_volume(folder)
    single = [read_volume(folder / f"{99 - k}.dcm").data[0] for k in range(7)]
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data[0], np.concatenate(single, axis=-1))
    assert len({values.dtype for values in single}) > 1


def test_reading_leaves_the_error_stream_as_it_was(tmp_path, some_values, capfd):
    read_volume(save_series(tmp_path / "series", some_values, straight(7)))
    capfd.readouterr()
    sys.stderr.write("still there\n")
    assert capfd.readouterr().err == "still there\n"
