"""Changes of what is shown, by MONAI's transforms: of places (image and label alike) and of values (image alone)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Strength = Literal["none", "light", "full", "strong"]

# How often strong changes let the brightness wander over an item, by how much at most, in standard deviations of the
# volume, and at how many places along each axis that is drawn.
WANDERS, BY, CELLS = 0.8, 0.7, (3, 7)
# How often an image is blurred, and by at most how many voxels.
BLURS: dict[str, tuple[float, float]] = {"full": (0.15, 0.9), "strong": (0.25, 1.2)}
LEAST_BLUR = 0.3


class Augment:
    """How items differ from what is in the files.

    Args:
        strength: see `TrainConfig.augment`.
        flip: axes (of d h w) along which mirror images may be shown.
        turn: axes about which items are turned freely; those of slices turn about their first axis alone.
    """

    def __init__(
        self,
        strength: Strength = "full",
        flip: tuple[int, ...] = (0, 1, 2),
        turn: tuple[int, ...] = (0, 1, 2),
    ) -> None:
        self.strength = strength
        self.more = strength in ("full", "strong")
        self.flip = flip
        self.turn = turn
        self.slices = turn == (0,)

    def places(
        self,
        image: NDArray[np.float32],
        label: NDArray[np.uint8],
        known: NDArray[np.bool_],
        random: np.random.Generator,
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]:
        """Turned, zoomed and mirrored: image (c d h w), label (d h w) and where the volume is (d h w).

        What comes in from outside repeats the edge, in the image and in the label; it is not known.
        """
        if self.strength == "none":
            return image, label, known
        if self.more:
            data = {"image": torch.from_numpy(image), "label": torch.from_numpy(label[None].astype(np.float32))}
            data["known"] = torch.from_numpy(known[None].astype(np.float32))
            for transform in self._spatial:
                data = self._drawn(transform, random)(data)
            image = np.asarray(data["image"], np.float32)
            label, known = np.asarray(data["label"][0], np.uint8), np.asarray(data["known"][0] > 0.5)
        axes = [axis for axis in self.flip if random.random() < 0.5]
        if axes:
            image, label = np.flip(image, tuple(axis + 1 for axis in axes)), np.flip(label, tuple(axes))
            known = np.flip(known, tuple(axes))
        return np.ascontiguousarray(image), np.ascontiguousarray(label), np.ascontiguousarray(known)

    def brightness(self, image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """Brighter here and darker there, by a smooth field, so that how bright a thing is beside another tells less;
        for an image (c d h w) before it is scaled to what the network sees.
        """
        if self.strength != "strong" or random.random() >= WANDERS:
            return image
        cells = random.integers(CELLS[0], CELLS[1] + 1, 3)
        drawn = torch.from_numpy(random.normal(0.0, BY * random.random(), (1, 1, *cells)).astype(np.float32))
        field = nn.functional.interpolate(drawn, size=image.shape[1:], mode="trilinear", align_corners=True)
        return np.asarray(image + field[0].numpy(), np.float32)

    def values(self, image: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """Noise, blur, brightness and contrast of an image (c d h w)."""
        if not self.more:
            return np.ascontiguousarray(image, np.float32)
        often, most = BLURS[self.strength]
        seen = torch.from_numpy(np.ascontiguousarray(image, np.float32))
        if random.random() < often:
            seen = blur(seen, random.uniform(LEAST_BLUR, most, 2 if self.slices else 3).tolist())
        if self.strength == "strong":
            # A stack counts as an image of many channels, so that its slices do not run into each other.
            flat = seen.flatten(0, 1) if self.slices else seen
            seen = self._drawn(self._coarser, random)(flat).reshape(seen.shape)
        return np.asarray(self._drawn(self._intensity, random)(seen), np.float32)

    @staticmethod
    def _drawn(transform: Any, random: np.random.Generator) -> Callable[[Any], Any]:
        transform.set_random_state(seed=int(random.integers(2**31)))
        return transform

    @cached_property
    def _spatial(self) -> list[Any]:
        from monai.transforms.spatial.dictionary import RandAffined, RandGridDistortiond

        strong = self.strength == "strong"
        turns = [(0.5 if strong else 0.35) if axis in self.turn else 0.0 for axis in range(3)]
        zooms = [(0.3 if strong else 0.2) if axis in self.turn or self.slices else 0.0 for axis in range(3)]
        if self.slices:  # they keep their distance
            zooms[0] = 0.0
        affine = RandAffined(
            keys=("image", "label", "known"),
            prob=0.9 if strong else 0.5,
            rotate_range=turns,
            scale_range=zooms,
            mode=("bilinear", "nearest", "nearest"),
            padding_mode=("border", "border", "zeros"),
        )
        if not strong or self.slices:
            return [affine]
        bent = RandGridDistortiond(
            keys=("image", "label", "known"),
            prob=0.5,
            num_cells=4,
            distort_limit=(-0.2, 0.2),
            mode=("bilinear", "nearest", "nearest"),  # type: ignore[arg-type]  # one for each key
            padding_mode=("border", "border", "zeros"),  # type: ignore[arg-type]
        )
        return [affine, bent]

    @cached_property
    def _coarser(self) -> Any:
        from monai.transforms.spatial.array import RandSimulateLowResolution

        mode = "bilinear" if self.slices else "trilinear"
        return RandSimulateLowResolution(prob=0.2, upsample_mode=mode, zoom_range=(0.5, 1.0))

    @cached_property
    def _intensity(self) -> Any:
        from monai.transforms.compose import Compose
        from monai.transforms.intensity.array import (
            RandAdjustContrast,
            RandBiasField,
            RandGaussianNoise,
            RandHistogramShift,
            RandScaleIntensity,
            RandShiftIntensity,
        )

        if self.strength == "strong":
            return Compose(
                [
                    RandHistogramShift(num_control_points=(5, 10), prob=0.5),
                    RandBiasField(degree=2, coeff_range=(0.0, 0.3), prob=0.3),
                    RandScaleIntensity(0.4, prob=0.5),
                    RandShiftIntensity(0.3, prob=0.5),
                    RandAdjustContrast(prob=0.5, gamma=(0.5, 2.0)),
                    RandGaussianNoise(prob=0.3, std=0.15),
                ]
            )
        return Compose(
            [
                RandScaleIntensity(0.2, prob=0.3),
                RandShiftIntensity(0.15, prob=0.3),
                RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5)),
                RandGaussianNoise(prob=0.2, std=0.1),
            ]
        )


def blur(image: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """An image (c d h w) under a Gaussian of so many voxels along its axes, or along the last two for slices.

    What lies outside does not count. MONAI's transform takes it for 0, which darkens borders, and stacks of few slices
    all through.
    """
    from monai.networks.layers.simplelayers import GaussianFilter

    smooth = GaussianFilter(len(sigma), list(sigma))
    flat = image.reshape(-1, 1, *image.shape[-len(sigma) :])
    return (smooth(flat) / smooth(torch.ones_like(flat[:1]))).reshape(image.shape)
