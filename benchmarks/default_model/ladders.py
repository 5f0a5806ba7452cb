"""What every zoom would give at the first click, on training scans: material to fit the choice of the zoom.

A first click is drawn in an expert's object; at every zoom of the ladder the model looks once, and again at its own
mask. Used by calibrate.py. Scans of the never-seen sets are no training scans and never come here.

Training scans are few and tightly cut, and in such scans a far zoom shows an organ, not a whole body in much air. So
many are made coarser, or get air around them, before the ladder begins: see `as_scanned`.
"""

from __future__ import annotations

import time
from typing import TypedDict

import numpy as np
import torch
from numpy.random import Generator
from scenes import Scene, Target
from torch import Tensor

from volsam.data.preprocess import look
from volsam.data.simulate import first_click
from volsam.geometry import Grid, resample
from volsam.inference import zoom
from volsam.models.dense_prompt import DensePromptNet
from volsam.models.prompt_maps import Prompts
from volsam.volume import Volume

EDGE = 64
CHANGED = 0.5


class Ladder(TypedDict):
    """One first click at every zoom: the scan's number; evidence (2 n c) and true overlap (2 n) of both looks."""

    scene: int
    evidence: Tensor
    worth: Tensor


def as_scanned(scene: Scene, target: Target, rng: Generator) -> tuple[Volume, np.ndarray] | None:
    """The scan and the object as another scanner might have taken them: half of them with coarser voxels, half with air
    around; None if nothing is left of the object.
    """
    image = scene.image.astype(np.float32)
    mask = (scene.maps[target.map] == target.value).astype(np.float32)
    grid = Grid.at(image.shape, scene.spacing)
    if rng.random() < CHANGED:
        factor = np.full(3, np.exp(rng.uniform(0, np.log(3))))
        factor[rng.integers(3)] = np.exp(rng.uniform(0, np.log(3)))  # across the slices
        coarse = Grid.at(np.maximum(8, grid.shape / factor).astype(int), grid.spacing * factor)
        image, mask = (np.asarray(resample(values, grid, coarse, mode="area")) for values in (image, mask))
        grid = coarse
    mask = mask > 0.5
    if mask.sum() < 12:
        return None
    if rng.random() < CHANGED:
        low, high = (np.rint(rng.uniform(0, 0.7, size=3) * grid.shape).astype(int) for _ in range(2))
        width = list(zip(low, high, strict=True))
        image = np.pad(image, width, constant_values=float(image.min()))
        mask = np.pad(mask, width)
        grid = Grid.at(image.shape, grid.spacing)
    return Volume(image[None], grid, "training"), mask


@torch.inference_mode()
def ladder(network: DensePromptNet, volume: Volume, mask: np.ndarray, click: np.ndarray) -> tuple[Tensor, Tensor]:
    """Evidence (2 n c) and Dice with the whole object (2 n), also with what lies outside a zoom's region."""
    grid = volume.grid
    size = float(mask.sum()) * grid.voxel_volume
    evidence: tuple[list[Tensor], list[Tensor]] = ([], [])
    worth: tuple[list[float], list[float]] = ([], [])
    for step in zoom.ladder(grid, EDGE):
        roi = grid.around(click, (EDGE,) * 3, step)
        features = network.encode(torch.from_numpy(look(volume, roi))[None])
        point = torch.from_numpy(roi.to_voxels(click).astype(np.float32))[None, None]
        one = torch.ones(1, 1, dtype=torch.long)
        half = roi.coarsened(2)
        share = np.asarray(resample(mask.astype(np.float32), grid, half, mode="area"))
        draft = network.draft(features, Prompts(point, one))
        for turn, seen in enumerate((draft, network.draft(features, Prompts(point, one, None, draft.half)))):
            found = seen.half[0, 0].numpy() > 0
            whole = max(size / half.voxel_volume, float(share.sum()))
            evidence[turn].append(seen.evidence[0])
            worth[turn].append(2 * float((found * share).sum()) / (float(found.sum()) + whole + 1e-3))
    return torch.stack([torch.stack(turn) for turn in evidence]), torch.tensor(worth)


def draw_ladders(network: DensePromptNet, scans: list[Scene], rng: Generator, minutes: float) -> list[Ladder]:
    """As many ladders as the time allows; scans by their share in the training, objects of a scan evenly."""
    labelled = [(number, scene) for number, scene in enumerate(scans) if scene.expert]
    shares = np.array([scene.weight for _, scene in labelled])
    found: list[Ladder] = []
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        number, scene = labelled[rng.choice(len(labelled), p=shares / shares.sum())]
        target = scene.expert[rng.integers(len(scene.expert))]
        scanned = as_scanned(scene, target, rng)
        if scanned is None:
            continue
        volume, mask = scanned
        click = np.array(first_click(mask, volume.grid).position)
        if rng.random() < 0.3:
            places = np.argwhere(mask)
            click = volume.grid.to_world(places[rng.integers(len(places))])
        evidence, worth = ladder(network, volume, mask, click)
        found.append({"scene": number, "evidence": evidence, "worth": worth})
    return found
