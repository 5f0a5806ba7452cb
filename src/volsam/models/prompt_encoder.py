"""What the user says, as the mask head reads it: points and boxes become tokens, a mask becomes an image.

Positions are voxel indices along depth, height and width of the image that was encoded; index 0 is the centre of the
first voxel. Every position passes through one random Fourier code (Tancik et al. 2020), drawn once and stored with the
weights. See Kirillov et al. 2023, appendix A.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.models.encoder import ChannelNorm
from volsam.models.shapes import Shape

NOT_A_POINT, NEGATIVE, POSITIVE = -1, 0, 1
"""Labels of points. A list of points of unequal length is filled up with NOT_A_POINT."""

_LOW_CORNER = 2
"""Label of a box's low corner; the high corner has the next."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts for a batch, in voxels of the encoded image; all parts may be absent.

    points: (b n 3) voxel indices along depth, height and width, with labels (b n) of `POSITIVE`, `NEGATIVE` or
    `NOT_A_POINT`; boxes: (b m 2 3) low and high corner; mask: (b 1 d h w) logits at the size of `Prediction.low_res`,
    such as those of the previous prediction. absent: (b n) points that stand for nothing at all and change nothing,
    filling up a list to a length that was asked for; their labels are NOT_A_POINT, which alone is something said.
    """

    points: Float[Tensor, "b n 3"] | None = None
    labels: Int[Tensor, "b n"] | None = None
    boxes: Float[Tensor, "b m 2 3"] | None = None
    mask: Float[Tensor, "b 1 d h w"] | None = None
    absent: Bool[Tensor, "b n"] | None = None

    @property
    def batch(self) -> int:
        """Entries of the batch; 1 where nothing is said, which fits any batch."""
        return max((part.shape[0] for part in (self.points, self.boxes, self.mask) if part is not None), default=1)


class PromptConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a prompt encoder."""

    image: Shape
    """Voxels of the encoded image."""
    grid: Shape
    """Tokens of its embedding."""
    width: PositiveInt
    """Channels of a token; those of the embedding."""
    mask_width: PositiveInt = 16
    """Channels of a mask prompt before its last layer; a quarter of it after the first."""
    mask_stride: Shape = (2, 2, 2)
    """Step of each of the two convolutions that bring a mask to the grid: (1, 2, 2) for slices."""
    boxes: bool = True
    """Whether box corners have embeddings; SAM-Med3D has none."""
    waves: tuple[Literal["sin", "cos"], ...] = ("sin", "cos")
    """Parts of the position code. SAM-Med3D's weights need ("sin", "cos", "sin")."""
    dense_axes: Shape = (0, 1, 2)
    """Which coordinate a token of the grid gives first, second and third to the code. SAM-Med3D's weights were trained
    with (1, 0, 2): the position code of the image has its first two axes swapped, that of the clicks has not."""


class PromptEncoder(nn.Module):
    """Points and boxes to tokens (b t c), mask to an image (b c d h w) that is added to the embedding."""

    def __init__(self, config: PromptConfig) -> None:
        super().__init__()
        self.config = config
        width, inner = config.width, config.mask_width
        self.code = FourierCode(width, config.grid, config.waves, config.dense_axes)
        # Rows: not a point, negative, positive, and with boxes their low and high corner.
        self.labels = nn.Embedding(5 if config.boxes else 3, width)
        self.no_mask = nn.Parameter(torch.randn(width))
        self.mask = nn.Sequential(
            nn.Conv3d(1, inner // 4, config.mask_stride, config.mask_stride),
            ChannelNorm(inner // 4),
            nn.GELU(),
            nn.Conv3d(inner // 4, inner, config.mask_stride, config.mask_stride),
            ChannelNorm(inner),
            nn.GELU(),
            nn.Conv3d(inner, width, 1),
        )

    def forward(self, prompts: PromptBatch) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "_ c d h w"]]:
        """Tokens of the points and boxes, and the image (b c d h w), or (1 c 1 1 1) without a mask prompt."""
        tokens = [self.no_mask.new_zeros(prompts.batch, 0, self.config.width)]
        if prompts.points is not None:
            tokens.append(self._points(prompts.points, prompts.labels, fill=prompts.boxes is None))
        if prompts.boxes is not None:
            tokens.append(self._boxes(prompts.boxes))
        return torch.cat(tokens, dim=1), self._dense(prompts.mask)

    def absent(self, prompts: PromptBatch) -> Bool[Tensor, "b t"] | None:
        """Which of the tokens stand for nothing; None if all stand for something."""
        if prompts.absent is None:
            return None
        behind = 1 if prompts.boxes is None else 2 * prompts.boxes.shape[1]
        return F.pad(prompts.absent, (0, behind))

    def _points(
        self, points: Float[Tensor, "b n 3"], labels: Int[Tensor, "b n"] | None, fill: bool
    ) -> Float[Tensor, "b t c"]:
        if labels is None:
            raise BadInput("points came without labels; give one label a point: 1 inside the object, 0 outside")
        if fill:  # SAM ends a list of points with one that is none, unless the corners of a box follow
            points = torch.cat([points, points.new_zeros(points.shape[0], 1, 3)], dim=1)
            labels = torch.cat([labels, labels.new_full((labels.shape[0], 1), NOT_A_POINT)], dim=1)
        said = rearrange(labels != NOT_A_POINT, "b n -> b n 1")
        # Embedding rows start with NOT_A_POINT. `where` rather than a boolean index: no wait for the device.
        return torch.where(said, self._at(points), 0.0) + self.labels(labels + 1)

    def _boxes(self, boxes: Float[Tensor, "b m 2 3"]) -> Float[Tensor, "b t c"]:
        if not self.config.boxes:
            raise BadInput("this model takes no boxes, and one came; use clicks, or a model with boxes")
        corners = self._at(boxes) + self.labels.weight[_LOW_CORNER + 1 :]
        return rearrange(corners, "b m corner c -> b (m corner) c")

    def _at(self, voxels: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        axes = zip(voxels.unbind(-1), self.config.image, strict=True)
        return self.code(torch.stack([(index + 0.5) / size for index, size in axes], dim=-1))

    def _dense(self, mask: Float[Tensor, "b 1 D H W"] | None) -> Float[Tensor, "_ c d h w"]:
        return rearrange(self.no_mask, "c -> 1 c 1 1 1") if mask is None else self.mask(mask)


class FourierCode(nn.Module):
    """Random Fourier features of a position: waves of random direction and frequency (`matrix`, not trained)."""

    matrix: Float[Tensor, "3 f"]
    of_grid: Float[Tensor, "d h w c"]

    def __init__(self, width: int, grid: Shape, waves: tuple[str, ...], dense_axes: Shape) -> None:
        super().__init__()
        self.waves = waves
        self.grid = grid
        self.dense_axes = dense_axes
        self.register_buffer("matrix", torch.randn(3, width // len(waves)))
        # The code of the whole grid follows from the matrix, so it is no weight, but it is kept: every click needs it.
        self.register_buffer("of_grid", self._of_grid(), persistent=False)
        self.register_load_state_dict_post_hook(FourierCode._refresh)

    def forward(self, position: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b c"]:
        """The code of positions within the image, 0 to 1 along each axis."""
        # No matrix product: mixed precision would round that, and waves forgive no rounding.
        along = (2 * position - 1).unsqueeze(-1) * self.matrix
        angles = 2 * math.pi * (along[..., 0, :] + along[..., 1, :] + along[..., 2, :])
        return torch.cat([getattr(angles, wave)() for wave in self.waves], dim=-1)

    def _of_grid(self) -> Float[Tensor, "d h w c"]:
        m = self.matrix
        centres = [(torch.arange(size, device=m.device, dtype=m.dtype) + 0.5) / size for size in self.grid]
        position = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1)
        return self(position[..., list(self.dense_axes)])

    def _refresh(self, _incompatible: Any) -> None:
        with torch.no_grad():
            self.of_grid = self._of_grid()
