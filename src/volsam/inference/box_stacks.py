"""MA-SAM with a box: an object in the rectangle of its 3D box, each slice in the light of its neighbours.

In the paper a tight 3D box around a pancreas tumour doubles the Dice that is reached without prompts. The rectangle is
the same in every slice; outside of the box's depth nothing is looked at. A box on one slice is taken too: the object is
then followed from slice to slice, as with other models of slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from volsam.inference.automatic import Limits
from volsam.inference.model import Kind, Logits
from volsam.inference.slices import SliceMask, SliceModel, SlicePrompts, SliceStyle
from volsam.inference.volumes import dice_of_iou
from volsam.models.mask_head import Candidates
from volsam.models.prompt_encoder import PromptBatch
from volsam.models.segmenter import SegmenterConfig, enlarge
from volsam.volume import Volume

TAKES: frozenset[Kind] = frozenset({"box", "flat box"})

_STYLE = SliceStyle(keep_aspect=False, mean=(0.0,) * 3, spread=(1.0,) * 3, takes=TAKES, feeds_mask=False, several=False)


class StackNetwork(Protocol):
    """What is needed of a network for stacks of slices."""

    config: SegmenterConfig

    def encode(self, stacks: Float[Tensor, "b 3 d h w"]) -> Float[Tensor, "bd c 1 y x"]:
        """The embedding of every slice."""

    def decode(
        self, embedding: Float[Tensor, "n c 1 y x"], prompts: PromptBatch | None = None
    ) -> tuple[Float[Tensor, "n k 1 h w"], Float[Tensor, "n k"]]:
        """Logits of background and object, and their predicted quality."""


class BoxStackModel(SliceModel):
    """A network for stacks of slices and a box, behind the interface of a model of slices.

    network: in evaluation mode, two classes; slices: of a stack, an odd number; limits: to which a volume's intensities
    are clipped, before every stack is brought to 0..1 by its own darkest and brightest pixel.
    """

    def __init__(self, network: StackNetwork, name: str, slices: int, limits: Limits, device: str = "cpu") -> None:
        self.name = name
        self.reach = slices // 2
        self.limits = limits
        self.device = torch.device(device)
        self.stacks = network
        self.edge = network.config.encoder.image[2]
        self.style = _STYLE
        self.takes = _STYLE.takes

    def prepare(self, volume: Volume) -> Callable[[NDArray[np.generic]], NDArray[np.float32]]:
        """Clip intensities to the limits of this volume."""
        low, high = self.limits(volume)
        return lambda values: np.asarray(values, np.float32).clip(low, high)

    @torch.inference_mode()
    def encode_slice(self, pixels: NDArray[np.float32]) -> Float[Tensor, "1 c 1 y x"]:  # type: ignore[override]
        """The embedding of the slice in the middle of a stack (d h w) of clipped intensities."""
        low, high = float(pixels.min()), float(pixels.max())
        stack = torch.from_numpy(np.ascontiguousarray(pixels))[None, None].to(self.device)
        sized = (enlarge(stack, (len(pixels), self.edge, self.edge)) - low) / ((high - low) or 1.0)
        return self.stacks.encode(repeat(sized, "1 1 d h w -> 1 three d h w", three=3))[self.reach : self.reach + 1]

    @torch.inference_mode()
    def decode_slice(  # type: ignore[override]
        self,
        encoded: Float[Tensor, "1 c 1 y x"],
        prompts: SlicePrompts,
        shape: tuple[int, int],
        previous: Logits | None = None,
        candidates: Candidates | None = None,
    ) -> SliceMask:
        """The object in the box of a slice of `shape`."""
        assert prompts.box is not None
        box = self._placed(prompts.box, shape, (self.edge, self.edge))[None, None]
        scores, quality = self.stacks.decode(encoded, PromptBatch(boxes=box))
        logits = rearrange(scores[:, 1] - scores[:, 0], "1 1 h w -> 1 1 1 h w")
        sized = enlarge(logits, (1, *shape))[0, 0, 0].float().cpu().numpy()
        return SliceMask(sized, logits[0, 0, 0].float().cpu().numpy(), dice_of_iou(float(quality[0, 1])))
