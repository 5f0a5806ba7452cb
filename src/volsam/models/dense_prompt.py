"""The network of volsam-s: encode once, then each click enters late, as dense maps at four scales.

The encoder is a convolutional pyramid with two transformer blocks where voxels are few. The decoder goes up the pyramid
with one or two residual convolutions a scale; its finest stage is made of pointwise layers only, so that it can be
computed in any part of the volume alone and give the same numbers there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models.features import Features, Prediction
from volsam.models.prompt_maps import (
    FAR,
    Prompts,
    difference,
    likeness,
    mask_likeness,
    nearness,
    path_cost,
)

# Prompt maps at each scale: see `DensePromptNet.maps_at`.
MAPS = 16
FINE_MAPS = 8
# The raw output is multiplied by this, so that masks are decided in the first minutes of a training.
GAIN = 4.0

Part = tuple[slice, slice, slice]


class Convolution(nn.Conv3d):
    """A convolution that takes oneDNN's way on a CPU, whatever its size.

    torch leaves small inputs of batch one to a plain loop that takes up to ten times as long; it asks for a batch, or
    for many channels and voxels, before it calls oneDNN. Our regions are small and come one at a time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(b c d h w) -> (b e d h w)."""
        alone = len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32
        if not alone or torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        return torch.ops.aten.mkldnn_convolution(
            x, self.weight, self.bias, list(self.padding), list(self.stride), list(self.dilation), self.groups
        )


class Residual(nn.Module):
    """x + convolutions of GELU(norm(x))."""

    def __init__(self, channels: int, layers: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(max(1, channels // 8), channels) for _ in range(layers))
        self.convs = nn.ModuleList(Convolution(channels, channels, 3, padding=1) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """(b c d h w) -> the same shape."""
        inner = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            inner = conv(F.gelu(norm(inner)))
        return x + inner


class TokenBlock(nn.Module):
    """A pre-norm transformer block on all voxels of a small map; a depthwise convolution tells positions apart."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.position = Convolution(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(b c d h w) -> the same shape."""
        x = x + self.position(x)
        d, h, w = x.shape[-3:]
        tokens = rearrange(x, "b c d h w -> b (d h w) c")
        q, k, v = rearrange(self.qkv(self.norm1(tokens)), "b n (three m c) -> three b m n c", three=3, m=self.heads)
        mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "b m n c -> b n (m c)")
        tokens = tokens + self.out(mixed)
        tokens = tokens + self.mlp(self.norm2(tokens))
        return rearrange(tokens, "b (d h w) c -> b c d h w", d=d, h=h, w=w)


class Pointwise(nn.Module):
    """A linear map of the channels of each voxel; a matrix product, which beats a 1³ convolution by far on a CPU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(b inputs d h w) -> (b outputs d h w)."""
        flat = torch.baddbmm(self.bias[None, :, None], self.weight.expand(len(x), -1, -1), x.flatten(2))
        return flat.unflatten(2, x.shape[2:])


@dataclass(frozen=True)
class Draft:
    """A mask at half size and what its refinement needs.

    half: (b 1 d h w) logits at half size; state: (b c d h w) decoder features there; quality: (b 1), expected Dice with
    the whole object; evidence: (b c), what the quality was judged by.
    """

    half: Tensor
    state: Tensor
    quality: Tensor
    evidence: Tensor


class DensePromptNet(nn.Module):
    """Image (b 3 d h w), sides multiples of 16 -> Features; Features and Prompts -> Prediction.

    The image's channels are the three that `data.preprocess.normalise` makes: z-scored intensity, equalised intensity,
    and 1 inside the scan. Why prompts enter late: docs/concepts/default-model.md.
    """

    def __init__(
        self,
        widths: tuple[int, int, int, int, int] = (8, 16, 32, 96, 192),
        decoder: tuple[int, int, int, int] = (64, 32, 16, 8),
        key: int = 16,
    ) -> None:
        super().__init__()
        w0, w1, w2, w3, w4 = widths
        d3, d2, d1, d0 = decoder
        self.stem = Convolution(3, w0, 3, padding=1)
        self.down1 = nn.Sequential(Convolution(w0, w1, 2, stride=2), Residual(w1, 1))
        self.down2 = nn.Sequential(Convolution(w1, w2, 2, stride=2), Residual(w2))
        self.down3 = nn.Sequential(Convolution(w2, w3, 2, stride=2), Residual(w3))
        self.down4 = nn.Sequential(Convolution(w3, w4, 2, stride=2), TokenBlock(w4, 6), TokenBlock(w4, 6))
        self.fuse = Pointwise(w4, w3)
        self.fused = Residual(w3)
        self.keys = nn.ModuleList(Pointwise(width, key) for width in (w1, w2, w3))

        self.skips = nn.ModuleList(Pointwise(a, b) for a, b in ((w0, d0), (w1, d1), (w2, d2), (w3, d3)))
        self.prompts = nn.ModuleList(
            Pointwise(maps, width) for maps, width in ((FINE_MAPS, d0), (MAPS, d1), (MAPS, d2), (MAPS, d3))
        )
        self.blocks = nn.ModuleList([nn.Identity(), Residual(d1, 1), Residual(d2), Residual(d3)])
        self.narrow = nn.ModuleList([Pointwise(d1, d0), Pointwise(d2, d1), Pointwise(d3, d2)])
        self.coarse = Pointwise(d1, 1)
        last = Pointwise(d0, 1)
        self.fine = nn.Sequential(nn.GELU(), Pointwise(d0, d0), nn.GELU(), last)
        self.quality = nn.Sequential(nn.Linear(2 * d3 + 2 * d2 + 6, 64), nn.GELU(), nn.Linear(64, 1))
        # Start from "nothing is object", undecided: confident wrong masks cost the first hundreds of steps.
        nn.init.normal_(self.coarse.weight, std=0.02)
        nn.init.constant_(self.coarse.bias, -0.4)
        nn.init.normal_(last.weight, std=0.02)

    # --- the costly step -----------------------------------------------------------------------------------------

    def encode(self, image: Tensor) -> Features:
        """(b 3 d h w) -> Features with taps (full, 1/2, 1/4, 1/8 of the size, then unit keys at 1/2, 1/4, 1/8)."""
        f0 = F.gelu(self.stem(image))
        f1 = self.down1(f0)
        f2 = self.down2(f1)
        f3 = self.down3(f2)
        deep = self.down4(f3)
        f3 = self.fused(f3 + grow(self.fuse(deep)))
        keys = tuple(F.normalize(make(tap), dim=1) for make, tap in zip(self.keys, (f1, f2, f3), strict=True))
        return Features(deep, (f0, f1, f2, f3, *keys), image)

    # --- a click -------------------------------------------------------------------------------------------------

    def decode(self, features: Features, prompts: Prompts) -> Prediction:
        """One mask for each item: logits (b 1 d h w), quality (b 1) as expected Dice, low_res = logits at 1/2."""
        draft = self.draft(features, prompts)
        d, h, w = features.image.shape[-3:]
        logits = self.refine(features, prompts, draft, (slice(0, d), slice(0, h), slice(0, w)))
        return Prediction(logits, draft.quality, draft.half)

    def draft(self, features: Features, prompts: Prompts) -> Draft:
        """The mask at half size; nearly all of a click's work."""
        _, f1, f2, f3, *keys = features.taps
        shared = self._shared_maps(features.image, prompts)
        x3 = self.skips[3](f3) + self.prompts[3](self._maps_at(8, keys[2], shared, prompts))
        x3 = self.blocks[3](x3)
        x2 = grow(self.narrow[2](x3)) + self.skips[2](f2) + self.prompts[2](self._maps_at(4, keys[1], shared, prompts))
        x2 = self.blocks[2](x2)
        x1 = grow(self.narrow[1](x2)) + self.skips[1](f1) + self.prompts[1](self._maps_at(2, keys[0], shared, prompts))
        x1 = F.gelu(self.blocks[1](x1))
        half = GAIN * self.coarse(x1)
        evidence = self._evidence(x3, x2, half, prompts)
        return Draft(half, self.narrow[0](x1), self.quality(evidence).sigmoid(), evidence)

    def refine(
        self, features: Features, prompts: Prompts, draft: Draft, part: Part, skip: Tensor | None = None
    ) -> Tensor:
        """Logits (b 1 d h w) of a part of the input at full size; `part` has even bounds.

        Every layer here is pointwise, so a part comes out as it would within the whole. `skip` is `fine_skip` of the
        same part, for a caller that refines it many times.
        """
        image = features.image[(..., *part)]
        state = grow_part(draft.state, part) + (self.fine_skip(features, part) if skip is None else skip)
        state = state + self.prompts[0](self._fine_maps(features.image, image, prompts, part))
        return grow_part(draft.half, part) + GAIN * self.fine(state)

    def fine_skip(self, features: Features, part: Part) -> Tensor:
        """What the full-size features contribute in a part, whatever the prompts."""
        return self.skips[0](features.taps[0][(..., *part)])

    def _maps_at(self, step: int, keys: Tensor, shared: Tensor, prompts: Prompts) -> Tensor:
        """(b MAPS d h w) at 1/step of the input's size."""
        size = (keys.shape[-3], keys.shape[-2], keys.shape[-1])
        points, labels = prompts.points, prompts.labels
        coarser = F.avg_pool3d(shared, step // 2) if step > 2 else shared
        mask = coarser[:, 5:6]
        known = (mask.amax(dim=(1, 2, 3, 4), keepdim=True) > 0).to(mask.dtype)
        refused = (labels == 0).any(dim=1).to(mask.dtype)[:, None, None, None, None]
        return torch.cat(
            [
                *(nearness(points, labels, sign, size, step, 3.0 / step + 0.3) for sign in (1, 0)),
                *(nearness(points, labels, sign, size, step, 12.0 / step) for sign in (1, 0)),
                *(likeness(keys, points, labels, sign, step) for sign in (1, 0)),
                mask_likeness(keys, mask) * known,
                coarser,
                known.expand_as(mask),
                refused.expand_as(mask),
            ],
            dim=1,
        )

    def _shared_maps(self, image: Tensor, prompts: Prompts) -> Tensor:
        """(b 6 d h w) at half size: intensity difference and path cost of both signs, box, previous mask."""
        half = F.avg_pool3d(image[:, :2], 2)
        size = (half.shape[-3], half.shape[-2], half.shape[-1])
        maps = []
        for sign in (1, 0):
            # Without clicks of a sign nothing is near or like them; worth asking only where asking does not wait.
            if prompts.labels.device.type == "cpu" and not (prompts.labels == sign).any():
                maps += [
                    torch.full_like(half[:, :1], math.exp(-2 * FAR)).expand(len(prompts.points), -1, -1, -1, -1)
                ] * 2
                continue
            gap = difference(half, half, prompts.points, prompts.labels, sign, 2)
            seeds = (nearness(prompts.points, prompts.labels, sign, size, 2, 1.0) > 0.6).to(gap.dtype)
            maps += [torch.exp(-2 * gap), torch.exp(-2 * path_cost(gap, seeds))]
        empty = torch.zeros_like(maps[0])
        maps.append(F.avg_pool3d(prompts.box, 2) if prompts.box is not None else empty)
        maps.append(prompts.previous.sigmoid() if prompts.previous is not None else empty)
        return torch.cat(maps, dim=1)

    def _fine_maps(self, whole: Tensor, image: Tensor, prompts: Prompts, part: Part) -> Tensor:
        """(b FINE_MAPS d h w) at full size, in a part of the input."""
        size = (image.shape[-3], image.shape[-2], image.shape[-1])
        points, labels = prompts.points, prompts.labels
        moved = points - torch.tensor([cut.start for cut in part], dtype=points.dtype, device=points.device)
        empty = torch.zeros_like(image[:, :1])
        half = F.avg_pool3d(whole[:, :2], 2)
        return torch.cat(
            [
                *(nearness(moved, labels, sign, size, 1, 2.0) for sign in (1, 0)),
                *(torch.exp(-2 * difference(image[:, :2], half, points, labels, sign, 2)) for sign in (1, 0)),
                prompts.box[(..., *part)] if prompts.box is not None else empty,
                grow_part(prompts.previous.sigmoid(), part) if prompts.previous is not None else empty,
                image[:, :2],
            ],
            dim=1,
        )

    def _evidence(self, x3: Tensor, x2: Tensor, half: Tensor, prompts: Prompts) -> Tensor:
        """(b c): what the quality head sees: features inside the mask and everywhere, and facts about the mask."""
        # The head judges; it must not bend the mask to please itself.
        x3, x2, half = x3.detach(), x2.detach(), half.detach()
        mask = half.sigmoid()
        pooled = []
        for maps, step in ((x3, 4), (x2, 2)):
            weights = F.avg_pool3d(mask, step)
            inside = (maps * weights).sum(dim=(2, 3, 4)) / (weights.sum(dim=(2, 3, 4)) + 1e-3)
            pooled += [inside, maps.mean(dim=(2, 3, 4))]
        hard = (mask > 0.5).to(mask.dtype)
        border = torch.ones_like(hard)
        border[..., 1:-1, 1:-1, 1:-1] = 0
        voxels = hard.sum(dim=(1, 2, 3, 4)) + 1
        clicks = (prompts.labels >= 0).sum(dim=1).to(mask.dtype)
        facts = [
            voxels.log() / 10,
            (hard * border).sum(dim=(1, 2, 3, 4)) / voxels,
            (hard * border).sum(dim=(1, 2, 3, 4)) / border.sum(dim=(1, 2, 3, 4)) * 10,
            (mask * hard).sum(dim=(1, 2, 3, 4)) / voxels,
            4 * (mask * (1 - mask)).sum(dim=(1, 2, 3, 4)) / voxels,
            clicks / 10,
        ]
        return torch.cat([*pooled, torch.stack(facts, dim=1)], dim=1)


def grow(x: Tensor) -> Tensor:
    """Twice the size, trilinear."""
    return F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)


def grow_part(x: Tensor, part: Part) -> Tensor:
    """The part `part` (even bounds) of `grow(x)`, from the part of x that it depends on."""
    around = [(max(cut.start // 2 - 1, 0), cut.stop // 2 + 1) for cut in part]
    grown = grow(x[..., slice(*around[0]), slice(*around[1]), slice(*around[2])])
    inner = [slice(cut.start - 2 * low, cut.stop - 2 * low) for cut, (low, _) in zip(part, around, strict=True)]
    return grown[..., inner[0], inner[1], inner[2]]
