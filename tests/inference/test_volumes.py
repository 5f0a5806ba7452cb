from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.inference.session import Session
from volsam.inference.volumes import ClickModel, CropModel, dice_of_iou, region_above_zero
from volsam.models.features import Features, Prediction
from volsam.models.prompt_encoder import PromptBatch
from volsam.models.segmenter import Segmenter
from volsam.prompts import Box, Click, GridPrompts, MaskHint
from volsam.recipes.families.family import fill, load_families
from volsam.recipes.families.fixture import read_fixture
from volsam.volume import Volume

RECORDED = Path(__file__).parent.parent / "reference" / "sam_med3d.json"


@pytest.fixture(scope="module")
def model() -> ClickModel:
    """A small SAM-Med3D with the weights of the recorded fixture."""
    fixture = read_fixture(RECORDED)
    network = load_families()["sam-med3d"].build(fixture)
    fill(network, load_families()["sam-med3d"], fixture.weights(), "test")
    assert isinstance(network, Segmenter)
    return ClickModel(network, "small")


@pytest.fixture
def volume() -> Volume:
    data = np.random.default_rng(0).normal(50, 40, (60, 50, 40)).astype(np.float32)
    return Volume(data[None], Grid.at((60, 50, 40), (1.0, 1.2, 2.0), (-30, 10, 5)), "noise")


def clicks(*points: tuple[float, float, float], signs: list[bool] | None = None) -> GridPrompts:
    labels = np.array(signs if signs is not None else [True] * len(points))
    return GridPrompts(np.array(points, dtype=float), labels, np.zeros((0, 2, 3)))


def region(model: ClickModel, volume: Volume) -> Grid:
    return volume.grid.around(volume.grid.to_world([30, 25, 20]), (model.edge,) * 3, model.spacing)


def test_the_step_is_that_of_the_mask_prompt(model: ClickModel, volume: Volume) -> None:
    encoded = model.encode(volume, region(model, volume))
    decoded = model.decode(encoded, clicks((10, 12, 9)), None)
    assert decoded.low_res.shape == (model.edge // model.step,) * 3


def test_the_newest_click_is_given_with_the_last_mask(model: ClickModel, volume: Volume) -> None:
    encoded = model.encode(volume, region(model, volume))
    first = model.decode(encoded, clicks((10, 12, 9)), None)
    second = model.decode(encoded, clicks((10, 12, 9), (4, 5, 6), signs=[True, False]), first.low_res)
    expected = model.network.decode(
        encoded,
        PromptBatch(
            torch.tensor([[[4.0, 5.0, 6.0]]]), torch.tensor([[0]]), mask=torch.from_numpy(first.low_res)[None, None]
        ),
    )
    np.testing.assert_allclose(second.low_res, expected.low_res[0, 0].detach().numpy(), atol=1e-5)


def test_clicks_that_came_together_are_answered_one_after_the_other(model: ClickModel, volume: Volume) -> None:
    encoded = model.encode(volume, region(model, volume))
    first = model.decode(encoded, clicks((10, 12, 9)), None)
    one_by_one = model.decode(encoded, clicks((10, 12, 9), (4, 5, 6)), first.low_res)
    together = model.decode(encoded, clicks((10, 12, 9), (4, 5, 6)), None)
    np.testing.assert_allclose(one_by_one.low_res, together.low_res, atol=1e-5)


def test_a_part_holds_every_voxel_of_the_mask_and_equals_the_whole(model: ClickModel, volume: Volume) -> None:
    encoded = model.encode(volume, region(model, volume))
    decoded = model.decode(encoded, clicks((10, 12, 9)), None)
    whole = model.network.decode(encoded, PromptBatch(torch.tensor([[[10.0, 12.0, 9.0]]]), torch.tensor([[1]])))
    logits = whole.logits[0, 0].detach().numpy()
    window = tuple(slice(*bounds) for bounds in decoded.part)
    np.testing.assert_allclose(decoded.logits, logits[window], atol=1e-5)
    outside = logits.copy()
    outside[window] = -1
    assert (outside <= 0).all()


def test_intensities_are_scored_over_the_voxels_above_zero() -> None:
    data = np.array([-1000.0, 0.0, 10.0, 30.0], np.float32).reshape(1, 4, 1, 1)
    volume = Volume(data, Grid.at((4, 1, 1)), "four")
    seen = region_above_zero(volume, Grid.at((5, 1, 1)))[0]
    np.testing.assert_allclose(seen.ravel(), [-102.0, -2.0, -1.0, 1.0, -2.0])  # mean 20, deviation 10; 0 beyond


def test_a_flat_region_does_not_divide_by_zero() -> None:
    volume = Volume(np.zeros((1, 3, 3, 3), np.float32), Grid.at((3, 3, 3)), "flat")
    assert (region_above_zero(volume, volume.grid) == 0).all()


def test_many_sets_at_once_equal_one_at_a_time(model: ClickModel, volume: Volume) -> None:
    encoded = model.encode(volume, region(model, volume))
    sets = [clicks((10, 12, 9)), clicks((4, 5, 6))]
    many = model.decode_many(encoded, sets, None)
    for logits, asked in zip(many, sets, strict=True):
        np.testing.assert_allclose(logits, model.decode(encoded, asked, None).low_res, atol=1e-5)


def test_a_session_looks_at_the_voxel_size_of_the_training(model: ClickModel, volume: Volume) -> None:
    session = Session(model, volume)
    middle = tuple(volume.grid.to_world([30, 25, 20]))
    session.add(Click(middle))
    answer = session._answer
    assert answer is not None
    np.testing.assert_allclose(answer.roi.spacing, 1.5)
    np.testing.assert_allclose(answer.roi.to_voxels(middle), (model.edge - 1) / 2, atol=1e-9)
    assert session.mask.data[0, 30, 25, 20] == 1
    session.add(Click(tuple(volume.grid.to_world([31, 26, 20])), positive=False))
    assert session._answer is not None
    assert session._answer.roi == answer.roi
    assert session.uncertainty(size=3).probability.shape == (model.edge // model.step,) * 3


def test_the_region_moves_with_a_click_beyond_it(model: ClickModel) -> None:
    grid = Grid.at((200, 40, 40))
    wide = Volume(np.random.default_rng(1).normal(50, 9, (1, 200, 40, 40)).astype(np.float32), grid, "wide")
    session = Session(model, wide)
    session.add(Click((20.0, 20.0, 20.0)))
    session.add(Click((190.0, 20.0, 20.0)))
    assert session._answer is not None
    voxel = session._answer.roi.to_voxels((190.0, 20.0, 20.0))
    assert ((voxel >= 0) & (voxel < model.edge)).all()


def test_boxes_are_refused(model: ClickModel, volume: Volume) -> None:
    with pytest.raises(BadInput, match="takes no box"):
        Session(model, volume).add(Box((-20, 20, 10), (-10, 30, 20)))


def test_a_ready_mask_is_fed_back(model: ClickModel, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros(volume.grid.shape, bool)
    mask[25:35, 20:30, 15:25] = True
    session = Session(model, volume)
    session.add(MaskHint(mask, volume.grid))
    assert np.array_equal(session.mask.data[0] > 0, mask)
    fed, told = [], []
    decode, draft = model.decode, model.network.draft
    monkeypatch.setattr(model, "decode", lambda *given: (fed.append(given[2]), decode(*given))[1])
    monkeypatch.setattr(model.network, "draft", lambda *given: (told.append(given[1].labels), draft(*given))[1])
    session.add(Click(tuple(volume.grid.to_world((30, 25, 20))), positive=False))
    assert (fed[0] > 0).any()
    assert told[0].tolist() == [[0]], "of several points it is told the user's, not the one that was put inside"
    assert session.quality is None, "the model knows only what clicks changed"
    assert not session.mask.data[0][30, 25, 20]


def test_dice_of_an_overlap() -> None:
    assert dice_of_iou(0.5) == pytest.approx(2 / 3)
    assert dice_of_iou(1.3) == 1
    assert dice_of_iou(-0.2) == 0


class Distances(torch.nn.Module):
    """The mask is a ball of radius 5 around each click; remembers the crop."""

    def encode(self, crop: torch.Tensor) -> Features:
        self.crop = crop
        return Features(crop, (), crop)

    def decode(self, features: Features, points: torch.Tensor) -> Prediction:
        lines = [torch.arange(size, dtype=torch.float32) for size in features.image.shape[-3:]]
        places = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)
        logits = 5 - torch.stack([(places - point).norm(dim=-1) for point in points[0]]).amin(0)
        logits = logits[None, None]
        return Prediction(logits, torch.full((1, 1), 0.9), torch.nn.functional.avg_pool3d(logits, 2))


def test_an_adapter_sees_its_window_at_one_millimetre_and_positive_clicks_only(volume: Volume) -> None:
    network = Distances()
    model = CropModel(network, "adapter", "cpu", edge=32, window=(0.0, 60.0), mean=30.0, spread=10.0)
    session = Session(model, volume)
    middle = tuple(volume.grid.to_world([30, 25, 20]))
    session.add(Click(middle))
    assert session._answer is not None
    np.testing.assert_allclose(session._answer.roi.spacing, 1.0)
    assert network.crop.min() >= -3
    assert network.crop.max() <= 3
    places = volume.grid.to_world(np.argwhere(session.mask.data[0] > 0))
    assert np.linalg.norm(places - np.array(middle), axis=1).max() <= 5.5
    with pytest.raises(BadInput, match="takes no negative click"):
        session.add(Click(middle, positive=False))
