"""Training material for volsam-s: scans that may train shipped weights, every target they offer, and invented scenes.

A `Scene` is an image with several label maps. Real scans carry expert labels where there are any, and always labels of
their own making: watershed regions at several levels and connected bands of intensity, so that every texture teaches
boundaries. `Sampler` cuts a region of a scene at a random zoom, turn and bend, and spoils the image.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from numpy.random import Generator
from scipy import ndimage
from torch.nn import functional as F

from volsam.data.preprocess import normalise
from volsam.data.synthetic import degrade, scene, smooth_noise, thick_slices

# Folders that may train shipped weights, with their share of the expert-labelled draws.
EXPERT = {
    "hippocampus": 0.14,
    "sarcoma_ct_tumour": 0.20,
    "sarcoma_mr_t1_tumour": 0.04,
    "sarcoma_pet_tumour": 0.03,
    "permissive_scans": 0.27,
    "totalsegmentator_ct": 0.12,
    "totalsegmentator_mr": 0.12,
    "spleen_ct": 0.04,
    "spinal_cord": 0.04,
}
# Label maps without images; those of openkbp may not train shipped weights.
LABELMAPS = ("sts_*", "msdhippo_*", "msdspleen_*", "sct_*", "totalseg_*")
SMALLEST = 24  # voxels of the scan; smaller objects are no target


@dataclass
class Target:
    """One object of one label map."""

    map: int
    value: int
    extent: float  # longest side of its bounding box, mm
    seeds: np.ndarray  # (n, 3) voxels, the first half of them deep inside


@dataclass
class Scene:
    """An image (i j k) with spacing in mm, label maps on its grid and the targets in them."""

    image: np.ndarray
    spacing: np.ndarray
    maps: list[np.ndarray]
    expert: list[Target] = field(default_factory=list)
    own: list[Target] = field(default_factory=list)
    weight: float = 1.0


def targets_of(
    labels: np.ndarray, which: int, spacing: np.ndarray, rng: Generator, largest: float = 0.7
) -> list[Target]:
    """Every label of a map as a target, with places where one may click."""
    found = []
    boxes = ndimage.find_objects(labels)
    for value, box in enumerate(boxes, start=1):
        if box is None:
            continue
        mask = np.pad(labels[box] == value, 1)
        count = int(mask.sum())
        if count < SMALLEST or count > largest * labels.size:
            continue
        depth = ndimage.distance_transform_edt(mask, sampling=spacing)
        places = np.argwhere(mask)
        order = np.argsort(depth[tuple(places.T)])
        deep = places[order[-max(4, len(order) // 8) :]]
        some = places[rng.integers(len(places), size=24)]
        seeds = np.concatenate([deep[rng.integers(len(deep), size=24)], some]) - 1
        start = np.array([cut.start for cut in box])
        extent = max((cut.stop - cut.start) * step for cut, step in zip(box, spacing, strict=True))
        found.append(Target(which, value, float(extent), (seeds + start).astype(np.int16)))
    return found


def own_maps(image: np.ndarray, spacing: np.ndarray, rng: Generator) -> list[np.ndarray]:
    """Label maps that an image makes by itself: watershed regions at three levels, bands of intensity."""
    low, high = np.percentile(image, (0.5, 99.5))
    values = ((np.clip(image, low, high) - low) / max(high - low, 1e-6)).astype(np.float32)
    picture = sitk.GetImageFromArray(values)
    picture.SetSpacing([float(step) for step in spacing[::-1]])
    maps = []
    for sigma, level in ((1.2, 0.02), (1.8, 0.04), (2.5, 0.06)):
        edges = sitk.GradientMagnitudeRecursiveGaussian(picture, sigma * float(spacing.min()))
        scale = np.percentile(sitk.GetArrayViewFromImage(edges), 99)
        regions = sitk.MorphologicalWatershed(edges / float(scale + 1e-9), level * 3, markWatershedLine=False)
        maps.append(sitk.GetArrayFromImage(sitk.RelabelComponent(regions, SMALLEST)))
    for sigma, bands in ((1.0, 3), (1.5, 5)):
        smooth = ndimage.gaussian_filter(values, sigma * spacing.min() / spacing)
        cuts = (
            np.quantile(smooth[smooth > 0.02], np.sort(rng.uniform(0.05, 0.95, size=bands)))
            if (smooth > 0.02).any()
            else [0.5]
        )
        classes = np.digitize(smooth, cuts)
        joined = np.zeros(values.shape, np.int32)
        for kind in range(len(cuts) + 1):
            mask = ndimage.binary_opening(classes == kind, iterations=1)
            parts, count = ndimage.label(mask)
            joined[mask] = parts[mask] + joined.max() * (count > 0)
        maps.append(sitk.GetArrayFromImage(sitk.RelabelComponent(sitk.GetImageFromArray(joined), SMALLEST)))
    return [np.minimum(labels, 65535).astype(np.uint16) for labels in maps]


def real_scenes(data: Path, split: dict[str, list[str]], rng: Generator) -> list[Scene]:
    """All scans that may train shipped weights, without the validation cases."""
    scenes = []
    for folder, share in EXPERT.items():
        names = sorted(path.name for path in (data / folder / "imagesTr").glob("*.nii.gz"))
        names = [name for name in names if name.removesuffix("_0000.nii.gz") not in split.get(folder, [])]
        for name in names:
            case = name.removesuffix("_0000.nii.gz")
            file = nib.as_closest_canonical(nib.load(data / folder / "imagesTr" / name))
            image = np.asarray(file.dataobj, dtype=np.float32)
            spacing = np.array(file.header.get_zooms()[:3], dtype=float)
            maps, expert = [], []
            label_file = data / folder / "labelsTr" / f"{case}.nii.gz"
            if label_file.exists():
                labels = np.asarray(nib.as_closest_canonical(nib.load(label_file)).dataobj).astype(np.int32)
                maps = [labels]
                if folder == "hippocampus":
                    maps.append((labels > 0).astype(np.int32))
                for index, labels in enumerate(maps):
                    expert += targets_of(labels, index, spacing, rng)
            made = own_maps(image, spacing, rng)
            own = [t for index, labels in enumerate(made) for t in targets_of(labels, len(maps) + index, spacing, rng)]
            scenes.append(Scene(image, spacing, maps + made, expert, own, share / len(names)))
    return scenes


def invented_scenes(data: Path, count: int, size: int, rng: Generator) -> list[Scene]:
    """Synthetic scenes, half of them on real contours."""
    files = [path for pattern in LABELMAPS for path in sorted((data / "labelmaps").glob(f"{pattern}.nii.gz"))]
    contours = [np.asarray(nib.load(path).dataobj).astype(np.uint8) for path in files]
    scenes = []
    for index in range(count):
        real = contours[rng.integers(len(contours))] if index % 2 else None
        image, labels = scene(rng, size, real)
        # Pieces of one region that lie apart are objects of their own.
        joined = np.zeros(labels.shape, np.int32)
        for value in np.unique(labels):
            parts, _ = ndimage.label(labels == value)
            joined[parts > 0] = parts[parts > 0] + joined.max()
        one = np.ones(3)
        scenes.append(
            Scene(image.astype(np.float16), one, [joined.astype(np.uint16)], targets_of(joined, 0, one, rng, 0.5))
        )
    return scenes


def load(
    data: Path, split_file: Path, cache: Path, count: int, size: int, seed: int
) -> tuple[list[Scene], list[Scene]]:
    """Real and invented scenes, made once for a set of arguments."""
    split = json.loads(split_file.read_text())["validation"]
    recipe = Path(__file__).read_bytes() + json.dumps([split, count, size, seed]).encode()
    file = cache / f"scenes-{hashlib.sha256(recipe).hexdigest()[:12]}.bank"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            parts = 8
            own = pool.submit(real_scenes, data, split, np.random.default_rng(seed))
            jobs = [
                pool.submit(invented_scenes, data, count // parts, size, np.random.default_rng((seed, part)))
                for part in range(1, parts + 1)
            ]
            made = own.result(), [scene for job in jobs for scene in job.result()]
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(pickle.dumps(made, protocol=5))
        unfinished.replace(file)
    return pickle.loads(file.read_bytes())


@dataclass
class Crop:
    """A region as the network will see it, with two targets: image (3 n n n), masks (2 n n n) in 0..1, their whole size
    in voxels of the region (parts outside it included), and the first click of each."""

    image: np.ndarray
    masks: np.ndarray
    wholes: np.ndarray
    clicks: np.ndarray


class Sampler:
    """Draws crops; shares say how often a draw is expert, own or invented."""

    def __init__(
        self, real: list[Scene], invented: list[Scene], shares: tuple[float, float, float], rng: Generator
    ) -> None:
        self.real, self.invented, self.rng = real, invented, rng
        self.shares = np.array(shares) / sum(shares)
        self.labelled = [s for s in real if s.expert]
        weights = np.array([s.weight for s in self.labelled])
        self.labelled_weights = weights / weights.sum()

    def draw(self, n: int) -> Crop:
        """One crop of n³ voxels; one in eight has an object of another crop pasted into it."""
        while True:
            crop = self._cut(n)
            if crop is None:
                continue
            if self.rng.random() < 0.12:
                other = self._cut(n)
                if other is not None and 0.001 < other.masks[0].mean() < 0.3:
                    crop = self._paste(crop, other)
            valid = crop.image[2] > 0.5
            values = self._spoil(crop.image[0], valid)
            crop.image = normalise(values.astype(np.float32), valid)
            return crop

    def _cut(self, n: int) -> Crop | None:
        rng = self.rng
        kind = rng.choice(3, p=self.shares)
        if kind == 0:
            scene = self.labelled[rng.choice(len(self.labelled), p=self.labelled_weights)]
            target = scene.expert[rng.integers(len(scene.expert))]
        elif kind == 1:
            scene = self.real[rng.integers(len(self.real))]
            if not scene.own:
                return None
            # Of five, the one whose extent is largest: watersheds have many small regions and few large ones.
            target = max((scene.own[rng.integers(len(scene.own))] for _ in range(5)), key=lambda t: t.extent)
        else:
            scene = self.invented[rng.integers(len(self.invented))]
            if not scene.expert:
                return None
            target = scene.expert[rng.integers(len(scene.expert))]
        seed = target.seeds[rng.integers(24) if rng.random() < 0.65 else rng.integers(24, 48)].astype(float)
        fill = (
            np.exp(rng.uniform(np.log(0.3), np.log(0.95)))
            if rng.random() < 0.65
            else np.exp(rng.uniform(np.log(0.12), np.log(1.8)))
        )
        finest = float(scene.spacing.min())
        spacing = float(np.clip(target.extent / (n * fill), 0.35 * finest, 5 * finest))
        if kind == 2:
            spacing = float(np.clip(spacing, 0.45, 1.4 * 64 / n))
        jitter = rng.normal(size=3) * (2.0 if rng.random() < 0.65 else n / 8)
        matrix = self._turn() * spacing
        center = seed * scene.spacing - matrix @ jitter  # mm, from the first voxel; the seed lands off the middle
        grid = self._positions(n, matrix, center, spacing)
        level = 1 if spacing > 1.8 * finest and min(scene.image.shape) > 12 else 0
        values, inside = _read(scene, scene.image, grid, level)
        first = self._mask(scene, target, grid, level)
        if first.sum() < 12:
            return None
        second_target = self._another(scene, target, grid, n) or target
        second = self._mask(scene, second_target, grid, level) if second_target is not target else first
        volume = float(np.prod(scene.spacing)) / abs(np.linalg.det(matrix))
        wholes = [(scene.maps[t.map] == t.value).sum() * volume for t in (target, second_target)]
        click = jitter + (n - 1) / 2
        clicks = np.stack([click, np.full(3, -1e4)])
        return Crop(np.stack([values, values, inside]), np.stack([first, second]), np.array(wholes), clicks)

    def _turn(self) -> np.ndarray:
        """Any of the 48 axis orders, mostly turned a little, stretched a little."""
        rng = self.rng
        matrix = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], size=3)
        angle = rng.normal(size=3) * (0.15 if rng.random() < 0.7 else 1.0)
        x, y, z = angle
        turn = np.array([[1, -z, y], [z, 1, -x], [-y, x, 1]])
        turn, _ = np.linalg.qr(turn)
        turn = turn * np.sign(np.diag(turn))
        return matrix @ turn @ np.diag(np.exp(rng.normal(size=3) * 0.10))

    def _positions(self, n: int, matrix: np.ndarray, center: np.ndarray, spacing: float) -> np.ndarray:
        """(n, n, n, 3) positions in mm."""
        line = np.arange(n) - (n - 1) / 2
        steps = [line[:, None] * matrix[:, axis] for axis in range(3)]
        grid = center + steps[0][:, None, None] + steps[1][None, :, None] + steps[2][None, None]
        if self.rng.random() < 0.35:
            size = self.rng.uniform(0.3, 2.5) * spacing
            grid = grid + size * np.stack(
                [smooth_noise(self.rng, (n, n, n), int(self.rng.integers(2, 5))) for _ in range(3)], -1
            )
        return grid

    def _mask(self, scene: Scene, target: Target, grid: np.ndarray, level: int) -> np.ndarray:
        mask = (scene.maps[target.map] == target.value).astype(np.float32)
        return _read(scene, mask, grid, level)[0]

    def _another(self, scene: Scene, target: Target, grid: np.ndarray, n: int) -> Target | None:
        """A second target around a random place in the middle half of the region."""
        known = {(t.map, t.value): t for t in (*scene.expert, *scene.own)}
        for _ in range(4):
            place = grid[tuple(self.rng.integers(n // 4, n - n // 4, size=3))] / scene.spacing
            index = tuple(np.round(place).astype(int))
            if any(i < 0 or i >= size for i, size in zip(index, scene.image.shape, strict=True)):
                continue
            expert_maps = sorted({t.map for t in scene.expert})
            which = (
                int(self.rng.choice(expert_maps))
                if expert_maps and self.rng.random() < 0.6
                else int(self.rng.integers(len(scene.maps)))
            )
            found = known.get((which, int(scene.maps[which][index])))
            if (
                found is not None
                and found is not target
                and found.extent > 6 * np.linalg.norm(grid[1, 0, 0] - grid[0, 0, 0])
            ):
                return found
        return None

    def _paste(self, crop: Crop, other: Crop) -> Crop:
        """The other crop's object, with its own texture, in this crop's surroundings; both share the middle."""
        rng = self.rng
        mask = ndimage.gaussian_filter(other.masks[0], 0.6)
        a, b = crop.image[0], other.image[0]
        around, within = a[mask > 0.5], b[mask > 0.5]
        if around.size < 12:
            return crop
        spread = a.std() + 1e-6
        texture = (b - within.mean()) / (within.std() + 1e-6) * spread * rng.uniform(0.1, 0.5)
        shift = rng.choice([-1, 1]) * spread * rng.uniform(0.4, 1.6)
        values = a * (1 - mask) + (around.mean() + shift + texture) * mask
        masks = np.stack([other.masks[0], crop.masks[0] * (1 - other.masks[0])])
        wholes = np.array(
            [other.wholes[0], max(masks[1].sum(), crop.wholes[0] - (crop.masks[0] * other.masks[0]).sum())]
        )
        return Crop(
            np.stack([values, values, crop.image[2]]), masks, wholes, np.stack([other.clicks[0], np.full(3, -1e4)])
        )

    def _spoil(self, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Window, contrast, inversion, and what scanners do."""
        rng = self.rng
        low, high = np.percentile(values[valid], (0.2, 99.8)) if valid.any() else (0.0, 1.0)
        if rng.random() < 0.35:  # a narrower window, as for soft tissue in CT
            middle = rng.choice(values[valid]) if valid.any() else low
            width = (high - low) * np.exp(rng.uniform(np.log(0.12), np.log(0.9)))
            low, high = max(low, middle - width / 2), min(high, middle + width / 2)
        scaled = (np.clip(values, low, high) - low) / max(high - low, 1e-6)
        if rng.random() < 0.12:
            scaled = 1 - scaled
        if rng.random() < 0.15:  # another contrast: any smooth, not even rising, curve
            knots = np.sort(rng.uniform(0, 1, size=4))
            scaled = np.interp(scaled, [0, *knots, 1], rng.uniform(0, 1, size=6))
        scaled = scaled.astype(np.float32)
        if rng.random() < 0.45:
            return degrade(rng, scaled)
        if rng.random() < 0.15:
            return thick_slices(rng, scaled)
        return scaled + rng.normal(size=scaled.shape).astype(np.float32) * rng.uniform(0, 0.03)


def _read(scene: Scene, values: np.ndarray, grid: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Values at positions in mm, and whether these lie in the scan; level 1 reads a copy at half size."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None, None]
    if level:
        tensor = F.avg_pool3d(tensor, 2, ceil_mode=True, count_include_pad=False)
    size = np.array(values.shape)
    place = (grid / scene.spacing + 0.5) / size * 2 - 1  # grid_sample's coordinates, voxel faces at -1 and 1
    where = torch.from_numpy(place[..., ::-1].astype(np.float32).copy())[None]
    read = F.grid_sample(tensor, where, mode="bilinear", padding_mode="border", align_corners=False)[0, 0].numpy()
    inside = (np.abs(place) <= 1).all(axis=-1)
    if values is not scene.image:
        read = read * inside
    return read, inside.astype(np.float32)
