"""Patches of a volume by way of its slices: enlarge, embed every slice as SAM does, merge slices; in one step.

Gong et al. 2024, 3DSAM-adapter: a crop is enlarged linearly, every slice of it becomes patches by SAM's own embedding,
and a depthwise convolution over depth makes one token of so many slices. Each of the three is linear, so the whole is
one convolution of the crop: at their sizes 6³ voxels with stride 4 instead of 512 slices of 512² in three colours.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.errors import BadInput
from volsam.models.encoder import PatchEmbedding
from volsam.models.shapes import Shape, Tokens


class MergedSlices(nn.Module):
    """A crop (b 1 d h w), or its slices enlarged and in colour (b 3 D H W), to tokens with a code of their depth.

    patch: slices, rows and columns of the enlarged crop that become one token; factor: how many times it is enlarged
    along each axis; depth: tokens along depth, each with a learned code.
    """

    def __init__(self, width: int, patch: Shape, factor: Shape, depth: int) -> None:
        super().__init__()
        if any(fine % times for fine, times in zip(patch, factor, strict=True)):
            raise BadInput(
                f"a token of {patch} enlarged voxels must hold whole voxels of the crop, which is enlarged {factor} "
                "times: choose factors that divide the patch"
            )
        self.patch = patch
        self.factor = factor
        self.plane = PatchEmbedding(3, width, (1, *patch[1:]), (1, *patch[1:]))
        self.merge = nn.Parameter(torch.full((width, patch[0]), 1 / patch[0]))
        self.merge_bias = nn.Parameter(torch.zeros(width))
        self.depth = nn.Parameter(torch.ones(depth, width))

    def forward(self, image: Float[Tensor, "b channels D H W"]) -> Tokens:
        """Tokens of a crop if there is one channel, of enlarged slices if there are three."""
        tokens = self.of_crop(image) if image.shape[1] == 1 else self.of_slices(image)
        return tokens + rearrange(self.depth, "d c -> d 1 1 c")

    def of_crop(self, crop: Float[Tensor, "b 1 D H W"]) -> Tokens:
        """All in one: a convolution of overlapping patches, as one matrix product. No code of depth yet."""
        kernel, bias = self.folded()
        # Interpolation looks one voxel past a token's own and repeats the last one at the borders.
        patches = F.pad(crop, (1,) * 6, mode="replicate")
        for axis, (fine, times) in enumerate(zip(self.patch, self.factor, strict=True)):
            patches = patches.unfold(axis + 2, fine // times + 2, fine // times)
        patches = rearrange(patches, "b 1 d h w p q r -> b d h w (p q r)")
        return F.linear(patches, rearrange(kernel, "c p q r -> c (p q r)"), bias)

    def of_slices(self, slices: Float[Tensor, "b 3 D H W"]) -> Tokens:
        """Step by step, for slices that come enlarged. No code of depth yet."""
        planes = rearrange(self.plane(slices), "b (d s) h w c -> b d s h w c", s=self.patch[0])
        return einsum(planes, self.merge, "b d s h w c, c s -> b d h w c") + self.merge_bias

    def folded(self) -> tuple[Float[Tensor, "c p q r"], Float[Tensor, " c"]]:
        """Kernel and bias of the one convolution, which also sees one voxel around a token. Made at every call, for it
        follows from weights that may be learning, and costs next to nothing.
        """
        of_slices, of_rows, of_columns = (
            enlarging(fine, times, self.merge) for fine, times in zip(self.patch, self.factor, strict=True)
        )
        plane = reduce(self.plane.weight, "c rgb 1 y x -> c y x", "sum")  # the three colours of a scan are one
        plane = einsum(plane, of_rows, of_columns, "c y x, y q, x r -> c q r")
        kernel = einsum(self.merge @ of_slices, plane, "c p, c q r -> c p q r")
        assert self.plane.bias is not None
        return kernel, self.plane.bias * self.merge.sum(dim=1) + self.merge_bias


def enlarging(fine: int, factor: int, like: Tensor) -> Float[Tensor, "fine coarse"]:
    """Linear interpolation (voxel edges aligned) as a matrix: from the voxels of a token and one more at each end, to
    its `fine` enlarged voxels; on the device of `like` and of its type.
    """
    coarse = fine // factor + 2
    whole = F.interpolate(
        torch.eye(coarse, device=like.device, dtype=like.dtype)[None], size=coarse * factor, mode="linear"
    )[0].T
    return whole[factor : factor + fine]
