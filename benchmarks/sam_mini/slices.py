"""Slices for sam-mini: cut from the scenes of the default model, with several targets each.

`benchmarks/default_model/scenes.py` says which scans may train shipped weights, gives every scan labels (experts', and
regions that the image itself makes) and invents further scenes. Here a slice is cut in any of the three planes, whole
or around an object, and brought to 8 bits as the 2D models of the package get theirs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from scipy import ndimage
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "default_model"))

from scenes import Scene, Target, load

from volsam.data.preprocess import AIR, EIGHT_BIT_CT, eight_bit_window, to_eight_bit
from volsam.geometry import Grid
from volsam.volume import Volume

__all__ = ["EDGE", "Slice", "SliceSampler", "load"]

EDGE = 256
SMALLEST, LARGEST = 40, 0.6  # of a target: pixels of the slice as the model sees it, and share of it


@dataclass
class Slice:
    """image (256 256): grey values, uint8; valid (256 256): where the scan is; masks (n 256 256)."""

    image: np.ndarray
    valid: np.ndarray
    masks: np.ndarray


class SliceSampler:
    """Draws slices with `targets` masks each; shares say how often a draw is expert, own or invented."""

    def __init__(
        self,
        real: list[Scene],
        invented: list[Scene],
        shares: tuple[float, float, float],
        targets: int,
        rng: Generator,
    ) -> None:
        self.rng, self.targets = rng, targets
        self.shares = np.array(shares) / sum(shares)
        self.real, self.invented = real, [scene for scene in invented if scene.expert]
        self.labelled = [scene for scene in real if scene.expert]
        weights = np.array([scene.weight for scene in self.labelled])
        self.weights = weights / weights.sum()
        self.windows = {id(scene): _window(scene) for scene in (*real, *invented)}

    def draw(self) -> Slice:
        """One slice."""
        while True:
            made = self._cut()
            if made is not None:
                return made

    def _cut(self) -> Slice | None:
        rng = self.rng
        kind = rng.choice(3, p=self.shares)
        if kind == 0:
            scene = self.labelled[rng.choice(len(self.labelled), p=self.weights)]
            target = scene.expert[rng.integers(len(scene.expert))]
        else:
            scene = (self.real, self.invented)[kind - 1][rng.integers((len(self.real), len(self.invented))[kind - 1])]
            offered = scene.own if kind == 1 else scene.expert
            if not offered:
                return None
            target = max((offered[rng.integers(len(offered))] for _ in range(3)), key=lambda t: t.extent)
        seed = target.seeds[rng.integers(len(target.seeds))]
        sizes = np.array(scene.image.shape)
        areas = sizes.prod() / sizes
        axis = int(rng.choice(3, p=areas / areas.sum()))
        place = np.delete(seed, axis).astype(float)
        flat = np.take(scene.image, int(seed[axis]), axis).astype(np.float32)
        where, finest = self._positions(flat.shape, np.delete(scene.spacing, axis), place, target)
        image, valid = _read(flat, where, finest)
        maps = [target.map]
        if len(scene.maps) > 1:
            maps.append(int(rng.integers(len(scene.maps))))
        labels = [_labels(np.take(scene.maps[index], int(seed[axis]), axis), where, valid) for index in maps]
        masks = self._masks(labels, target.value)
        if masks is None:
            return None
        return Slice(self._grey(image, valid, scene), valid, masks)

    # --- where -------------------------------------------------------------------------------------------------------

    def _positions(
        self, shape: tuple[int, ...], spacing: np.ndarray, place: np.ndarray, target: Target
    ) -> tuple[np.ndarray, float]:
        """(256 256 2) pixels of the slice, and how many of them one step is: the whole slice from its corner as SAM
        sees it, or a part around a place.
        """
        rng = self.rng
        size = np.array(shape) * spacing
        whole = size.max() / EDGE  # mm a pixel
        turn = np.eye(2)[rng.permutation(2)] if rng.random() < 0.3 else np.eye(2)
        turn = turn * rng.choice([-1, 1], size=2)
        line = np.arange(EDGE)
        if rng.random() < 0.45:
            step, angle = whole, 0.0
            middle = np.full(2, (EDGE - 1) / 2)
            # The slice lies in the upper left corner, whichever way it is turned.
            reach = np.abs(turn.T @ size) / step
            center, pivot = (size - spacing) / 2, (reach - 1) / 2
        else:
            fill = np.exp(rng.uniform(np.log(0.10), np.log(0.9)))
            step = float(np.clip(target.extent / (EDGE * fill), spacing.min() * 0.10, 1.3 * whole))
            angle = rng.normal() * (0.15 if rng.random() < 0.6 else 1.0)
            middle = np.full(2, (EDGE - 1) / 2)
            center, pivot = place * spacing, middle + rng.normal(size=2) * EDGE * 0.15
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix = turn @ np.array([[cosine, -sine], [sine, cosine]]) * step
        offsets = np.stack(np.meshgrid(line - pivot[0], line - pivot[1], indexing="ij"), axis=-1)
        if rng.random() < 0.3:
            bend = np.stack([self._field(int(rng.integers(2, 6))) for _ in range(2)], axis=-1)
            offsets = offsets + bend * rng.uniform(1, 7)
        where = (offsets @ matrix.T + center) / spacing
        return where, float((step / spacing).max())

    def _field(self, cells: int) -> np.ndarray:
        """(256 256) smooth noise of about unit variance."""
        noise = torch.from_numpy(self.rng.normal(size=(1, 1, cells + 1, cells + 1))).float()
        return 1.6 * F.interpolate(noise, size=(EDGE, EDGE), mode="bicubic", align_corners=True)[0, 0].numpy()

    # --- what --------------------------------------------------------------------------------------------------------

    def _masks(self, labels: list[np.ndarray], first: int) -> np.ndarray | None:
        """(n 256 256): the first target if it is large enough, then others of both maps, some of them united."""
        rng = self.rng
        known = []  # (map, value, pixels)
        for index, flat in enumerate(labels):
            values, counts = np.unique(flat, return_counts=True)
            known += [
                (index, int(value), int(count))
                for value, count in zip(values, counts, strict=True)
                if value > 0 and SMALLEST <= count <= LARGEST * EDGE**2
            ]
        if not known or (0, first) not in {known_[:2] for known_ in known}:
            return None
        chance = np.array([count for *_, count in known], dtype=float) ** 0.4
        order = rng.choice(len(known), size=self.targets, p=chance / chance.sum())
        chosen = [(0, first), *(known[index][:2] for index in order[1:])]
        masks = []
        for index, value in chosen:
            mask = labels[index] == value
            if rng.random() < 0.5:
                mask = self._piece(mask)
            if rng.random() < 0.1:  # with a neighbour
                around = ndimage.binary_dilation(mask, iterations=2) & ~mask
                near = labels[index][around]
                near = near[near > 0]
                if near.size:
                    both = mask | (labels[index] == rng.choice(near))
                    mask = both if both.sum() <= LARGEST * EDGE**2 else mask
            masks.append(mask)
        return np.stack(masks)

    def _piece(self, mask: np.ndarray) -> np.ndarray:
        """One connected piece, a larger one more often."""
        parts, count = ndimage.label(mask)
        if count < 2:
            return mask
        places = np.flatnonzero(mask)
        piece = parts == parts.flat[places[self.rng.integers(len(places))]]
        return piece if piece.sum() >= SMALLEST else mask

    # --- how it looks ------------------------------------------------------------------------------------------------

    def _grey(self, image: np.ndarray, valid: np.ndarray, scene: Scene) -> np.ndarray:
        """8 bits, through the window of the package or another, spoiled as scanners do."""
        rng = self.rng
        low, high = self.windows[id(scene)]
        inside = image[valid]
        if rng.random() < 0.4:
            if rng.random() < 0.5:  # of this slice alone, as a crop would be seen
                low, high = np.percentile(inside, (rng.uniform(0.1, 2), rng.uniform(98, 99.9)))
            middle = rng.choice(inside)
            width = (high - low) * np.exp(rng.uniform(np.log(0.25), np.log(1.6)))
            if rng.random() < 0.5:
                low, high = middle - width / 2, middle + width / 2
        values = (np.clip(image, low, high) - low) / max(high - low, 1e-6)
        if rng.random() < 0.12:
            values = 1 - values
        if rng.random() < 0.15:  # another contrast: any curve
            knots = np.sort(rng.uniform(0, 1, size=4))
            values = np.interp(values, [0, *knots, 1], rng.uniform(0, 1, size=6))
        if rng.random() < 0.4:
            values = values ** np.exp(rng.uniform(-0.5, 0.5))
        if rng.random() < 0.3:
            values = ndimage.gaussian_filter(values, rng.uniform(0.5, 2.0))
        if rng.random() < 0.3:
            values = values * np.exp(rng.uniform(0.05, 0.3) * self._field(2))
        if rng.random() < 0.4:
            level = rng.uniform(0.0, 0.08)
            noise = rng.normal(size=values.shape)
            values = values + level * (ndimage.gaussian_filter(noise, 1.0) * 3 if rng.random() < 0.5 else noise)
        return to_eight_bit(values, (0.0, 1.0)).astype(np.uint8)


def _window(scene: Scene) -> tuple[float, float]:
    """The window through which the package's 2D models see a scan."""
    if scene.image.dtype == np.float32 and scene.image.min() < AIR:
        return EIGHT_BIT_CT
    image = scene.image.astype(np.float32)
    return eight_bit_window(Volume(image, Grid.at(image.shape, 1.0)))


def _read(flat: np.ndarray, where: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of a slice at pixels (… 2), and whether these lie in it; smoothed first where steps are long."""
    if step > 1.3:
        flat = ndimage.gaussian_filter(flat, 0.35 * step)
    size = np.array(flat.shape)
    place = (where + 0.5) / size * 2 - 1  # grid_sample's coordinates, pixel faces at -1 and 1
    valid = (np.abs(place) <= 1).all(axis=-1)
    at = torch.from_numpy(place[..., ::-1].astype(np.float32).copy())[None]
    read = F.grid_sample(torch.from_numpy(flat)[None, None], at, padding_mode="border", align_corners=False)
    return read[0, 0].numpy(), valid


def _labels(flat: np.ndarray, where: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The nearest label of each pixel, 0 outside."""
    index = np.rint(where).astype(int).clip(0, np.array(flat.shape) - 1)
    return np.where(valid, flat[index[..., 0], index[..., 1]], 0)
