"""The two sides of a comparison behind the same calls: a published network as written out here, and ours.

Calls begin and end with numpy on a CPU: a volume or slice comes in, a mask of its size goes out. On a GPU a mask may
stay
there (`to_host=False`), or come to the host: packed to bits from ours, as probabilities from the published one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.evaluation.published import sam as published
from volsam.evaluation.published.ma_sam import segment_volume
from volsam.evaluation.published.sam_adapter_3d import SamAdapter3D
from volsam.models.prompt_encoder import PromptBatch

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Press:
    """A click: voxel indices along depth, height and width, and whether it is in the object."""

    voxel: tuple[int, int, int]
    positive: bool = True


@dataclass(frozen=True)
class Answer:
    """mask: at the size of the input, on the host or the device; logits: makes the same before the threshold, to
    compare or to learn from; fed: what the next click is given.
    """

    mask: Tensor | NDArray[Any]
    logits: Callable[[], Tensor]
    fed: Any


class Promptable(Protocol):
    """One side of a promptable pair."""

    network: Any

    def encode(self, image: Image) -> Any:
        """The costly step: (d h w) or, for slices, (h w)."""

    def click(self, features: Any, presses: Sequence[Press], fed: Any, to_host: bool = True) -> Answer:
        """Answer the last of the presses so far; `fed` is what the press before gave, None at the first."""

    def embedding(self, features: Any) -> Tensor:
        """What `encode` found, in the layout both sides share."""


def device_of(network: Any) -> torch.device:
    """Where a network computes: as it says, or where its weights are."""
    said = getattr(network, "device", None)
    return next(network.parameters()).device if said is None else said


def packed(mask: Tensor) -> NDArray[np.uint8]:
    """A mask on a device as bits on the host, eight voxels a byte, the first in the lowest bit."""
    bits = F.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).unflatten(0, (-1, 8))
    places = torch.arange(8, device=mask.device, dtype=torch.uint8)
    return (bits << places).sum(dim=1, dtype=torch.uint8).cpu().numpy()


def to_mask(logits: Tensor, to_host: bool) -> Tensor | NDArray[Any]:
    """Where logits (*size) are above 0: there, or on the host (packed, if they are not there already)."""
    mask = logits > 0
    if not to_host:
        return mask
    return packed(mask) if mask.is_cuda else mask.numpy()


# --- SAM and its relatives -----------------------------------------------------------------------------------------


class PublishedSam:
    """SAM, SAM-Med2D, SAM-Med3D, FastSAM3D as published."""

    def __init__(self, network: published.Sam) -> None:
        self.network = network
        self.flat = network.prompt_encoder.rank == 2

    def encode(self, image: Image) -> Tensor:
        """The embedding (1 c *grid)."""
        tensor = torch.from_numpy(image).to(device_of(self.network))[None, None]
        return self.network.image_encoder(tensor.expand(-1, 3, -1, -1).contiguous() if self.flat else tensor)

    def click(self, features: Tensor, presses: Sequence[Press], fed: Tensor | None, to_host: bool = True) -> Answer:
        """The newest click and the last mask; 3D systems begin with an empty one."""
        press, device = presses[-1], features.device
        place = press.voxel[:0:-1] if self.flat else press.voxel  # slices: (x, y)
        point = torch.tensor([[place]], dtype=torch.float32, device=device)
        label = torch.tensor([[float(press.positive)]], device=device)
        if fed is None and not self.flat:
            fed = torch.zeros(1, 1, *[4 * self.network.prompt_encoder.grid] * 3, device=device)
        logits, low_res = published.click(self.network, features, point, label, fed)
        if self.flat:
            mask = logits[0, 0] > 0
            return Answer(mask.cpu().numpy() if to_host else mask, lambda: logits[0, 0], low_res)
        found = published.mask_on_host(logits) if to_host else logits[0, 0] > 0
        return Answer(found, lambda: logits[0, 0], low_res)

    def embedding(self, features: Tensor) -> Tensor:
        """(1 c *grid)."""
        return features


class OurSam:
    """The same on `Segmenter`, or on what answers as one.

    box: the bounds outside of which a mask coarser by so many voxels has nothing at full size: on a CPU a volume is
    enlarged in there only, as a session does it.
    """

    def __init__(self, network: Any, box: Callable[[NDArray[np.bool_], int], Sequence[tuple[int, int]]]) -> None:
        self.network = network
        self.flat = network.config.encoder.image[0] == 1
        self._box = box

    def encode(self, image: Image) -> Any:
        """`Features`."""
        tensor = torch.from_numpy(image).to(device_of(self.network))
        volume = tensor[None, None, None].expand(-1, 3, -1, -1, -1) if self.flat else tensor[None, None]
        return self.network.encode(volume)

    def click(self, features: Any, presses: Sequence[Press], fed: Tensor | None, to_host: bool = True) -> Answer:
        """The newest click and the last mask."""
        press, device = presses[-1], features.embedding.device
        point = torch.tensor([[press.voxel]], dtype=torch.float32, device=device)
        label = torch.tensor([[int(press.positive)]], device=device)
        if fed is None and not self.flat:
            grid, strides = self.network.config.prompts.grid, self.network.config.prompts.mask_stride
            fed = torch.zeros(1, 1, *(n * s**2 for n, s in zip(grid, strides, strict=True)), device=device)
        low_res, _ = self.network.draft(features, PromptBatch(point, label, mask=fed))
        size = features.image.shape[2:]

        def logits() -> Tensor:
            whole = self.network.refine(features, low_res, tuple(slice(0, edge) for edge in size))
            return whole[0, 0, 0] if self.flat else whole[0, 0]

        if self.flat or not to_host or device.type != "cpu":
            enlarged = logits()
            return Answer(to_mask(enlarged, to_host), lambda: enlarged, low_res)
        coarse = low_res[0, 0].numpy()
        part = tuple(slice(*bounds) for bounds in self._box(coarse > 0, size[0] // coarse.shape[0]))
        mask = np.zeros(size, bool)
        mask[part] = self.network.refine(features, low_res, part)[0, 0].numpy() > 0
        return Answer(mask, logits, low_res)

    def embedding(self, features: Any) -> Tensor:
        """(1 c *grid)."""
        return features.embedding[:, :, 0] if self.flat else features.embedding


# --- 3DSAM-adapter -------------------------------------------------------------------------------------------------


class PublishedCrop:
    """3DSAM-adapter as published: all clicks at once, without sign or memory."""

    def __init__(self, network: SamAdapter3D) -> None:
        self.network = network

    def encode(self, image: Image) -> tuple[Tensor, list[Tensor]]:
        """The crop and its four levels of features."""
        crop = torch.from_numpy(image).to(device_of(self.network))[None, None]
        return crop, self.network.encode(crop)

    def click(self, features: Any, presses: Sequence[Press], fed: Any, to_host: bool = True) -> Answer:
        """Coordinates along depth, width and height, as the release samples its features."""
        crop, levels = features
        places = [(d, w, h) for d, h, w in (press.voxel for press in presses)]
        points = torch.tensor([places], dtype=torch.float32, device=crop.device)
        scores = self.network.decode(crop, levels, points)
        logits = scores[0, 1] - scores[0, 0]
        if not to_host:
            return Answer(logits > 0, lambda: logits, None)
        return Answer(scores.softmax(dim=1)[0, 1].cpu().numpy() > 0.5, lambda: logits, None)

    def embedding(self, features: Any) -> Tensor:
        """The deepest level, (1 c d h w)."""
        return features[1][-1].permute(0, 1, 4, 2, 3)


class OurCrop:
    """The same on our network: `encode(crop)` and `decode(features, points)`."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def encode(self, image: Image) -> Any:
        """`Features`."""
        return self.network.encode(torch.from_numpy(image).to(device_of(self.network))[None, None])

    def click(self, features: Any, presses: Sequence[Press], fed: Any, to_host: bool = True) -> Answer:
        """All clicks so far."""
        places = [press.voxel for press in presses]
        points = torch.tensor([places], dtype=torch.float32, device=features.embedding.device)
        logits = self.network.decode(features, points).logits[0, 0]
        return Answer(to_mask(logits, to_host), lambda: logits, None)

    def embedding(self, features: Any) -> Tensor:
        """The deepest level, (1 c d h w)."""
        return features.embedding


# --- automatic networks --------------------------------------------------------------------------------------------


class Automatic(Protocol):
    """One side of a pair without prompts."""

    network: nn.Module

    def segment(self, volume: Image) -> Answer:
        """Classes (d h w) of a volume (d h w), and the logits of its first slice or stack."""


def in_colours(volume: Image, device: torch.device) -> Tensor:
    """Slices (d h w) to (d 3 h w)."""
    return torch.from_numpy(volume).to(device)[:, None].expand(-1, 3, -1, -1)


class Stacks:
    """MA-SAM, either side: a stack around every slice, as published. `predict` maps (s 3 h w) to (s classes h w)."""

    def __init__(self, network: nn.Module, predict: Callable[[Tensor], Tensor], slices: int = 5) -> None:
        self.network = network
        self._predict = predict
        self._slices = slices

    def segment(self, volume: Image) -> Answer:
        """Every slice gets as many predictions as stacks it is in."""
        first: list[Tensor] = []

        def predict(stack: Tensor) -> Tensor:
            logits = self._predict(stack)
            if not first:
                first.append(logits)
            return logits

        classes = segment_volume(predict, in_colours(volume, device_of(self.network)), self._slices)
        return Answer(classes.cpu().numpy(), lambda: first[0], None)


class Slices:
    """AutoSAM, either side: one slice after the other. `predict` maps (1 3 h w) to (1 classes y x)."""

    def __init__(self, network: nn.Module, predict: Callable[[Tensor], Tensor]) -> None:
        self.network = network
        self._predict = predict

    def segment(self, volume: Image) -> Answer:
        """The class of every pixel, at the resolution of the head."""
        logits = [self._predict(one[None]) for one in in_colours(volume, device_of(self.network))]
        return Answer(torch.cat(logits).argmax(dim=1).cpu().numpy(), lambda: logits[0], None)
