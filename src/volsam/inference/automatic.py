"""Models without prompts in volumes: slice by slice (AutoSAM) or stack by stack of slices (MA-SAM), to a map of labels.

A model maps stacks of slices to a score for every class, slice and pixel. A volume is read in one plane, a stack around
every slice. A slice that is in several stacks gets the mean of what they say; beyond the ends of the volume the
outermost slice is repeated. All goes by in one pass, so memory does not grow with the number of slices.

What overlapping stacks of MA-SAM have in common is little. A slice is read, clipped and brought to the model's size
once. From there on a stack has brightness limits of its own; and were they equal, the first adapter already tells apart
slices at an end of a stack and inner ones, the second every place in a stack. Exactly the same are the patch embedding,
that adapter for inner slices, and the attention behind it: 1.6 % of the work of a ViT-B, and less of larger ones. So
five stacks around a slice cost five times one; `stride` is the way to pay less, for another answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from volsam.errors import BadInput
from volsam.geometry import Grid, resample
from volsam.inference.slices import AXES, plane_of
from volsam.models.segmenter import enlarge
from volsam.volume import Volume

Predict: TypeAlias = Callable[[Float[Tensor, "b 3 d h w"]], Float[Tensor, "b classes d y x"]]
"""Stacks of slices, colours 0 to 1, to the logit of every class; class 0 is background."""

Limits: TypeAlias = Callable[[Volume], tuple[float, float]]
"""Intensities of a volume below and above which all is alike to a model."""

# At most this many voxels are looked at to find a percentile.
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class StackStyle:
    """How a published model wants a volume.

    slices: in a stack, an odd number; limits: to which intensities are clipped. Then each stack is brought to 0..1 by
    its own darkest and brightest pixel, and a grey slice to three equal colours; coloured: whether three channels are
    red, green and blue instead, each with limits of its own.
    """

    slices: int
    limits: Limits
    coloured: bool = False


class AutomaticModel(Protocol):
    """A model without prompts, ready for volumes: of slices, as `StackModel`, or of windows (`inference.windows`)."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each class, the first being background."""

    @property
    def values(self) -> tuple[int, ...]:
        """Of each class in the volumes that `segment` gives."""

    @property
    def channels(self) -> int:
        """Of an image that it looks at, the first ones."""

    def room(self, grid: Grid) -> int:
        """Bytes of memory that a volume on `grid` takes while it is labelled, beside its intensities and labels."""

    def segment(
        self,
        volume: Volume,
        plane: str = "auto",
        *,
        stride: int = 1,
        progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> Volume:
        """The label of every voxel on the volume's own grid."""


class StackModel:
    """A model of slices, or of stacks of slices.

    predict: the network, in evaluation mode on `device`; edge: pixels along the sides of the slices it takes; labels: a
    name for each class, the first being background; values: of each class in what is written, 0, 1, 2
    if not given; plane: of the slices that it was trained on, if it must be one.
    """

    def __init__(
        self,
        predict: Predict,
        name: str,
        labels: Sequence[str],
        style: StackStyle,
        edge: int,
        device: str = "cpu",
        values: Sequence[int] | None = None,
        plane: str = "auto",
    ) -> None:
        self.predict = predict
        self.name = name
        self.labels = tuple(labels)
        self.values = tuple(range(len(self.labels))) if values is None else tuple(values)
        self.style = style
        self.channels = 3 if style.coloured else 1
        self.edge = edge
        self.plane = plane
        self.device = torch.device(device)

    def room(self, grid: Grid) -> int:
        """0: slices are read and labelled one by one, so memory does not grow with the volume."""
        return 0

    def segment(
        self,
        volume: Volume,
        plane: str = "auto",
        *,
        stride: int = 1,
        progress: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> Volume:
        """The label of every voxel, uint8, on the volume's own grid; see `segment_slices`."""
        found = segment_slices(
            self.predict,
            volume,
            self.style,
            self.edge,
            self.plane if plane == "auto" else plane,
            stride=stride,
            device=self.device,
            name=self.name,
            progress=progress,
        )
        if self.values == tuple(range(len(self.labels))):
            return found
        return found.with_data(np.array(self.values, np.uint8 if max(self.values) < 256 else np.uint16)[found.data])


def numbered(classes: int) -> tuple[str, ...]:
    """Names for classes of which only the number is known."""
    return ("background", *(f"class {index}" for index in range(1, classes)))


@torch.inference_mode()
def segment_slices(
    predict: Predict,
    volume: Volume,
    style: StackStyle,
    edge: int,
    plane: str = "auto",
    *,
    stride: int = 1,
    device: torch.device | str = "cpu",
    name: str = "the model",
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Volume:
    """The label of every voxel (uint8) of a volume, on the volume's own grid.

    Args:
        predict: stacks (1 3 d edge edge) to logits of any size.
        volume: what is to be labelled.
        style: how the model wants it.
        edge: pixels along both sides of a slice for the model.
        plane: of the slices, "auto" being the one in which the scan was taken.
        stride: slices from the middle of one stack to that of the next. 1 is as published; as many as a stack has lets
            each slice be seen once: that much faster, and less sure where slices are told apart by their neighbours.
        device: where the network is.
        name: of the model, for messages.
        progress: passes on the middles of the stacks, and may show how far it is.
    """
    if plane != "auto" and plane not in AXES:
        raise BadInput(f"a plane is auto, {', '.join(AXES)}, got {plane!r}")
    if not 1 <= stride <= style.slices:
        raise BadInput(f"{name} sees stacks of {style.slices} slices, so --stride is 1 to {style.slices}, got {stride}")
    channels = 3 if style.coloured else 1
    if len(volume.data) < channels:
        raise BadInput(
            f"{name} was trained on red, green and blue, {volume.name} has {len(volume.data)} channel: give all three"
        )
    seen = [volume.with_data(volume.data[channel : channel + 1]) for channel in range(channels)]
    stack = volume.grid.reoriented(AXES[plane_of(volume.grid) if plane == "auto" else plane])
    count, height, width = stack.shape
    slices = _Slices(seen, stack, [style.limits(channel) for channel in seen], edge, torch.device(device))
    labels = np.zeros(stack.shape, np.uint8)
    reach = style.slices // 2
    pending: dict[int, Tensor] = {}

    def finish(index: int) -> None:
        scores = enlarge(pending.pop(index), (1, height, width))
        labels[index] = scores[0, :, 0].argmax(dim=0).to(torch.uint8).cpu().numpy()

    centres = middles(count, reach, stride)
    following = dict(zip(centres, [*centres[1:], count + reach], strict=True))
    for middle in progress(centres):
        members = [min(max(index, 0), count - 1) for index in range(middle - reach, middle + reach + 1)]
        scores = predict(slices.stack(members))
        if style.slices > 1:  # several stacks vote by probability, and one alone by its logits
            scores = scores.softmax(dim=1)
        for place, index in enumerate(range(middle - reach, middle + reach + 1)):
            if 0 <= index < count:
                said = scores[:, :, place : place + 1]
                pending[index] = pending[index] + said if index in pending else said
        for index in [index for index in pending if index < following[middle] - reach]:
            finish(index)
    found = resample(labels, stack, volume.grid, mode="nearest")
    return volume.with_data(found, f"{volume.name}: labels")


def middles(count: int, reach: int, stride: int) -> list[int]:
    """Where stacks that reach so far to both sides are centred, so that every one of `count` slices is in one."""
    found = list(range(min(stride // 2, count - 1), count, stride))
    return found if found[-1] + reach >= count - 1 else [*found, count - 1]


class _Slices:
    """The slices of a volume as a model wants them, each read once and kept while stacks need it."""

    def __init__(
        self,
        channels: Sequence[Volume],
        stack: Grid,
        limits: Sequence[tuple[float, float]],
        edge: int,
        device: torch.device,
    ) -> None:
        self._channels = channels
        self._grid = stack
        self._limits = limits
        self._edge = edge
        self._device = device
        self._kept: OrderedDict[int, tuple[Tensor, Tensor, Tensor]] = OrderedDict()

    def stack(self, members: Sequence[int]) -> Float[Tensor, "1 3 d h w"]:
        """Slices in three colours, equal ones for grey, 0 to 1 between the darkest and brightest pixel of all."""
        seen = [self._slice(index) for index in members]
        while len(self._kept) > len(members):
            self._kept.popitem(last=False)
        low = torch.stack([low for _, low, _ in seen]).amin(dim=0)
        high = torch.stack([high for _, _, high in seen]).amax(dim=0)
        pixels = torch.cat([pixels for pixels, _, _ in seen], dim=2)
        span = torch.where(high > low, high - low, torch.ones_like(low))
        return ((pixels - low) / span).expand(1, 3, -1, -1, -1)

    def _slice(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clipped pixels (1 c 1 h w) at the model's size, and the limits (c 1 1 1) of the slice itself."""
        if index not in self._kept:
            image = torch.from_numpy(self._read(index))[None].to(self._device)
            sized = enlarge(image, (1, self._edge, self._edge))
            low, high = (extreme(image[0], dim=(1, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax))
            self._kept[index] = (sized, low, high)
        self._kept.move_to_end(index)
        return self._kept[index]

    def _read(self, index: int) -> NDArray[np.float32]:
        """A slice (c 1 h w), clipped."""
        flat = self._grid.crop((index, 0, 0), (index + 1, *self._grid.shape[1:]))
        read = [
            np.clip(np.asarray(resample(channel.data[0], channel.grid, flat), np.float32), low, high)
            for channel, (low, high) in zip(self._channels, self._limits, strict=True)
        ]
        return np.stack(read)


# --- limits --------------------------------------------------------------------------------------------------------


def window(low: float, high: float) -> Limits:
    """The same intensities in every volume, such as Hounsfield units."""
    return lambda _: (low, high)


def below_percentile(percent: float) -> Limits:
    """All but the brightest part of a volume, for MR, where a few bright voxels would leave the rest in the dark."""
    return lambda volume: (-np.inf, float(np.percentile(_sample(volume), percent)))


def between_percentiles(low: float, high: float) -> Limits:
    """All but the darkest and the brightest part of a volume."""

    def limits(volume: Volume) -> tuple[float, float]:
        darkest, brightest = np.percentile(_sample(volume), (low, high))
        if darkest == brightest:  # as in training: what is not this value may be all there is to see
            darkest, brightest = volume.data[0].min(), volume.data[0].max()
        return float(darkest), float(brightest)

    return limits


def everything(_: Volume) -> tuple[float, float]:
    """No limits."""
    return -np.inf, np.inf


def _sample(volume: Volume) -> NDArray[np.float32]:
    """Some of the voxels of the first channel, the same ones every time."""
    values = volume.data[0].reshape(-1)
    return np.asarray(values[:: max(1, values.size // _SAMPLE)], dtype=np.float32)
