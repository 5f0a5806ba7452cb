"""What a user of `volsam segment` gets: a mask on the image's grid, or one line that says why not."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from volsam.cli.prompts import read_prompts
from volsam.data.io import read_grid, read_volume, write_volume
from volsam.data.synthetic import sample_volume
from volsam.geometry import Grid
from volsam.volume import Volume

from ..conftest import BALL_VOXEL
from .conftest import error_of

BALL = ",".join(map(str, BALL_VOXEL))


def test_one_click_gives_a_mask_beside_the_image(type_, a_model, a_scan, a_ball):
    result = type_("segment", a_scan, "-p", BALL)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in a_scan.parent.iterdir()) == ["ct.nii.gz", "ct_mask.nii.gz"]
    mask = read_volume(a_scan.with_name("ct_mask.nii.gz")).data[0] > 0
    assert 2 * (mask & a_ball).sum() / (mask.sum() + a_ball.sum()) > 0.8


def test_the_mask_has_the_grid_of_the_image_to_the_last_bit(type_, a_model, a_scan, tmp_path):
    assert type_("segment", a_scan, "-p", BALL, "-o", tmp_path / "ball.nii.gz").exit_code == 0
    mask, image = nibabel.load(tmp_path / "ball.nii.gz"), nibabel.load(a_scan)
    assert mask.shape == image.shape
    assert mask.get_data_dtype() == np.uint8
    assert mask.affine.tobytes() == image.affine.tobytes()


def test_the_result_is_told(type_, a_model, a_scan, tmp_path):
    output = tmp_path / "ball.nii.gz"
    lines = type_("segment", a_scan, "-p", BALL, "-o", output).stdout.splitlines()
    mask = read_volume(output)
    voxels = int(mask.data.sum())
    assert lines[0] == f"mask         {output}"
    assert lines[1] == f"object       {voxels:,} voxels, {voxels * mask.grid.voxel_volume / 1000:,.2f} ml"
    assert lines[2].startswith("quality      0.75")
    assert lines[3].startswith("seconds      start")


@pytest.mark.parametrize("space", ["voxel", "ras", "lps"])
def test_a_point_means_the_same_in_every_space(type_, a_model, a_scan, an_oblique_grid, space):
    x, y, z = an_oblique_grid.to_world(BALL_VOXEL)
    point = {"voxel": BALL, "ras": f"{x},{y},{z}", "lps": f"{-x},{-y},{z}"}[space]
    assert type_("segment", a_scan, "-p", point, "--space", space).exit_code == 0
    assert read_volume(a_scan.with_name("ct_mask.nii.gz")).data[0][BALL_VOXEL] == 1


def test_a_point_may_begin_with_a_minus(type_, a_model, a_scan):
    assert type_("segment", a_scan, "-p", "-0.25,3,4").exit_code == 0
    assert "-12" in error_of(type_("segment", a_scan, "-p", "-12,3,4"))


def test_points_are_given_one_by_one_with_their_signs(type_, a_model, a_scan):
    other = "24,20,14,-"
    assert type_("segment", a_scan, "-p", f"{BALL},+", "-p", other).exit_code == 0
    assert len(a_model.asked[0].points) == 1
    assert list(a_model.asked[-1].labels) == [True, False]
    assert read_volume(a_scan.with_name("ct_mask.nii.gz")).data[0][24, 20, 14] == 0


def test_a_box_alone_is_enough(type_, a_model, a_scan):
    assert type_("segment", a_scan, "--box", "14,12,10,30,28,18").exit_code == 0
    assert a_model.asked[0].boxes.shape == (1, 2, 3)


@pytest.mark.parametrize("page", ["README.md", "docs/tutorials/first-click.md", "docs/how-to/prompts-in-files.md"])
def test_the_box_of_a_page_holds_the_whole_organ_of_its_click(page):
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    box = re.search(r'--box ([\d,]+)|"low": (\[.*?\]), "high": (\[.*?\])', text)[0]
    corners = np.array([int(number) for number in re.findall(r"\d+", box)]).reshape(2, 3)
    labels = sample_volume()[1].data[0]
    organ = np.argwhere(labels == labels[70, 54, 44])
    margin = np.abs(corners - (organ.min(axis=0), organ.max(axis=0)))
    assert ((corners[0] <= organ.min(axis=0)) & (corners[1] >= organ.max(axis=0))).all()
    assert margin.max() <= 2


def test_prompts_come_from_a_file_before_those_of_the_line(type_, a_model, a_scan, a_ball, a_small_ct):
    write_volume(a_small_ct.with_data(a_ball.astype(np.uint8)), a_scan.with_name("start.nii.gz"))
    records = [
        {"type": "mask", "path": "start.nii.gz"},
        {"type": "point", "position": [22, 20, 14]},
        {"type": "scribble", "points": [[1, 1, 1], [2, 1, 1]], "positive": False},
        {"type": "point", "position": [1, 1, 2]},
    ]
    file = a_scan.with_name("prompts.json")
    file.write_text(json.dumps({"space": "voxel", "prompts": records}))
    output = a_scan.with_name("mask.nii.gz")
    result = type_("segment", a_scan, "--prompts", file, "-p", "20,20,14", "-o", output)
    assert result.exit_code == 0, result.output
    assert list(a_model.asked[-1].labels) == [True, False, False, True, True]
    assert "expected Dice" not in result.output, "of a mask that was given nobody knows"
    mask = read_volume(output).data[0] > 0
    assert mask[1, 1, 2]
    assert not (a_ball & ~mask).any()


def test_the_probability_is_written_on_the_grid_of_the_image(type_, a_model, a_scan, tmp_path):
    output = tmp_path / "probability.nii.gz"
    result = type_("segment", a_scan, "-p", BALL, "--uncertainty", output)
    assert result.exit_code == 0, result.output
    written, image = nibabel.load(output), nibabel.load(a_scan)
    values = np.asarray(written.dataobj)
    assert values.dtype == np.float32
    assert values.shape == image.shape
    assert written.affine.tobytes() == image.affine.tobytes()
    assert 0 <= values.min() < 0.1
    assert 0.9 < values[BALL_VOXEL] <= 1
    assert "spread       0.00 on average in the mask" in result.stdout


def test_the_picture_is_written(type_, a_model, a_scan, tmp_path):
    result = type_("segment", a_scan, "-p", BALL, "--preview", tmp_path / "ball.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "ball.png") as picture:
        assert picture.format == "PNG"
    assert f"picture      {tmp_path / 'ball.png'}" in result.stdout


def test_an_output_that_exists_is_written_anew(type_, a_model, a_scan):
    output = a_scan.with_name("ct_mask.nii.gz")
    output.write_text("old")
    assert type_("segment", a_scan, "-p", BALL).exit_code == 0
    assert read_volume(output).data.any()


def test_what_is_replaced_is_said(type_, a_model, a_scan, tmp_path):
    mask, picture = a_scan.with_name("ct_mask.nii.gz"), tmp_path / "ball.png"
    first, again = (type_("segment", a_scan, "-p", BALL, *more).stdout for more in ((), ("--preview", picture)))
    assert first.splitlines()[0] == f"mask         {mask}"
    assert again.splitlines()[0] == f"mask         {mask}, replaced"
    assert f"picture      {picture}\n" in again


@pytest.mark.parametrize("option", ["-o", "--uncertainty"])
def test_an_input_is_never_written_over(type_, a_model, a_scan, option, monkeypatch):
    before = a_scan.read_bytes()
    monkeypatch.chdir(a_scan.parent)
    assert "also given as IMAGE" in error_of(type_("segment", a_scan, "-p", BALL, option, a_scan.name))
    assert a_scan.read_bytes() == before


def test_two_outputs_do_not_share_a_file(type_, a_model, a_scan, tmp_path):
    output = tmp_path / "mask.nii"
    said = error_of(type_("segment", a_scan, "-p", BALL, "-o", output, "--uncertainty", output))
    assert "--uncertainty" in said
    assert "also given as -o" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-p", "1,2"), "a point is three numbers"),
        (("-p", "1,2,3,4"), "a point is three numbers"),
        (("-p", "one,2,3"), "a point is three numbers"),
        (("-p", "nan,2,3"), "a point is three numbers"),
        (("-p", "inf,2,3"), "a point is three numbers"),
        (("-p", ""), "a point is three numbers"),
        (("-p", "100,20,14"), "lies outside ct"),
        (("-p", "14,20,40"), "check the order of the axes"),
        (("--box", "1,2,3,4,5"), "a box is six numbers"),
        (("--box", "1,2,3,4,5,600"), "lies outside ct"),
        (("-p", "1,2,3,-"), "nothing that lies in the object"),
        ((), "no prompt came"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_refused_with_the_extent(type_, a_model, a_scan, words, told):
    said = error_of(type_("segment", a_scan, *words))
    assert told in said
    assert "0,0,0 to 47,43,29" in said
    assert a_model.images == []
    assert [path.name for path in a_scan.parent.iterdir()] == ["ct.nii.gz"]


@pytest.mark.parametrize("space", ["ras", "lps"])
def test_the_extent_is_told_in_the_space_of_the_point(type_, a_model, a_scan, an_oblique_grid, space):
    low, high = an_oblique_grid.extent()
    first = low[0] if space == "ras" else -high[0]
    said = error_of(type_("segment", a_scan, "-p", "here", "--space", space))
    assert f"ct spans {first:.4g}," in said
    assert f"mm ({space.upper()}+)" in said


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"prompts": []}', '"space" says'),
        ('{"space": "voxel", "prompts": {}}', "got dict"),
        ('{"space": "voxel", "prompts": [7]}', "prompt 1: a prompt is a table"),
        ('{"space": "voxel", "prompts": [{"type": "point"}]}', "prompt 1: a prompt of type 'point' needs"),
        ('{"space": "voxel", "prompts": [{"type": "point", "position": [1, 2]}]}', "three finite numbers"),
        ('{"space": "voxel", "prompts": [{"type": "mask"}]}', 'needs the "path"'),
        ('{"space": "voxel", "prompts": [{"type": "mask", "path": "gone.nii"}]}', "does not exist"),
        ('{"space": "voxel", "prompts": []}', "no prompt came"),
    ],
)
def test_a_prompts_file_that_makes_no_sense_is_refused(type_, a_model, a_scan, tmp_path, content, told):
    file = tmp_path / "prompts.json"
    file.write_text(content)
    assert told in error_of(type_("segment", a_scan, "--prompts", file))


def test_an_empty_starting_mask_is_refused(type_, a_model, a_scan, a_small_ct, tmp_path):
    write_volume(a_small_ct.with_data(np.zeros(a_small_ct.grid.shape, np.uint8)), tmp_path / "none.nii.gz")
    file = tmp_path / "prompts.json"
    file.write_text('{"space": "ras", "prompts": [{"type": "mask", "path": "none.nii.gz"}]}')
    assert "none.nii.gz is empty" in error_of(type_("segment", a_scan, "--prompts", file))


@pytest.fixture
def two_labels(a_scan, a_ball, a_small_ct):
    """A mask beside the scan in which the ball is 3 and a corner is 1."""
    labels = 3 * a_ball.astype(np.uint8)
    labels[:4, :4, :4] = 1
    write_volume(a_small_ct.with_data(labels), a_scan.with_name("labels.nii.gz"))

    def prompts(**more):
        file = a_scan.with_name("prompts.json")
        record = {"type": "mask", "path": "labels.nii.gz", **more}
        file.write_text(json.dumps({"space": "voxel", "prompts": [record]}))
        return file

    return prompts


def test_of_a_mask_with_labels_one_is_the_object(type_, a_model, a_scan, two_labels):
    file = two_labels(label=3)
    result = type_("segment", a_scan, "--prompts", file)
    assert result.exit_code == 0, result.output
    (hint,) = read_prompts(file, read_grid(a_scan), "ct")
    assert np.array_equal(hint.mask, read_volume(a_scan.with_name("labels.nii.gz")).data[0] == 3)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, 'labels.nii.gz holds the values 1, 3: add "label": N'),
        ({"label": 2}, '"label" is 2, but the starting mask labels.nii.gz holds 1, 3'),
        ({"label": 0}, "a whole number from 1, got 0"),
        ({"label": "liver"}, "a whole number from 1, got 'liver'"),
        ({"label": True}, "a whole number from 1, got True"),
    ],
)
def test_a_mask_with_labels_of_which_none_is_named_is_refused(type_, a_model, a_scan, two_labels, more, told):
    assert told in error_of(type_("segment", a_scan, "--prompts", two_labels(**more)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--box", "1,1,1,5,5,5", "--box", "8,8,8,12,12,12"), "boxes 1 and 2 do not overlap"),
        (("--box", "1,1,1,5,5,5", "-p", "20.2,20,14"), "the point at voxel 20.2,20,14 is to lie in the object, but"),
        (("-p", BALL, "-p", "22.1,20,14,-"), f"voxel {BALL} is to lie in the object and outside it"),
        (("--box", "1,1,4,5,5,4", "-p", "20,20,4"), "lies outside every box"),
        (("--box", "1,1,4,5,5,4", "--box", "8,8,4,12,12,4"), "boxes 1 and 2 do not overlap"),
    ],
)
def test_prompts_that_contradict_each_other_are_named(type_, a_model, a_scan, words, told):
    result = type_("segment", a_scan, *words)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("warning: ct: ")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--box", "1,1,1,5,5,5", "--box", "5,5,5,12,12,12", "-p", "12.4,12,12", "-p", "30,30,20,-"),
        ("--box", "1,1,4,5,5,4", "--box", "8,8,9,12,12,9", "-p", "30,30,20"),  # of 2D boxes on two slices
        ("-p", BALL, "-p", "23,20,14,-"),
    ],
)
def test_prompts_that_agree_pass_in_silence(type_, a_model, a_scan, words):
    result = type_("segment", a_scan, *words)
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-o", "mask.jpg"), "ends in .nii or"),
        (("-o", "gone/mask.nii.gz"), "the folder gone does not exist"),
        (("--preview", "picture.jpg"), "ends in .png"),
        (("--uncertainty", "."), "give the name of a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(type_, a_model, a_scan, words, told):
    assert told in error_of(type_("segment", a_scan, "-p", BALL, *words))
    assert a_model.images == []


def test_a_file_that_is_not_there_is_named(type_, a_model, tmp_path):
    assert "gone.nii.gz does not exist" in error_of(type_("segment", tmp_path / "gone.nii.gz", "-p", BALL))


def test_a_file_cut_short_leaves_nothing_behind(type_, a_model, a_scan):
    a_scan.write_bytes(a_scan.read_bytes()[:-2000])
    assert "cut short" in error_of(type_("segment", a_scan, "-p", BALL))
    assert [path.name for path in a_scan.parent.iterdir()] == ["ct.nii.gz"]


def test_a_model_that_is_not_there_is_named(type_, a_scan):
    said = error_of(type_("segment", a_scan, "-p", BALL, "--model", "volsam-x"))
    assert "did you mean 'volsam-s'" in said


def test_a_device_that_is_not_there_is_named(type_, a_scan):
    assert "--device is auto, cpu, cuda or mps" in error_of(type_("segment", a_scan, "-p", BALL, "--device", "tpu"))


def test_an_unknown_space_is_wrong_usage(type_, a_scan):
    assert type_("segment", a_scan, "-p", BALL, "--space", "mni").exit_code == 2


@pytest.fixture
def a_film(tmp_path: Path, a_small_ct: Volume) -> Path:
    """A file of two frames; the ball is bright in the second only."""
    frames = np.stack([np.zeros_like(a_small_ct.data[0]), a_small_ct.data[0]], axis=-1)
    nibabel.Nifti1Image(frames, a_small_ct.grid.affine).to_filename(tmp_path / "film.nii.gz")
    return tmp_path / "film.nii.gz"


def test_a_frame_must_be_chosen_where_there_are_several(type_, a_model, a_film):
    assert "choose one with --frame 0..1" in error_of(type_("segment", a_film, "-p", BALL))
    assert type_("segment", a_film, "-p", BALL, "--frame", "1").exit_code == 0
    assert read_volume(a_film.with_name("film_mask.nii.gz")).data.sum() > 100


@pytest.fixture
def a_pair_of_channels(tmp_path: Path, a_small_ct: Volume) -> Path:
    """A file of two channels; the ball is bright in the second only."""
    data = np.concatenate([np.zeros_like(a_small_ct.data), a_small_ct.data])
    write_volume(Volume(data, a_small_ct.grid, "pair"), tmp_path / "pair.nii.gz")
    return tmp_path / "pair.nii.gz"


def test_the_first_of_several_channels_is_taken_and_said(type_, a_model, a_pair_of_channels):
    result = type_("segment", a_pair_of_channels, "-p", BALL)
    assert result.exit_code == 0, result.output
    assert result.stderr == "note: pair has 2 channels; channel 0 is looked at, see --channel\n"
    assert not a_model.images[0].any()


def test_a_channel_may_be_chosen(type_, a_model, a_pair_of_channels):
    result = type_("segment", a_pair_of_channels, "-p", BALL, "--channel", "1")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert nibabel.load(a_pair_of_channels.with_name("pair_mask.nii.gz")).shape == (48, 44, 30)
    assert "2 channels, 0..1" in error_of(type_("segment", a_pair_of_channels, "-p", BALL, "--channel", "2"))


def test_a_volume_too_large_for_memory_is_refused_by_its_header(type_, a_model, tmp_path, monkeypatch):
    monkeypatch.setattr("volsam.data.memory.available_memory", lambda: 2_000_000_000)
    header = nibabel.Nifti1Header()
    header.set_data_shape((3000, 2000, 1000))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    (tmp_path / "vast.nii").write_bytes(header.binaryblock + bytes(4))
    said = error_of(type_("segment", tmp_path / "vast.nii", "-p", BALL))
    assert "3000 × 2000 × 1000 voxels, which take at least 18.0 GB of memory; 2.0 GB are free" in said


def test_the_picture_of_a_single_slice_has_one_plane(type_, a_model, tmp_path):
    grid = Grid.at((40, 50, 1), (1, 1, 5))
    slice_ = Volume(np.random.default_rng(0).normal(100, 20, grid.shape).astype(np.int16), grid)
    write_volume(slice_, tmp_path / "slice.nii.gz")
    assert type_("segment", tmp_path / "slice.nii.gz", "-p", "20,20,0", "--preview", tmp_path / "s.png").exit_code == 0
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.height > picture.width


def test_help_says_what_is_counted_from_where_and_what_the_default_is(type_, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = " ".join(type_("segment", "--help").stdout.replace("│", " ").split())
    assert "a run; without it volsam-s." in said
    assert "time point of a file with several, from 0; without it such a file is refused." in said
    assert "channel of a file with several, from 0; without it the first." in said
