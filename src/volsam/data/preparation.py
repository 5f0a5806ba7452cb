"""How volumes are brought to a network that is trained on a dataset: one voxel size, one order of axes, one scale.

The same `Preparation` is used in training, where its results are kept on disk, and whenever the trained network meets a
new volume; it is stored with the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from volsam.data.dataset import Case, read_image, read_label
from volsam.data.digests import fingerprint, image_digest
from volsam.data.files import replacing
from volsam.data.io import read_grid
from volsam.data.preprocess import inside
from volsam.errors import BadInput
from volsam.geometry import Grid, resample
from volsam.volume import Volume

# Changes when what is kept on disk would be another thing for the same settings.
FORMAT = 5
# Voxels of a class that are remembered to draw patches around.
PLACES = 4096
# The class of voxels whose truth is not known.
UNKNOWN = 255
# The least part of a voxel that has to be known for it to have another class.
LEAST_KNOWN = 0.05
# Files that are open beside those of the cases.
SPARE = 512
# What half precision holds, nearly: a single spike farther away would be infinite, and a network's norms no numbers.
MOST = 6e4
# At most this many voxels of a volume are looked at to find percentiles.
SAMPLE = 1 << 18


class Preparation(BaseModel, frozen=True, extra="forbid"):
    """Where and how a network sees a volume."""

    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm along the three axes of `axes`; None keeps each volume's own."""
    axes: str = "RAS"
    """Where the axes of an array point, as near as the volume's own axes allow."""
    scaling: Literal["zscore", "window", "unclipped", "above zero"] = "zscore"
    """zscore: each channel of a volume, clipped to its `percentiles`, to mean 0 and spread 1; window:
    clipped to `window`, then (value - mean) / spread; unclipped: as zscore, but nothing is lost, for networks that
    scale what they look at by themselves; above zero: divided by the spread of what is above zero, for networks that
    look at that (`volsam.data.preprocess.above_zero`)."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """Of a channel's values, 0 to 100."""
    window: tuple[float, float] | None = None
    """Intensities, such as HU, between which all lies after clipping."""
    mean: float = 0.0
    """Of the window, in the unit of the scan."""
    spread: float = 1.0
    """Of the window, in the unit of the scan."""

    def grid(self, grid: Grid) -> Grid:
        """The voxels in which a volume on `grid` is seen: all of it."""
        own = grid.reoriented(self.axes)
        spacing = own.spacing if self.spacing is None else np.array(self.spacing)
        shape = np.maximum(1, np.ceil(own.shape * own.spacing / spacing - 0.05).astype(int))
        middle = grid.to_world((np.array(grid.shape) - 1) / 2)
        return grid.around(middle, [int(size) for size in shape], [float(size) for size in spacing], self.axes)

    def image(self, volume: Volume) -> NDArray[np.float32]:
        """(c, d, h, w), every channel of the volume on `self.grid(volume.grid)`."""
        target = self.grid(volume.grid)
        channels = [np.asarray(resample(data, volume.grid, target, mode="area"), np.float32) for data in volume.data]
        return np.stack([self.scale(values)(values) for values in channels])

    def label(
        self, values: NDArray[np.integer], grid: Grid, wanted: Sequence[int], ignored: int | None = None
    ) -> NDArray[np.uint8]:
        """(d, h, w): the place in `wanted` of every voxel's value; of several in one voxel, the one that fills most of
        what is known there, and `UNKNOWN` where next to nothing is but `ignored`.
        """
        target = self.grid(grid)

        def share_of(value: int) -> NDArray[np.float32]:
            return np.asarray(resample((values == value).astype(np.float32), grid, target, mode="area"), np.float32)

        unknown = np.zeros(target.shape, np.float32) if ignored is None else share_of(ignored)
        best = 0.5 * (1 - unknown)
        found = np.zeros(target.shape, np.uint8)
        if ignored is not None:
            found[self._share(values == ignored, grid) > 1 - LEAST_KNOWN] = UNKNOWN
        present = set(np.unique(values).tolist())
        for index, value in enumerate(wanted):
            if index == 0 or value not in present:
                continue
            share = share_of(value)
            found[(share >= best) & (found != UNKNOWN)] = index
            best = np.maximum(best, share)
        return found

    def _share(self, mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float32]:
        """(d, h, w): how much of each voxel is marked, each place as the volume's nearest voxel has it.

        Between two slices of a volume nothing is half marked, as it would be to `resample` with mode="area".
        """
        target = self.grid(grid)
        parts = np.maximum(1, np.ceil(target.spacing / grid.reoriented(self.axes).spacing - 0.05).astype(int))
        shape, middle = np.array(target.shape) * parts, target.to_world((np.array(target.shape) - 1) / 2)
        finer = grid.around(middle, [int(size) for size in shape], [*(target.spacing / parts)], self.axes)
        near = np.asarray(resample(mask.astype(np.uint8), grid, finer, mode="nearest"), np.float32)
        d, h, w = target.shape
        return near.reshape(d, parts[0], h, parts[1], w, parts[2]).mean(axis=(1, 3, 5))

    def region(self, volume: Volume, roi: Grid) -> NDArray[np.float32]:
        """(d, h, w): a region of the first channel; beyond the scan is its lowest value there, as in training."""
        values = np.asarray(resample(volume.data[0], volume.grid, roi, mode="area"), dtype=np.float32)
        known = inside(volume.grid, roi)
        values = np.where(known, values, values[known].min() if known.any() else 0.0)
        return np.asarray(self.scale(volume.data[0])(values), dtype=np.float32)

    def scale(self, values: NDArray[np.generic]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """What brings a channel to the network's scale, found from its values or from any part that is like it."""
        if self.scaling == "window":
            if self.window is None:
                raise BadInput("a preparation by window needs its two ends: set `window`")
            (low, high), mean, spread = self.window, self.mean, self.spread
        else:
            flat = values.reshape(-1)
            sample = flat[:: max(1, flat.size // SAMPLE)].astype(np.float32)
            if self.scaling == "above zero":
                unit = float(sample[sample > 0].std()) if (sample > 0).any() else 0.0
                return lambda image: image / (unit or 1.0)
            low, high = (float(value) for value in np.percentile(sample, self.percentiles))
            if low == high:  # nearly all is one value, as beside a small mask: what is not may be all there is to see
                low, high = float(values.min()), float(values.max())
                sample = flat.astype(np.float32)
            clipped = sample.clip(low, high)
            mean, spread = float(clipped.mean()), max(float(clipped.std()), 1e-6)
        if self.scaling == "unclipped":
            return lambda image: (image - mean) / spread
        return lambda image: (np.clip(image, low, high) - mean) / spread


def spacing_of(cases: Iterable[Case], axes: str, voxels: int) -> tuple[float, float, float]:
    """The voxel size in mm (along `axes`) to see a dataset in: the median of its own, and coarser where its median
    volume would hold more than `voxels`; the finest axes grow first, until all are equal.
    """
    spacing, extent = _median(cases, axes)
    while np.prod(extent / spacing) > voxels:
        finest = spacing <= spacing.min() * 1.001
        spacing = np.where(finest, spacing * 1.05, spacing)
    return tuple(round(float(size), 4) for size in spacing)  # type: ignore[return-value]


def patch_of(
    cases: Iterable[Case], axes: str, spacing: Sequence[float], edge: int, multiple: int
) -> tuple[int, int, int]:
    """Voxels to look at together: `edge` along each axis, or fewer where the median volume has no more than that.

    Raises:
        BadInput: `edge` is not a `multiple`.
    """
    if edge % multiple:
        raise BadInput(f"edge={edge} is not valid: it must be a multiple of {multiple} here")
    _, extent = _median(cases, axes)
    wanted = np.ceil(extent / np.array(spacing) / multiple) * multiple
    return tuple(int(size) for size in np.minimum(edge, np.maximum(wanted, multiple)))  # type: ignore[return-value]


def _median(cases: Iterable[Case], axes: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxel size and extent, mm, of the median case."""
    grids = [read_grid(case.images[0]).reoriented(axes) for case in cases]
    spacing = np.median([grid.spacing for grid in grids], axis=0)
    return spacing, np.median([grid.spacing * grid.shape for grid in grids], axis=0)


# --- kept on disk ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A case as a network sees it; the arrays are read from disk where they are touched.

    image: (c, d, h, w), half precision; label: (d, h, w), the class of every voxel, or `UNKNOWN`; places: for each
    class but the background, some of its voxels (n, 3).
    """

    name: str
    image: NDArray[np.float16]
    label: NDArray[np.uint8]
    places: tuple[NDArray[np.int32], ...]


def prepare(
    cases: Sequence[Case],
    preparation: Preparation,
    values: Sequence[int],
    folder: Path,
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
    declared: Collection[int] | None = None,
    ignored: int | None = None,
    channels: int | None = None,
) -> list[Prepared]:
    """Every case, made once and kept below `folder` for the next time.

    Args:
        cases: of one that has no label every voxel is background.
        preparation: how they are seen.
        values: of the label in the files, background first; a class is a place in this list.
        folder: where results are kept.
        progress: passes on the cases, and may show how far it is.
        declared: values that the dataset has a name for; `values` if nothing is said.
        ignored: the value of voxels whose truth is not known.
        channels: how many of the image are looked at; None: all.

    Raises:
        BadInput: a label holds a value that is not declared, or there are more classes than a byte tells apart.
    """
    if len(values) > UNKNOWN:
        raise BadInput(f"{len(values) - 1} labels are too many to learn together: {UNKNOWN - 1} are the most")
    folder.mkdir(parents=True, exist_ok=True)
    _allow_open_files(2 * len(cases) + SPARE)
    known = {0, *values, *(declared or ())}
    return [_prepared(case, preparation, values, folder, known, ignored, channels) for case in progress(cases)]


def _prepared(
    case: Case,
    preparation: Preparation,
    values: Sequence[int],
    folder: Path,
    declared: Collection[int],
    ignored: int | None,
    channels: int | None,
) -> Prepared:
    about = [preparation.model_dump(mode="json"), list(values), sorted(declared), ignored, channels]
    files = [*case.images, *([case.label] if case.label else [])]
    # Two sets of labels may be equal in size and time, as after unpacking: labels are told apart by what is in them,
    # images, which are large, by some of it.
    state = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = fingerprint([case], {case.name: image_digest(case)})
    key = blake2b(json.dumps([FORMAT, *about, state, content]).encode(), digest_size=12).hexdigest()
    image_file, label_file, places_file = (
        folder / f"{key}-{what}" for what in ("image.npy", "label.npy", "places.npz")
    )
    if not all(file.is_file() for file in (image_file, label_file, places_file)):
        volume = read_image(case, channels)
        image = preparation.image(volume).clip(-MOST, MOST).astype(np.float16)
        if case.label is None:
            label = np.zeros(image.shape[1:], np.uint8)
        else:
            drawn = read_label(case, volume.grid)
            if strange := sorted(set(np.unique(drawn).tolist()) - set(declared)):
                raise BadInput(
                    f"{case.label}: dataset.json has no name for the label values {', '.join(map(str, strange[:5]))}: "
                    "give them one there, and see `volsam data check`"
                )
            label = preparation.label(drawn, volume.grid, values, ignored)
        for path, array in ((image_file, image), (label_file, label)):
            with replacing(path) as unfinished, unfinished.open("wb") as file:
                np.save(file, array)
        with replacing(places_file) as unfinished, unfinished.open("wb") as file:
            np.savez(file, *_places(label, len(values)))
    with np.load(places_file) as kept:
        places = tuple(kept[f"arr_{index}"] for index in range(len(values) - 1))
    return Prepared(case.name, np.load(image_file, mmap_mode="r"), np.load(label_file, mmap_mode="r"), places)


def _allow_open_files(needed: int) -> None:
    """Raise the limit of open files: an array that is read where it is touched keeps its file open."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit
    except ImportError:  # Windows has no such limit
        return
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if soft == RLIM_INFINITY or needed <= soft:
        return
    if hard != RLIM_INFINITY and needed > hard:
        raise BadInput(
            f"so many cases need {needed} open files, and this system allows a program {hard}: raise that limit "
            "(ulimit -Hn), or learn from fewer with --train-cases"
        )
    setrlimit(RLIMIT_NOFILE, (needed, hard))


def _places(label: NDArray[np.uint8], classes: int) -> tuple[NDArray[np.int32], ...]:
    found = []
    for index in range(1, classes):
        voxels = np.flatnonzero(label == index)
        some = voxels[:: max(1, -(-len(voxels) // PLACES))]
        found.append(np.stack(np.unravel_index(some, label.shape), axis=1).astype(np.int32))
    return tuple(found)
