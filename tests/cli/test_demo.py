"""What a newcomer sees first."""

import nibabel
from PIL import Image

from .conftest import error_of


def test_the_demo_makes_a_scan_a_mask_and_a_picture(type_, a_model, tmp_path):
    folder = tmp_path / "a" / "demo"
    result = type_("demo", "-o", folder)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["sample.nii.gz", "sample.png", "sample_labels.nii.gz", "sample_mask.nii.gz"]
    mask, image = nibabel.load(folder / "sample_mask.nii.gz"), nibabel.load(folder / "sample.nii.gz")
    assert mask.affine.tobytes() == image.affine.tobytes()
    with Image.open(folder / "sample.png") as picture:
        assert picture.width > 500


def test_the_demo_says_what_it_typed_and_how_well_it_went(type_, a_model, tmp_path):
    result = type_("demo", "-o", tmp_path)
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"volsam segment {tmp_path / 'sample.nii.gz'} -p ")
    assert any(line.startswith("Dice         0.") and "known object" in line for line in lines)
    typed = lines[0].split()[2:]
    assert type_("segment", *typed).exit_code == 0


def test_a_folder_that_cannot_be_made_is_refused(type_, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "the folder cannot be made" in error_of(type_("demo", "-o", tmp_path / "taken"))
