"""What every zoom would give at the first click, on training scans: material to fit the choice of the zoom.

A first click is drawn in an expert's object; at every zoom of the ladder the model looks once, and again at its own
mask. Used by calibrate.py. Scans of the never-seen sets are no training scans and never come here.
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
from volsam.geometry import Grid, resample
from volsam.inference import zoom
from volsam.models.dense_prompt import DensePromptNet
from volsam.models.prompt_maps import Prompts
from volsam.volume import Volume

EDGE = 64


class Ladder(TypedDict):
    """One first click at every zoom: the scan's number; evidence (2 n c) and true overlap (2 n) of both looks."""

    scene: int
    evidence: Tensor
    worth: Tensor


@torch.inference_mode()
def ladder(network: DensePromptNet, scene: Scene, target: Target, seed: np.ndarray) -> tuple[Tensor, Tensor]:
    """Evidence (2 n c) and Dice with the whole object (2 n), also with what lies outside a zoom's region."""
    grid = Grid.at(scene.image.shape, scene.spacing)
    volume = Volume(scene.image[None], grid, "training")
    mask = (scene.maps[target.map] == target.value).astype(np.float32)
    size = float(mask.sum()) * grid.voxel_volume
    click = grid.to_world(seed)
    evidence: tuple[list[Tensor], list[Tensor]] = ([], [])
    worth: tuple[list[float], list[float]] = ([], [])
    for step in zoom.ladder(grid, EDGE):
        roi = grid.around(click, (EDGE,) * 3, step)
        features = network.encode(torch.from_numpy(look(volume, roi))[None])
        point = torch.from_numpy(roi.to_voxels(click).astype(np.float32))[None, None]
        one = torch.ones(1, 1, dtype=torch.long)
        half = roi.coarsened(2)
        share = np.asarray(resample(mask, grid, half, mode="area"))
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
        seed = target.seeds[rng.integers(24) if rng.random() < 0.7 else rng.integers(24, 48)].astype(float)
        evidence, worth = ladder(network, scene, target, seed)
        found.append({"scene": number, "evidence": evidence, "worth": worth})
    return found
