from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from volsam.data.simulate import clicks_per_slice
from volsam.errors import BadInput, NotSupported
from volsam.evaluation.metrics import dice
from volsam.geometry import Grid, resample
from volsam.inference.session import Session
from volsam.inference.slice_predictor import SlicePredictor
from volsam.inference.slices import MEDSAM, SAM, SAM_MED2D, SliceMask, SliceModel, SlicePrompts, SliceStyle, plane_of
from volsam.models.segmenter import Segmenter
from volsam.prompts import Box, Click, MaskHint, PromptSet
from volsam.recipes.families.family import fill, load_families
from volsam.recipes.families.fixture import read_fixture
from volsam.volume import Volume

RECORDED = Path(__file__).parent.parent / "reference" / "sam2d.json"


def network() -> Segmenter:
    """A small SAM with the weights of the recorded fixture; slices of 128 pixels."""
    fixture = read_fixture(RECORDED)
    made = load_families()["sam"].build(fixture)
    fill(made, load_families()["sam"], fixture.weights(), "test")
    assert isinstance(made, Segmenter)
    return made


class BrightParts(SliceModel):
    """Takes the bright part under a click, or all that is bright in a box; keeps count of what it was asked."""

    def __init__(self, style: SliceStyle = SAM) -> None:
        super().__init__(network(), "bright", style)
        self.encoded: list[np.ndarray] = []
        self.asked: list[SlicePrompts] = []

    def encode_slice(self, pixels: np.ndarray) -> np.ndarray:
        self.encoded.append(pixels)
        return pixels

    def decode_slice(self, encoded, prompts, shape, previous=None, candidates=None) -> SliceMask:
        self.asked.append(prompts)
        parts, _ = ndimage.label(encoded > 127)
        mask = np.zeros(shape, bool)
        for point, label in zip(np.round(prompts.points).astype(int), prompts.labels, strict=True):
            part = parts == parts[tuple(point)]
            if parts[tuple(point)]:
                mask = mask | part if label else mask & ~part
        if not prompts.labels.any() and prompts.box is not None:
            low, high = np.floor(prompts.box[0]).astype(int), np.ceil(prompts.box[1]).astype(int) + 1
            window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            mask[window] = parts[window] > 0
        logits = np.where(mask, 5.0, -5.0).astype(np.float32)
        return SliceMask(logits, logits, 0.8)


def ball(grid: Grid, middle: tuple[float, float, float], radius: float) -> np.ndarray:
    places = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    return np.linalg.norm(places - np.array(middle), axis=-1) < radius


MIDDLE = (20.0, 24.0, 18.0)


def scan(grid: Grid | None = None) -> tuple[Volume, np.ndarray]:
    """A bright ball, and a second one that must not be taken."""
    grid = Grid.at((40, 44, 36)) if grid is None else grid
    wanted = ball(grid, MIDDLE, 9)
    other = ball(grid, (33.0, 36.0, 30.0), 4)
    return Volume((100.0 + 300 * (wanted | other))[None].astype(np.float32), grid, "balls"), wanted


def answered(volume: Volume, prompts: list, model: SliceModel | None = None, **how) -> np.ndarray:
    session = Session(model or BrightParts(), volume, **how)
    session.add_all(PromptSet(prompts))
    return session.mask.data[0] > 0


def test_an_object_is_followed_from_one_clicked_slice_to_its_ends() -> None:
    volume, wanted = scan()
    assert np.array_equal(answered(volume, [Click(MIDDLE)]), wanted)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_in_any_plane(plane: str) -> None:
    volume, wanted = scan()
    model = BrightParts()
    assert np.array_equal(answered(volume, [Click(MIDDLE)], model, plane=plane), wanted)
    shape = {"axial": (44, 40), "coronal": (36, 40), "sagittal": (36, 44)}[plane]
    assert {pixels.shape for pixels in model.encoded} == {shape}


@pytest.mark.parametrize(("order", "signs"), [*zip(permutations(range(3)), product((1, -1), repeat=3), strict=False)])
def test_the_order_in_which_a_file_keeps_its_axes_does_not_matter(order: tuple, signs: tuple) -> None:
    volume, wanted = scan()
    affine, flipped = np.eye(4), [-1 if sign < 0 else 1 for sign in signs]
    shape = tuple(np.array(volume.grid.shape)[list(order)])
    for axis, (source, sign) in enumerate(zip(order, flipped, strict=True)):
        affine[:3, axis] = sign * np.eye(3)[source]
        if sign < 0:
            affine[source, 3] = volume.grid.shape[source] - 1
    turned = Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    there = Volume(resample(volume.data, volume.grid, turned), turned, "turned")
    found = answered(there, [Click(MIDDLE)], plane="axial")
    assert np.array_equal(resample(found.astype(np.uint8), turned, volume.grid) > 0, wanted)


def test_slices_are_shown_as_radiologists_see_them() -> None:
    data = np.zeros((6, 8, 10), np.float32)
    data[1, 2, :] = 255  # towards the left of the patient's right side, and the back
    volume = Volume(data[None], Grid.at((6, 8, 10)), "corner")
    row, column = np.argwhere(SlicePredictor(BrightParts(), volume, "axial").pixels(4) > 0)[0]
    assert (row, column) == (7 - 2, 5 - 1)  # rows run to the back, columns to the patient's left


def test_without_following_only_prompted_slices_are_answered() -> None:
    volume, wanted = scan()
    found = answered(volume, [Click((20, 24, 18)), Click((20, 24, 21))], follow=False, plane="axial")
    assert np.flatnonzero(found.any(axis=(0, 1))).tolist() == [18, 21]
    assert np.array_equal(found[..., 18], wanted[..., 18])


def test_the_protocol_of_the_papers_is_one_session_away() -> None:
    volume, wanted = scan()
    model = BrightParts()
    clicks = clicks_per_slice(wanted, volume.grid, 3)
    assert np.array_equal(answered(volume, clicks, model, follow=False, plane="axial"), wanted)
    assert [len(asked.points) for asked in model.asked] == [3] * int(wanted.any(axis=(0, 1)).sum())


def test_a_slice_with_clicks_of_its_own_is_answered_by_them() -> None:
    volume, _ = scan()
    model = BrightParts()
    answered(volume, [Click(MIDDLE), Click((20, 24, 20)), Click((21, 25, 20), False)], model, plane="axial")
    own = [asked for asked in model.asked if len(asked.points) == 2]
    assert [asked.labels.tolist() for asked in own] == [[True, False]]


def test_a_negative_click_alone_refines_the_slice_that_was_followed_to() -> None:
    volume, _ = scan()
    model = BrightParts()
    answered(volume, [Click(MIDDLE), Click((3, 3, 20), False)], model, plane="axial")
    refined = [asked for asked in model.asked if not asked.labels.all()]
    assert [asked.labels.tolist() for asked in refined] == [[False, True]]
    assert refined[0].box is not None


def test_a_box_bounds_the_slices() -> None:
    volume, wanted = scan()
    found = answered(volume, [Box((9, 13, 14), (31, 35, 20))], plane="axial")
    assert np.flatnonzero(found.any(axis=(0, 1))).tolist() == list(range(14, 21))
    assert dice(found[..., 14:21], wanted[..., 14:21]) > 0.99


def test_a_box_on_one_slice_is_followed() -> None:
    volume, wanted = scan()
    assert np.array_equal(answered(volume, [Box((9, 13, 18), (31, 35, 18))], plane="axial"), wanted)


def test_a_box_flat_across_the_plane_is_refused() -> None:
    volume, _ = scan()
    with pytest.raises(BadInput, match="flat across"):
        answered(volume, [Box((9, 24, 10), (31, 24, 30))], plane="axial")


def test_following_stops_where_the_object_leaks() -> None:
    grid = Grid.at((40, 44, 36))
    data = 100.0 + 300 * ball(grid, MIDDLE, 9)
    data[:, :, 24:] = 400  # everything is bright from here on
    found = answered(Volume(data[None].astype(np.float32), grid, "leak"), [Click(MIDDLE)], plane="axial")
    assert found.any(axis=(0, 1)).nonzero()[0].max() == 23


def test_a_mask_of_one_slice_is_followed() -> None:
    volume, wanted = scan()
    part = np.zeros_like(wanted)
    part[..., 17] = wanted[..., 17]
    assert np.array_equal(answered(volume, [MaskHint(part, volume.grid)], plane="axial"), wanted)


def test_a_mask_of_several_slices_changes_in_the_slices_that_are_clicked() -> None:
    volume, wanted = scan()
    part = np.zeros_like(wanted)
    part[..., 15:20] = wanted[..., 15:20]
    part[..., 16] = False
    part[18:23, 22:27, 16] = wanted[18:23, 22:27, 16]
    part[2:7, 2:7, 18] = True
    hint = MaskHint(part, volume.grid)
    assert np.array_equal(answered(volume, [hint], plane="axial"), part)
    i, j = np.argwhere(wanted[..., 16] & ~part[..., 16])[0]
    both = answered(volume, [hint, Click((i, j, 16)), Click((4, 4, 18), positive=False)], plane="axial")
    assert both[i, j, 16]
    assert not both[4, 4, 18]
    assert np.array_equal(np.delete(both, [16, 18], axis=2), np.delete(part, [16, 18], axis=2))
    assert np.array_equal(both[8:, 8:, 18], part[8:, 8:, 18])


def test_all_of_a_mask_may_be_taken_away() -> None:
    volume, _ = scan()
    part = np.zeros(volume.grid.shape, bool)
    part[4, 4, 17:19] = True
    away = [Click((4, 4, index), positive=False) for index in (17, 18)]
    assert not answered(volume, [MaskHint(part, volume.grid), *away], plane="axial").any()


def test_every_slice_is_encoded_once() -> None:
    volume, _ = scan()
    model = BrightParts()
    session = Session(model, volume, plane="axial")
    session.add(Click(MIDDLE))
    first = len(model.encoded)
    session.add(Click((22, 24, 18)))
    session.undo()
    assert len(model.encoded) == first


def test_medsam_takes_boxes_only() -> None:
    volume, _ = scan()
    session = Session(BrightParts(MEDSAM), volume)
    with pytest.raises(BadInput, match="takes no click; it takes: box, flat box"):
        session.add(Click(MIDDLE))
    assert len(session.prompts) == 0


def test_uncertainty_needs_a_model_of_volumes() -> None:
    volume, _ = scan()
    session = Session(BrightParts(), volume)
    session.add(Click(MIDDLE))
    with pytest.raises(NotSupported, match="one slice at a time"):
        session.uncertainty()
    assert session.probability.data.max() > 0.9


@pytest.mark.parametrize(
    ("spacing", "plane"), [((1, 1, 1), "axial"), ((1, 1, 5), "axial"), ((4, 1, 1), "sagittal"), ((1, 3, 1), "coronal")]
)
def test_the_plane_is_the_one_in_which_the_scan_was_taken(spacing: tuple, plane: str) -> None:
    assert plane_of(Grid.at((10, 10, 10), spacing)) == plane


def test_an_unknown_plane_is_refused() -> None:
    with pytest.raises(BadInput, match="axial, coronal, sagittal, got 'oblique'"):
        SlicePredictor(BrightParts(), scan()[0], "oblique")


# --- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("style", "shown"), [(SAM, (128, 64)), (SAM_MED2D, (128, 128)), (MEDSAM, (128, 128))])
def test_a_slice_is_brought_to_the_size_of_the_model(style: SliceStyle, shown: tuple[int, int]) -> None:
    assert SliceModel(network(), "sam", style).shown((60, 30)) == shown


def test_the_published_input_of_sam() -> None:
    model = SliceModel(network(), "sam", SAM)
    seen: list[torch.Tensor] = []
    encode = model.network.encode
    model.network.encode = lambda image: (seen.append(image), encode(image))[1]  # type: ignore[method-assign]
    kept = model.encode_slice(np.full((64, 32), 123.675, np.float32))
    assert kept.image.shape == seen[0].shape
    assert kept.image.untyped_storage().nbytes() < 100  # of the image its shape alone
    image = seen[0]
    assert image.shape == (1, 3, 1, 128, 128)
    assert image[0, 0, 0, :, :64].abs().max() < 1e-4  # the mean of the first colour
    assert (image[0, :, 0, :, 64:] == 0).all()  # padded after the colours were normalised
    assert image[0, 1, 0, 3, 3].item() == pytest.approx((123.675 - 116.28) / 57.12, abs=1e-4)


def test_a_mask_is_what_the_network_says_at_the_place_of_the_click() -> None:
    model = SliceModel(network(), "sam", SAM)
    pixels = np.random.default_rng(0).uniform(0, 255, (128, 128)).astype(np.float32)
    encoded = model.encode_slice(pixels)
    found = model.decode_slice(encoded, SlicePrompts(np.array([[40.0, 70.0]]), np.array([True])), (128, 128))
    from volsam.models.prompt_encoder import PromptBatch

    asked = PromptBatch(torch.tensor([[[0.0, 40.0, 70.0]]]), torch.tensor([[1]]))
    expected = model.network.decode(encoded, asked, "several")
    best = int(expected.quality[0].argmax())
    np.testing.assert_allclose(found.logits, expected.logits[0, best, 0].detach().numpy(), atol=1e-5)


def test_a_real_small_network_goes_through_a_session() -> None:
    volume, _ = scan(Grid.at((20, 22, 9), (2, 2, 4)))
    session = Session(SliceModel(network(), "sam", SAM), volume)
    session.add(Click(MIDDLE))
    session.add(Click((30.0, 30.0, 18.0), positive=False))
    assert session.mask.data.shape == (1, 20, 22, 9)
    assert session.mask.data[0, 10, 12, 4] == 1  # a clicked voxel carries its label
    assert session.mask.data[0, 15, 15, 4] == 0


def test_a_saved_session_keeps_its_plane_and_whether_it_follows(tmp_path: Path) -> None:
    volume, _ = scan()
    session = Session(BrightParts(), volume, plane="sagittal", follow=False)
    session.add(Click(MIDDLE))
    session.save(tmp_path / "session.json")
    again = Session.load(tmp_path / "session.json", BrightParts(), volume)
    assert isinstance(again.predictor, SlicePredictor)
    assert again.predictor.plane == "sagittal"
    assert np.array_equal(again.mask.data, session.mask.data)
    assert not np.array_equal(again.mask.data[0] > 0, answered(volume, [Click(MIDDLE)]))
