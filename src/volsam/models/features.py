"""The two values that pass between a network and its callers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What the costly step gives, kept by whoever asked for it.

    embedding: (b c d h w), the deepest features; taps: further maps or token grids a decoder wants, finest first;
    image: (b c d h w), the encoder's input.
    """

    embedding: Tensor
    taps: tuple[Tensor, ...]
    image: Tensor

    def repeat(self, times: int) -> Features:
        """Each item of the batch `times` times in a row, for several objects in one image."""
        return Features(
            self.embedding.repeat_interleave(times, 0),
            tuple(tap.repeat_interleave(times, 0) for tap in self.taps),
            self.image.repeat_interleave(times, 0),
        )


@dataclass(frozen=True)
class Prediction:
    """What a decoder says: n masks for each item.

    logits: (b n D H W) at the input's size; quality: (b n), expected overlap with the object;
    low_res: (b n d h w), logits to feed back as the next mask prompt.
    """

    logits: Tensor
    quality: Tensor
    low_res: Tensor
