"""Automatic 3D models in volumes of any size: a window slides over the volume, and every voxel gets a label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from volsam.data.preparation import Preparation
from volsam.data.preprocess import normalise, positions
from volsam.errors import BadInput
from volsam.geometry import Grid, resample
from volsam.volume import Volume

# By how much windows overlap, and how many pass through the network at once.
OVERLAP, TOGETHER = 0.5, 1
# Voxels labelled at once; bounds the memory for large volumes.
SLAB = 1 << 22
# Beyond the volume as the network saw it, which ends within half a voxel of its faces.
OUTSIDE = -30.0


class WindowModel:
    """A network that labels windows of a volume, behind `volsam predict`.

    Args:
        network: windows (b c d h w) to the logits of every class (b k d h w), in evaluation mode on `device`.
        name: what the model is called.
        labels: a name for each class, the first being background.
        values: of each class in the labels that are written.
        preparation: how volumes are seen.
        patch: voxels of a window.
        channels: that it looks at; an image may have more.
        device: where the network is.
        by_region: whether a window is shown as volsam-s sees a region.
        placed: whether the network is told where every voxel lies in the volume, in three channels more.
        mirrors: axes (of d h w) along which mirror images are looked at as well, and the answers averaged.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        labels: Sequence[str],
        values: Sequence[int],
        preparation: Preparation,
        patch: tuple[int, int, int],
        channels: int = 1,
        device: str = "cpu",
        *,
        by_region: bool = False,
        placed: bool = False,
        mirrors: tuple[int, ...] = (),
    ) -> None:
        self.network = network.to(device).eval()
        self.name = name
        self.labels = tuple(labels)
        self.values = tuple(values)
        self.preparation = preparation
        self.patch = patch
        self.channels = channels
        self.device = torch.device(device)
        self.by_region = by_region
        self.placed = placed
        self.mirrors = mirrors

    def room(self, grid: Grid) -> int:
        """Bytes for the volume as the network sees it, its places, the scores of all classes and their weight."""
        seen = [max(edge, length) for edge, length in zip(self.patch, self.preparation.grid(grid).shape, strict=True)]
        told = self.channels + self.by_region + 3 * self.placed
        return prod(seen) * 4 * (told + len(self.labels) + 1)

    def segment(
        self,
        volume: Volume,
        plane: str = "auto",
        *,
        stride: int = 1,
        progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> Volume:
        """The label of every voxel, on the volume's own grid.

        `plane`, `stride` and `progress` are of models of slices; this one looks at all three planes at once.
        """
        if len(volume.data) < self.channels:
            raise BadInput(
                f"{self.name} was trained on images of {self.channels} channels, {volume.name} has {len(volume.data)}: "
                "give all of them, in the order of the training"
            )
        volume = volume.with_data(volume.data[: self.channels])
        scores = self.scores(volume)
        grid = self.preparation.grid(volume.grid)
        kind = np.uint8 if max(self.values) < 256 else np.uint16
        found = np.zeros(volume.grid.shape, kind)
        values = np.array(self.values, kind)
        planes = max(1, SLAB // max(1, volume.grid.shape[1] * volume.grid.shape[2]))
        for start in range(0, len(found), planes):
            stop = min(start + planes, len(found))
            slab = volume.grid.crop((start, 0, 0), (stop, *volume.grid.shape[1:]))
            found[start:stop] = values[_chosen(scores, grid, slab)]
        return volume.with_data(found[None], f"{volume.name}: labels")

    @torch.inference_mode()
    def scores(self, volume: Volume) -> NDArray[np.float32]:
        """Logits (k, d, h, w) of every class on `preparation.grid(volume.grid)`."""
        from monai.inferers.utils import sliding_window_inference

        image = torch.from_numpy(self.preparation.image(volume))[None]
        if self.by_region:
            # This channel tells where a window is beyond the volume.
            image = torch.cat([image[:, :1], torch.ones_like(image[:, :1])], dim=1)
        shape = image.shape[2:]
        image, within = _enlarged(image, self.patch, 0.0 if self.by_region else None)
        if self.placed:
            places = positions(shape, [-part.start for part in within], image.shape[2:])
            image = torch.cat([image, torch.from_numpy(places)[None]], dim=1)
        found: Any = sliding_window_inference(
            image.to(self.device), self.patch, TOGETHER, self._answer, overlap=OVERLAP, mode="gaussian"
        )
        return found[0][(slice(None), *within)].float().cpu().numpy()

    def _answer(self, windows: Tensor) -> Tensor:
        if self.by_region:
            seen = windows.cpu().numpy()
            shown = [np.concatenate([normalise(window[0], window[1] > 0.5), window[2:]]) for window in seen]
            windows = torch.from_numpy(np.stack(shown)).to(self.device)
        answer = self._full_size(windows)
        for axis in self.mirrors:
            answer = answer + self._full_size(windows.flip(axis + 2)).flip(axis + 2)
        return answer / (1 + len(self.mirrors))

    def _full_size(self, windows: Tensor) -> Tensor:
        logits: Tensor = self.network(windows)
        if logits.shape[2:] != windows.shape[2:]:
            logits = nn.functional.interpolate(logits, windows.shape[2:], mode="trilinear", align_corners=False)
        return logits


def _enlarged(image: Tensor, patch: Sequence[int], fill: float | None) -> tuple[Tensor, tuple[slice, ...]]:
    """A volume (1 c d h w) in the middle of at least a window, and where it lies there.

    fill: what is beyond it; None: the lowest value of each channel, as in training.
    """
    size = image.shape[2:]
    lows = [max(0, edge - length) // 2 for edge, length in zip(patch, size, strict=True)]
    within = tuple(slice(low, low + length) for low, length in zip(lows, size, strict=True))
    beyond = (
        image.amin(dim=(2, 3, 4), keepdim=True) if fill is None else image.new_full((1, image.shape[1], 1, 1, 1), fill)
    )
    large = beyond.repeat(1, 1, *(max(edge, length) for edge, length in zip(patch, size, strict=True)))
    large[:, :, within[0], within[1], within[2]] = image
    return large, within


def _chosen(scores: NDArray[np.float32], grid: Grid, slab: Grid) -> NDArray[np.intp]:
    """The class of the highest score at every voxel of `slab`."""
    best = np.asarray(resample(scores[0], grid, slab, fill=0.0), np.float32)
    chosen = np.zeros(slab.shape, np.intp)
    for index in range(1, len(scores)):
        score = np.asarray(resample(scores[index], grid, slab, fill=OUTSIDE), np.float32)
        chosen[score > best] = index
        best = np.maximum(best, score)
    return chosen
