"""The same click in millimetres gives the same mask in millimetres, however a file stores its voxels."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import volsam
from volsam.data.synthetic import sample_volume
from volsam.errors import BadFile
from volsam.geometry import Grid, resample
from volsam.inference.model import DensePromptModel
from volsam.inference.session import Session
from volsam.prompts import Box, Click, MaskHint, Scribble
from volsam.volume import Volume

pytestmark = pytest.mark.slow

ORDERS = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in permutations(["RL", "AP", "SI"])
    for signs in product((0, 1), repeat=3)
]
# A turn about any axis by less than this keeps every axis of the volume nearest to its own anatomical direction, and
# so the region as it is. Beyond it the region's axes are named anew, and a network sees the scan from another side.
SAME_SIDE = 44.0
CLICKED = (16, 11, 10)  # voxel of an organ in the scan
BESIDE = (5, 9, 8)  # voxel of another one


@pytest.fixture(scope="module")
def a_network_model(an_untrained_model) -> DensePromptModel:
    """The default network where its weights are, on a small region for speed."""
    try:
        return DensePromptModel(volsam.load_model(device="cpu").network, "small", edge=32)
    except BadFile:
        return an_untrained_model


@pytest.fixture(scope="module")
def a_scan() -> Volume:
    """22 × 20 × 16 voxels of 5 × 4.5 × 7 mm, along the RAS+ axes."""
    image, _ = sample_volume(shape=(22, 20, 16))
    return Volume(image.data, Grid.at(image.grid.shape, (5, 4.5, 7), origin=(-50, 20, 100)), "scan")


@pytest.fixture(scope="module")
def a_tilted_scan(a_scan) -> Volume:
    return moved(a_scan, turn(31, seed=1))


def turn(angle: float, seed: int) -> np.ndarray:
    """A rigid motion: by an angle in degrees about some axis, and by some way."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_rotvec(np.radians(angle) * axis / np.linalg.norm(axis)).as_matrix()
    motion[:3, 3] = rng.normal(size=3) * 80
    return motion


def moved(volume: Volume, motion: np.ndarray) -> Volume:
    """The same voxels, with the patient lying elsewhere."""
    return Volume(volume.data, Grid(volume.grid.shape, motion @ volume.grid.affine), volume.name)


def reordered(volume: Volume, order: str) -> Volume:
    """The same patient, the voxels stored in another order."""
    grid = volume.grid.reoriented(order)
    return Volume(resample(volume.data, volume.grid, grid), grid, volume.name)


def conversation(grid: Grid) -> list:
    """Prompts at voxels of the scan, in the millimetres of `grid`."""

    def at(*voxels) -> list:
        return [tuple(place) for place in grid.to_world(voxels)]

    return [
        Click(*at(CLICKED)),
        Click(*at(BESIDE), positive=False),
        Scribble(tuple(at((15, 10, 9), (16, 11, 10), (17, 12, 11)))),
        Box(*at((12, 6, 5), (19, 15, 14))),
    ]


def mask_of(model, volume: Volume, prompts: list) -> np.ndarray:
    session = Session(model, volume)
    for prompt in prompts:
        session.add(prompt)
    return session.mask.data[0] > 0


# ---- Order and sign of the axes


@pytest.fixture(scope="module")
def the_mask(a_network_model, a_tilted_scan) -> np.ndarray:
    return mask_of(a_network_model, a_tilted_scan, conversation(a_tilted_scan.grid)[:1])


@pytest.mark.parametrize("order", ORDERS)
def test_a_click_gives_the_same_mask_in_any_order_of_axes(a_network_model, a_tilted_scan, the_mask, order, dice):
    grid = a_tilted_scan.grid
    stored = reordered(a_tilted_scan, order)
    mask = mask_of(a_network_model, stored, conversation(grid)[:1])
    assert mask.shape == stored.grid.shape
    assert dice(resample(mask, stored.grid, grid), the_mask) >= 0.98
    assert the_mask[CLICKED]


def test_the_orders_are_of_both_hands(a_tilted_scan):
    signs = [np.sign(np.linalg.det(a_tilted_scan.grid.reoriented(order).affine)) for order in ORDERS]
    assert len(set(ORDERS)) == 48
    assert signs.count(-1) == signs.count(1) == 24


@pytest.mark.parametrize("order", ["LPS", "ASR", "IPL"])
def test_a_conversation_goes_the_same_way_in_any_order_of_axes(a_network_model, a_tilted_scan, order, dice):
    grid, stored = a_tilted_scan.grid, reordered(a_tilted_scan, order)
    here, there = Session(a_network_model, a_tilted_scan), Session(a_network_model, stored)
    start = MaskHint(np.ones((7, 8, 9)), grid.crop((12, 7, 5), (19, 15, 14)))
    for prompt in [*conversation(grid), start]:
        here.add(prompt)
        there.add(prompt)
        assert dice(resample(there.mask.data[0], stored.grid, grid), here.mask.data[0]) >= 0.98
        assert there.quality == pytest.approx(here.quality, abs=1e-3)
        back = resample(there.probability.data[0], stored.grid, grid)
        np.testing.assert_allclose(back, here.probability.data[0], atol=1e-2)


# ---- Where the patient lies


@pytest.mark.parametrize("angle", [0, 7, 20, 33, SAME_SIDE])
def test_the_mask_turns_with_the_patient(a_network_model, a_scan, angle, dice):
    tilted = moved(a_scan, turn(angle, seed=int(angle)))
    straight = mask_of(a_network_model, a_scan, conversation(a_scan.grid)[:2])
    assert straight[CLICKED]
    assert dice(mask_of(a_network_model, tilted, conversation(tilted.grid)[:2]), straight) >= 0.98


@pytest.mark.parametrize("seed", range(12))
def test_regions_follow_any_turn_at_all(growing, a_bowl, seed, dice):
    """A model that has no notion of up and down gives the same mask from every side."""
    turned = moved(a_bowl.volume, turn(30 * seed + 10, seed))
    here, there = Session(growing(), a_bowl.volume), Session(growing(), turned)
    for place, positive in (("flesh", True), ("stone", True), ("berry", False), ("stone", False), ("berry", True)):
        voxel = a_bowl.grid.to_voxels(a_bowl.at(place))
        here.add(Click(tuple(a_bowl.grid.to_world(voxel)), positive))
        there.add(Click(tuple(turned.grid.to_world(voxel)), positive))
        assert here.mask.data.any()
        assert dice(there.mask.data, here.mask.data) >= 0.98


@pytest.mark.parametrize("order", ["RAS", "LPS", "SRA"])
def test_a_box_on_one_slice_is_as_flat_in_an_oblique_scan(growing, a_bowl, order, dice):
    straight = Session(growing(), a_bowl.volume)
    tilted = reordered(moved(a_bowl.volume, turn(25, seed=3)), order)
    oblique = Session(growing(), tilted)
    frame = moved(a_bowl.volume, turn(25, seed=3)).grid
    corners = (24, 15, 14), (37, 29, 14)
    straight.add(Box(*(tuple(place) for place in a_bowl.grid.to_world(corners))))
    oblique.add(Box(*(tuple(place) for place in frame.to_world(corners))))
    assert len(oblique.model.encoded) == len(straight.model.encoded) > 1, "the zooms are tried"
    assert a_bowl.parts(straight.mask) == {"berry"}
    assert dice(resample(oblique.mask.data[0], tilted.grid, frame), straight.mask.data[0]) >= 0.98


@pytest.mark.parametrize("spacing", [(1, 1, 4), (3, 1, 1), (1.5, 0.75, 2)])
def test_thick_slices_change_the_mask_by_little_more_than_their_thickness(growing, a_bowl, spacing, dice):
    low, high = a_bowl.grid.extent()
    shape = np.floor((high - low) / spacing).astype(int)
    grid = Grid.at(shape, spacing, origin=low + np.array(spacing) / 2)
    thick = Volume(resample(a_bowl.volume.data, a_bowl.grid, grid, mode="area"), grid, "thick")
    session = Session(growing(), thick)
    session.add(a_bowl.click("berry"))
    assert dice(session.mask.data, resample(a_bowl.berry, a_bowl.grid, grid, mode="nearest")) > 0.75
