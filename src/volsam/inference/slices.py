"""2D models as they see a volume: planes, the slices that they want, what is said in one and what they answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from volsam.data.preprocess import eight_bit_window, to_eight_bit
from volsam.geometry import Grid
from volsam.inference.model import Kind, Logits
from volsam.inference.volumes import dice_of_iou
from volsam.models.features import Features, Prediction
from volsam.models.mask_head import Candidates
from volsam.models.prompt_encoder import PromptBatch
from volsam.models.segmenter import Segmenter, enlarge
from volsam.volume import Volume

# Slices in the order (across, down, along a row) in which radiologists look at them, as axes of the scan.
AXES: dict[str, str] = {"axial": "SPL", "coronal": "PIL", "sagittal": "LIP"}


@dataclass(frozen=True)
class SliceStyle:
    """How a published 2D model wants its slices.

    keep_aspect: the longer side is brought to the model's size and the rest padded, as SAM does, instead of both sides;
    mean, spread: of the three 8-bit colours; takes: prompts understood; feeds_mask: whether the mask of the slice
    before is also given as a mask prompt; several: whether a lone click is answered by the best of three masks.
    """

    keep_aspect: bool
    mean: tuple[float, float, float]
    spread: tuple[float, float, float]
    takes: frozenset[Kind]
    feeds_mask: bool = True
    several: bool = True


_MEAN, _SPREAD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_POINTS: frozenset[Kind] = frozenset({"click", "negative click", "box", "flat box", "mask"})

SAM = SliceStyle(keep_aspect=True, mean=_MEAN, spread=_SPREAD, takes=_POINTS)
SAM_MED2D = SliceStyle(keep_aspect=False, mean=_MEAN, spread=_SPREAD, takes=_POINTS)
# MedSAM was tuned with boxes only, on images scaled to 0..1, without the colours' statistics.
MEDSAM = SliceStyle(
    keep_aspect=False,
    mean=(0.0, 0.0, 0.0),
    spread=(255.0, 255.0, 255.0),
    takes=frozenset({"box", "flat box"}),
    feeds_mask=False,
    several=False,
)


@dataclass(frozen=True)
class SlicePrompts:
    """Prompts in pixels (row, column) of one slice: points (n 2) with labels (n), a box (2 2) or None."""

    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    labels: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    box: NDArray[np.float64] | None = None

    @property
    def positive(self) -> bool:
        """Whether something here is said to be object."""
        return self.box is not None or bool(self.labels.any())


@dataclass(frozen=True)
class SliceMask:
    """Logits (h w) of a slice, the same at the model's own low resolution (for feeding on), expected Dice."""

    logits: Logits
    low_res: Logits
    quality: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h w)."""
        return self.logits > 0


class SliceModel:
    """A published 2D network: one slice to features, prompts on it to a mask."""

    reach = 0
    """How many slices to both sides it sees beside the one that is asked about; `encode_slice` gets all of them."""

    def __init__(self, network: Segmenter, name: str, style: SliceStyle, device: str = "cpu") -> None:
        self.name = name
        self.style = style
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.edge = network.config.encoder.image[2]
        self.takes = style.takes

    def shown(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The part of the model's image that a slice of `shape` fills, from its upper left corner."""
        if not self.style.keep_aspect:
            return self.edge, self.edge
        scale = self.edge / max(shape)
        return int(shape[0] * scale + 0.5), int(shape[1] * scale + 0.5)

    def prepare(self, volume: Volume) -> Callable[[NDArray[np.generic]], NDArray[np.float32]]:
        """What makes of a volume's intensities the values that `encode_slice` takes: grey values 0 to 255."""
        window = eight_bit_window(volume)
        return lambda values: to_eight_bit(values, window)

    @torch.inference_mode()
    def encode_slice(self, pixels: NDArray[np.float32]) -> Features:
        """Features of a slice (h w) of grey values 0 to 255."""
        image = torch.from_numpy(np.ascontiguousarray(pixels))[None, None, None].to(self.device)
        height, width = self.shown((pixels.shape[0], pixels.shape[1]))
        image = enlarge(image, (1, height, width))
        colours = image.expand(-1, 3, -1, -1, -1)
        mean = torch.tensor(self.style.mean, device=self.device)[None, :, None, None, None]
        spread = torch.tensor(self.style.spread, device=self.device)[None, :, None, None, None]
        padding = (0, self.edge - width, 0, self.edge - height)
        found = self.network.encode(torch.nn.functional.pad((colours - mean) / spread, padding))
        # The decoder asks for the image's size only, and the image takes three times as much as its features.
        return Features(found.embedding, found.taps, found.image.new_zeros(1).expand(found.image.shape))

    @torch.inference_mode()
    def decode_slice(
        self,
        encoded: Features,
        prompts: SlicePrompts,
        shape: tuple[int, int],
        previous: Logits | None = None,
        candidates: Candidates | None = None,
    ) -> SliceMask:
        """The mask of a slice of `shape`. Of several candidates the one that the model holds best."""
        shown = self.shown(shape)
        lone = len(prompts.points) == 1 and prompts.box is None and previous is None
        wanted: Candidates = candidates or ("several" if self.style.several and lone else "one")
        fed = None if previous is None else torch.from_numpy(previous)[None, None, None].to(self.device)
        asked = PromptBatch(
            points=None if len(prompts.points) == 0 else self._placed(prompts.points, shape, shown)[None],
            labels=None
            if len(prompts.points) == 0
            else torch.from_numpy(prompts.labels.astype(np.int64))[None].to(self.device),
            boxes=None if prompts.box is None else self._placed(prompts.box, shape, shown)[None, None],
            mask=fed,
        )
        return self._best(self.network.decode(encoded, asked, wanted), shape, shown)

    def _best(self, prediction: Prediction, shape: tuple[int, int], shown: tuple[int, int]) -> SliceMask:
        best = int(prediction.quality[0].argmax())
        logits = prediction.logits[:, best : best + 1, :, : shown[0], : shown[1]]
        return SliceMask(
            enlarge(logits, (1, *shape))[0, 0, 0].float().cpu().numpy(),
            prediction.low_res[0, best, 0].float().cpu().numpy(),
            dice_of_iou(float(prediction.quality[0, best])),
        )

    def _placed(self, places: NDArray[np.float64], shape: tuple[int, int], shown: tuple[int, int]) -> torch.Tensor:
        """Pixels (…, 2) of a slice as voxels (…, 3) of the model's image; pixel 0 is the centre of the first."""
        scale = np.array(shown) / np.array(shape)
        pixels = (places + 0.5) * scale - 0.5
        depth = np.zeros((*pixels.shape[:-1], 1))
        return torch.from_numpy(np.concatenate([depth, pixels], axis=-1).astype(np.float32)).to(self.device)


def plane_of(grid: Grid) -> str:
    """The plane in which a scan was taken: its voxels are longest across it; axial if they are cubes."""
    across = grid.reoriented("RAS").spacing
    longest = int(np.argmax(across)) if across.max() > 1.05 * across.min() else 2
    return ("sagittal", "coronal", "axial")[longest]
