"""Invented scans with known objects, for tests, demonstrations and training.

A scene is a map of regions, each region an object; an image gives every region a mean and a texture and then spoils it
as scanners do: blur, thick slices, bias field, noise, gamma. The maps are invented or come from real contours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from volsam.geometry import Grid, Shape
from volsam.volume import Volume

Labels = NDArray[np.uint8]
Image = NDArray[np.float32]


def sample_volume(seed: int = 0, shape: Shape = (112, 112, 80), spacing: float = 1.5) -> tuple[Volume, Volume]:
    """A scan to try things on, and its labels: a body with organs and a lesion, in Hounsfield-like units."""
    rng = np.random.default_rng(seed)
    grid = Grid.at(shape, spacing, origin=[-size * spacing / 2 for size in shape])
    labels = np.zeros(shape, np.uint8)
    middle = np.array(shape) / 2
    parts = [  # label, centre and half axes in parts of the volume, mean
        (1, (0.0, 0.0, 0.0), (0.46, 0.40, 0.70), 20.0),
        (2, (0.20, 0.02, 0.10), (0.17, 0.22, 0.28), 95.0),
        (3, (-0.22, 0.10, 0.12), (0.09, 0.11, 0.16), 130.0),
        (4, (-0.18, -0.16, -0.18), (0.08, 0.08, 0.17), 160.0),
        (5, (0.18, -0.18, -0.20), (0.08, 0.08, 0.17), 160.0),
        (6, (0.0, -0.25, 0.0), (0.07, 0.07, 0.80), 320.0),
        (7, (0.22, 0.04, 0.14), (0.05, 0.05, 0.07), 45.0),
    ]
    means = np.full(8, -900.0)
    for label, place, half, mean in parts:
        center = middle + np.array(place) * shape
        labels[_blob(rng, shape, center, np.array(half) * shape, 0.0 if label in (1, 6) else 0.12)] = label
        means[label] = mean
    texture = smooth_noise(rng, shape, 14) * 12 + rng.normal(size=shape) * 6
    values = means[labels] + texture * (labels > 0)
    image = ndimage.gaussian_filter(values, 0.7) + rng.normal(size=shape) * 9
    return (
        Volume(image.round().clip(-1024, 3071).astype(np.int16), grid, "sample"),
        Volume(labels, grid, "sample_labels"),
    )


def scene(rng: Generator, size: int, real: Labels | None = None) -> tuple[Image, Labels]:
    """A random image and its regions, `size`³ voxels; `real` contours, if given, lie over an invented background."""
    shape = (size, size, size)
    labels = background(rng, shape)
    for _ in range(int(rng.integers(2, 9)) if real is None else int(rng.integers(0, 3))):
        add_shape(rng, labels)
    if real is not None:
        placed = place(rng, real, shape)
        offset = int(labels.max())
        labels = np.where(placed > 0, np.minimum(placed.astype(int) + offset, 255), labels).astype(np.uint8)
    return render(rng, labels), labels


def smooth_noise(rng: Generator, shape: Shape, cells: int) -> NDArray[np.float64]:
    """Noise of unit variance that varies over about size / `cells` voxels."""
    values: NDArray[np.float64] = rng.normal(size=(cells + 3,) * 3)
    for axis, length in enumerate(shape):
        values = np.moveaxis(np.tensordot(_spline(length, cells), values, axes=(1, axis)), 0, axis)
    return values / (values.std() + 1e-9)


def _spline(length: int, cells: int) -> NDArray[np.float64]:
    """Cubic B-spline weights (length × cells + 3)."""
    places = np.linspace(0, cells, length, endpoint=False)
    knot = np.floor(places).astype(int)
    t = places - knot
    parts = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((length, cells + 3))
    for shift, part in enumerate(parts):
        weights[np.arange(length), knot + shift] = part / 6
    return weights


def background(rng: Generator, shape: Shape) -> Labels:
    """A partition of space into 1 to 7 regions, smooth or cellular."""
    count = int(rng.integers(1, 8))
    if rng.random() < 0.5:
        fields = np.stack([smooth_noise(rng, shape, int(rng.integers(2, 6))) for _ in range(count)])
        return fields.argmax(axis=0).astype(np.uint8)
    seeds = rng.uniform(0, 1, size=(count, 3)) * shape
    stretch = rng.uniform(0.5, 2, size=3)
    where = np.indices(shape, dtype=np.float32)
    bend = smooth_noise(rng, shape, 5) * rng.uniform(0, 60)
    best = np.full(shape, np.inf)
    labels = np.zeros(shape, np.uint8)
    for index, seed in enumerate(seeds):
        distance = sum(((where[axis] - seed[axis]) * stretch[axis]) ** 2 for axis in range(3)) + bend * (index % 2)
        closer = distance < best
        labels[closer] = index
        best[closer] = distance[closer]
    return labels


def add_shape(rng: Generator, labels: Labels) -> None:
    """Lay one more object over the map: a lobed body, a shell with a core, a two-part organ, a tube or a sheet."""
    new = int(labels.max()) + 1
    if new > 250:
        return
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    center = rng.uniform(0.15, 0.85, size=3) * shape
    half = np.exp(rng.uniform(np.log(0.05), np.log(0.32))) * np.array(shape) * rng.uniform(0.5, 1.4, size=3)
    kind = rng.choice(["body", "body", "shell", "parts", "tube", "sheet"])
    if kind == "tube":
        labels[_tube(rng, shape)] = new
    elif kind == "sheet":
        field = smooth_noise(rng, shape, int(rng.integers(2, 4)))
        labels[(np.abs(field) < rng.uniform(0.03, 0.12)) & _blob(rng, shape, center, 2.5 * half, 0.2)] = new
    else:
        body = _blob(rng, shape, center, half, rng.uniform(0, 0.35))
        labels[body] = new
        if kind == "shell":
            labels[_blob(rng, shape, center, half * rng.uniform(0.45, 0.85), 0.1) & body] = new + 1
        elif kind == "parts":
            normal = rng.normal(size=3)
            side = sum((np.indices(shape)[axis] - center[axis]) * normal[axis] for axis in range(3)) > 0
            labels[body & side] = new + 1


def _blob(
    rng: Generator, shape: Shape, center: NDArray[np.float64], half: NDArray[np.float64], lobes: float
) -> NDArray[np.bool_]:
    """A turned ellipsoid whose radius wavers by `lobes`."""
    lines = [np.arange(length, dtype=np.float32) - center[axis] for axis, length in enumerate(shape)]
    if lobes:
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        offsets = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1) @ (turn / half).astype(np.float32)
        radius = np.sqrt((offsets**2).sum(axis=-1))
        return radius < 1 + lobes * smooth_noise(rng, shape, 6)
    squares = [(line / size) ** 2 for line, size in zip(lines, half, strict=True)]
    return squares[0][:, None, None] + squares[1][:, None] + squares[2] < 1


def _tube(rng: Generator, shape: Shape) -> NDArray[np.bool_]:
    """A bent tube through the volume."""
    steps = np.linspace(-0.1, 1.1, 160)[:, None]
    start, end = rng.uniform(0, 1, size=(2, 3))
    bends = sum(np.sin(steps * np.pi * k + rng.uniform(0, 6)) * rng.normal(size=3) * 0.12 / k for k in (1, 2, 3))
    track = (start + (end - start) * steps + bends) * shape
    index = np.round(track).astype(int)
    index = index[((index >= 0) & (index < shape)).all(axis=1)]
    line = np.ones(shape, bool)
    line[tuple(index.T)] = False
    if line.all():
        return ~line
    return ndimage.distance_transform_edt(line) < rng.uniform(1.5, 7)


def place(rng: Generator, labels: Labels, shape: Shape) -> Labels:
    """Real contours, turned, scaled and bent, with one of their objects near the middle."""
    values = np.unique(labels[labels > 0])
    where = np.argwhere(labels == rng.choice(values))
    center = where[rng.integers(len(where))].astype(float)
    extent = float(np.ptp(where, axis=0).max() + 1)
    scale = extent / (shape[0] * np.exp(rng.uniform(np.log(0.25), np.log(1.0))))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0] if rng.random() < 0.5 else np.eye(3)[rng.permutation(3)]
    matrix = turn * rng.choice([-1, 1], size=3) * scale * rng.uniform(0.8, 1.25, size=3)
    offsets = np.indices(shape).reshape(3, -1) - (np.array(shape)[:, None] - 1) / 2
    bend = np.stack([smooth_noise(rng, shape, 5).ravel() for _ in range(3)]) * rng.uniform(0, 2.5)
    positions = matrix @ (offsets + bend) + center[:, None]
    return ndimage.map_coordinates(labels, positions, order=0, mode="constant").reshape(shape)


def render(rng: Generator, labels: Labels) -> Image:
    """An image in which regions differ by mean, texture, or little at all."""
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    count = int(labels.max()) + 1
    means = _means(rng, count)
    coarse = smooth_noise(rng, shape, int(rng.integers(6, 20)))
    fine = ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 1.2))
    fine /= fine.std()
    strength = rng.uniform(0, 0.12, size=(2, count))
    values = means[labels] + strength[0][labels] * coarse + strength[1][labels] * fine
    return degrade(rng, values.astype(np.float32))


def _means(rng: Generator, count: int) -> NDArray[np.float64]:
    kind = rng.random()
    if kind < 0.45:
        return rng.uniform(0, 1, size=count)
    if kind < 0.75:
        return 0.5 + rng.normal(size=count) * rng.uniform(0.08, 0.2)
    return rng.choice(rng.uniform(0, 1, size=max(2, count // 2)), size=count) + rng.normal(size=count) * 0.03


def degrade(rng: Generator, image: Image) -> Image:
    """What scanners do to an image of range about 0..1: blur, thick slices, bias field, noise, gamma."""
    shape = (image.shape[0], image.shape[1], image.shape[2])
    image = ndimage.gaussian_filter(image, rng.uniform(0.2, 1.1))
    steps: list[Callable[[Image], Image]] = []
    if rng.random() < 0.3:
        steps.append(lambda x: thick_slices(rng, x))
    if rng.random() < 0.4:
        steps.append(lambda x: x * np.exp(rng.uniform(0.05, 0.3) * smooth_noise(rng, shape, 2)).astype(np.float32))
    level = rng.uniform(0.0, 0.08) * (2 if rng.random() < 0.2 else 1)
    steps.append(lambda x: x + (rng.normal(size=shape) * level).astype(np.float32))
    for index in rng.permutation(len(steps)):
        image = steps[index](image)
    low, high = image.min(), image.max()
    scaled = (image - low) / (high - low + 1e-9)
    return (scaled ** np.exp(rng.uniform(-0.5, 0.5))).astype(np.float32)


def thick_slices(rng: Generator, image: Image) -> Image:
    """Slices of 2 to 6 voxels along one axis, averaged or picked, interpolated back."""
    axis = int(rng.integers(3))
    step = int(rng.integers(2, 7))
    moved = np.moveaxis(image, axis, 0)
    whole = len(moved) // step * step
    blocks = moved[:whole].reshape(-1, step, *moved.shape[1:])
    slices = blocks.mean(axis=1) if rng.random() < 0.6 else blocks[:, step // 2]
    places = np.clip((np.arange(len(moved)) - (step - 1) / 2) / step, 0, len(slices) - 1)
    low = np.minimum(places.astype(int), len(slices) - 1)
    high = np.minimum(low + 1, len(slices) - 1)
    part = (places - low)[:, None, None]
    back = slices[low] * (1 - part) + slices[high] * part
    return np.moveaxis(back, 0, axis).astype(np.float32)
