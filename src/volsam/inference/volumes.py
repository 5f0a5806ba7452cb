"""Published promptable 3D models behind the interface of a session, each with the preprocessing it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volsam.data.preprocess import above_zero, inside
from volsam.geometry import Grid, resample
from volsam.inference.fast import FastSegmenter
from volsam.inference.model import Decoded, Kind, Logits, box_of
from volsam.inference.openvino import OpenVinoSegmenter
from volsam.models.features import Features, Prediction
from volsam.models.prompt_encoder import NOT_A_POINT, PromptBatch
from volsam.models.segmenter import Segmenter
from volsam.prompts import GridPrompts
from volsam.volume import Volume

# Logits surer of background than this are not enlarged; interpolation never leaves the range of its neighbours.
SURE = 0.0


class ClickModel:
    """SAM-Med3D and FastSAM3D (systems of one interface): 128³ voxels of 1.5 mm, clicks one at a time.

    Both were trained with the newest click alone and the mask that the clicks before it led to, so that is what they
    are shown (Wang et al. 2023, section 3.2; giving many clicks at once makes their masks worse). Intensities are
    z-scored over the voxels above zero of the region, as in their released code; what lies outside the scan is 0.
    """

    spacing = 1.5
    axes = "RAS"
    takes: frozenset[Kind] = frozenset({"click", "negative click", "mask"})

    def __init__(self, network: Segmenter | OpenVinoSegmenter | FastSegmenter, name: str, device: str = "cpu") -> None:
        self.name = name
        self.device = torch.device(device)
        self.network = network.to(self.device).eval() if isinstance(network, Segmenter) else network
        self.edge = network.config.encoder.image[0]
        grid, strides = network.config.encoder.grid, network.config.prompts.mask_stride
        self.step = self.edge // (grid[0] * strides[0] ** 2)

    @torch.inference_mode()
    def encode(self, volume: Volume, roi: Grid) -> Features:
        """Features of a region of the volume's first channel."""
        image = torch.from_numpy(region_above_zero(volume, roi))[None].to(self.device)
        return self.network.encode(image)

    @torch.inference_mode()
    def decode(self, encoded: Features, prompts: GridPrompts, previous: Logits | None) -> Decoded:
        """The newest click on top of the last mask; clicks that came together are answered one after the other."""
        fed = self._fed(previous)
        points = torch.from_numpy(np.ascontiguousarray(prompts.points, dtype=np.float32)).to(self.device)
        labels = torch.from_numpy(prompts.labels.astype(np.int64)).to(self.device)
        newest = range(max(0, len(points) - 1), len(points)) if fed is not None else range(len(points))
        said = [PromptBatch(points[None, i : i + 1], labels[None, i : i + 1], mask=fed) for i in newest]
        low_res = quality = None
        for asked in said or [PromptBatch(mask=fed)]:
            mask = asked.mask if low_res is None else low_res
            low_res, quality = self.network.draft(encoded, PromptBatch(asked.points, asked.labels, mask=mask))
        assert low_res is not None
        assert quality is not None
        coarse = low_res[0, 0].float().cpu().numpy()
        part = box_of(coarse > SURE, self.step)
        d, h, w = (slice(*bounds) for bounds in part)
        logits = self.network.refine(encoded, low_res[:, :1], (d, h, w))[0, 0]
        return Decoded(coarse, logits.float().cpu().numpy(), part, dice_of_iou(float(quality[0, 0])))

    @torch.inference_mode()
    def decode_many(self, encoded: Features, prompts: Sequence[GridPrompts], previous: Logits | None) -> Logits:
        """All sets in one batch, filled up with points that are none."""
        most = max(len(asked.points) for asked in prompts)
        points = np.zeros((len(prompts), most, 3), np.float32)
        labels = np.full((len(prompts), most), NOT_A_POINT, np.int64)
        for index, asked in enumerate(prompts):
            points[index, : len(asked.points)] = asked.points
            labels[index, : len(asked.points)] = asked.labels
        fed = self._fed(previous)
        mask = None if fed is None else fed.expand(len(prompts), -1, -1, -1, -1)
        asked_all = PromptBatch(
            torch.from_numpy(points).to(self.device), torch.from_numpy(labels).to(self.device), mask=mask
        )
        return self.network.draft(encoded, asked_all)[0][:, 0].float().cpu().numpy()

    def _fed(self, previous: Logits | None) -> Tensor | None:
        if previous is None:
            return None
        return torch.from_numpy(np.ascontiguousarray(previous, dtype=np.float32))[None, None].to(self.device)


class CropNetwork(Protocol):
    """What `CropModel` needs: a crop (b 1 d h w) to features, points (b n 3) in its voxels to one mask."""

    def encode(self, crop: Tensor) -> Features:
        """The costly step."""

    def decode(self, features: Features, points: Tensor) -> Prediction:
        """One mask (b 1 d h w)."""


class CropModel:
    """3DSAM-adapter: one crop at 1 mm, positive clicks without order, no feedback (Gong et al. 2023, section 1.4 of
    their release: the crop is centred on the clicks, one pass, no negative clicks).

    window: HU clipped to; mean, spread: of the z-score; axes: of the crop, depth being across the slices: those of the
    task the weights were trained on.
    """

    step = 2
    spacing = 1.0
    takes: frozenset[Kind] = frozenset({"click"})

    def __init__(
        self,
        network: torch.nn.Module,
        name: str,
        device: str,
        edge: int,
        window: tuple[float, float],
        mean: float,
        spread: float,
        axes: str = "SAR",
    ) -> None:
        self.name = name
        self.axes = axes
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.edge = edge
        self.window, self.mean, self.spread = window, mean, spread

    @torch.inference_mode()
    def encode(self, volume: Volume, roi: Grid) -> Features:
        """Features of a region of the volume's first channel, clipped and z-scored; beyond the scan is the mean."""
        values = np.asarray(resample(volume.data[0], volume.grid, roi), dtype=np.float32)
        values = (np.clip(values, *self.window) - self.mean) / self.spread
        values *= inside(volume.grid, roi)
        network: CropNetwork = self.network  # type: ignore[assignment]
        return network.encode(torch.from_numpy(values)[None, None].to(self.device))

    @torch.inference_mode()
    def decode(self, encoded: Features, prompts: GridPrompts, previous: Logits | None) -> Decoded:
        """All clicks at once; `previous` is not looked at, the network has no place for it."""
        prediction = self._predict(encoded, prompts)
        coarse = prediction.low_res[0, 0].float().cpu().numpy()
        logits = prediction.logits[0, 0].float().cpu().numpy()
        full = ((0, self.edge), (0, self.edge), (0, self.edge))
        return Decoded(coarse, logits, full, float(prediction.quality[0, 0]))

    @torch.inference_mode()
    def decode_many(self, encoded: Features, prompts: Sequence[GridPrompts], previous: Logits | None) -> Logits:
        """One after the other: a pass needs too much memory for a batch."""
        return np.stack([self._predict(encoded, asked).low_res[0, 0].float().cpu().numpy() for asked in prompts])

    def _predict(self, encoded: Features, prompts: GridPrompts) -> Prediction:
        network: CropNetwork = self.network  # type: ignore[assignment]
        points = prompts.points[prompts.labels]
        return network.decode(encoded, torch.from_numpy(points.astype(np.float32))[None].to(self.device))


def region_above_zero(volume: Volume, roi: Grid) -> NDArray[np.float32]:
    """(1 i j k): the first channel in a region, see `above_zero`."""
    values = np.asarray(resample(volume.data[0], volume.grid, roi, fill=0.0), dtype=np.float32)
    return above_zero(values, np.ones(values.shape, bool))


def dice_of_iou(iou: float) -> float:
    """The Dice that belongs to an intersection over union, within 0 to 1."""
    iou = min(1.0, max(0.0, iou))
    return 2 * iou / (1 + iou)
