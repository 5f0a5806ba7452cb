"""MA-SAM (Chen et al. 2024): SAM over stacks of slices, FacT on query and value, two 3D adapters in every block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.evaluation.published.attention import in_windows
from volsam.evaluation.published.decoder import MaskDecoder
from volsam.evaluation.published.encoder import Block, Encoder
from volsam.evaluation.published.prompts import PromptEncoder


class FactoredProjection(nn.Module):
    """`qkv` with a low-rank change of query and value: U and V shared by all blocks, a core of its own for each."""

    def __init__(self, qkv: nn.Module, rank: int, scale: float, shared: tuple[nn.Linear, nn.Linear]) -> None:
        super().__init__()
        self.qkv = qkv
        self.scale = scale
        self.q_FacTs = nn.Linear(rank, rank, bias=False)
        self.v_FacTs = nn.Linear(rank, rank, bias=False)
        self._shared = shared  # a tuple, so that every block does not own them

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (… c) to (… 3·c)."""
        u, v = self._shared
        qkv, width = self.qkv(x), x.shape[-1]
        qkv[..., :width] += v(self.q_FacTs(u(x))) * self.scale
        qkv[..., -width:] += v(self.v_FacTs(u(x))) * self.scale
        return qkv


class AdaptedSliceBlock(nn.Module):
    """SAM's block with an adapter before attention and one before the MLP."""

    def __init__(self, block: Block, width: int, channels: int, slices: int) -> None:
        super().__init__()
        self.slices, self.window = slices, block.window
        self.Block = Renamed(block)
        for suffix in ("", "_2"):
            setattr(self.Block, f"adapter_linear_down{suffix}", nn.Linear(width, channels, bias=False))
            setattr(self.Block, f"adapter_linear_up{suffix}", nn.Linear(channels, width, bias=False))
            setattr(self.Block, f"adapter_conv{suffix}", nn.Conv3d(channels, channels, (3, 1, 1), padding="same"))
            setattr(self.Block, f"adapter_norm{suffix}", nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        """((b slices) h w c), same shape."""
        x = self._adapted(x, "")
        normed = self.Block.norm1(x)
        x = x + (in_windows(self.Block.attn, normed, self.window) if self.window else self.Block.attn(normed))
        x = self._adapted(x, "_2")
        return x + self.Block.mlp(self.Block.norm2(x))

    def _adapted(self, x: Tensor, suffix: str) -> Tensor:
        down, up, conv, norm = (
            getattr(self.Block, f"adapter_{part}{suffix}") for part in ("linear_down", "linear_up", "conv", "norm")
        )
        change = down(norm(x)).unflatten(0, (-1, self.slices)).permute(0, 4, 1, 2, 3)
        change = F.gelu(conv(change).permute(0, 2, 3, 4, 1).flatten(0, 1))
        return x + up(change)


class Wrapped(nn.Module):
    """An attention one name deeper, as the checkpoint has it."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.Attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """What the attention gives."""
        return self.Attention(x)


class Renamed(nn.Module):
    """The parts of a block of SAM under the names of MA-SAM's checkpoint."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, Wrapped(block.attn), block.norm2, block.mlp


class SliceEncoder(nn.Module):
    """SAM's encoder with both changes, over a batch of slices."""

    def __init__(self, *, rank: int, scale: float, slices: int, channels: int, **sizes: Any) -> None:
        super().__init__()
        encoder = Encoder(2, **sizes)
        width = encoder.pos_embed.shape[-1]
        self.FacTu = nn.Linear(width, rank, bias=False)
        self.FacTv = nn.Linear(rank, width, bias=False)
        blocks = []
        for block in encoder.blocks:
            assert isinstance(block, Block)
            block.attn.qkv = FactoredProjection(block.attn.qkv, rank, scale, (self.FacTu, self.FacTv))
            blocks.append(AdaptedSliceBlock(block, width, channels, slices))
        encoder.blocks = nn.ModuleList(blocks)
        self.ImageEncoderViT = encoder

    def forward(self, image: Tensor) -> Tensor:
        """((b slices) 3 h w) to embeddings ((b slices) c h w)."""
        return self.ImageEncoderViT(image)


class Parts(nn.Module):
    """Encoder, prompt encoder and decoder, under `sam` in a checkpoint."""

    def __init__(self, image_encoder: nn.Module, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder


class MaSam(nn.Module):
    """Stacks of slices to the logits of every class for each slice.

    image: edge of a slice in pixels; classes: background included; slices: in a stack.
    """

    def __init__(
        self,
        *,
        image: int = 512,
        classes: int = 13,
        slices: int = 5,
        rank: int = 32,
        scale: float = 1.0,
        channels: int = 384,
        out: int = 256,
        decoder: dict[str, Any] | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__()
        grid = image // 16
        encoder = SliceEncoder(rank=rank, scale=scale, slices=slices, channels=channels, grid=grid, out=out, **sizes)
        self.slices = slices
        self.FacTu, self.FacTv = encoder.FacTu, encoder.FacTv  # stored twice in a checkpoint
        self.sam = Parts(
            encoder,
            PromptEncoder(2, image=image, grid=grid, width=out),
            MaskDecoder(
                2,
                width=out,
                masks=classes,
                upscale=(out // 4, out // 8, out // 16, out // 32),
                **(decoder or {}),
            ),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(b slices 3 h w) to logits ((b slices) classes h w) and foretold qualities."""
        embeddings = self.sam.image_encoder(image.flatten(0, 1))
        sparse, dense = self.sam.prompt_encoder()
        return self.sam.mask_decoder(embeddings, self.sam.prompt_encoder.dense_code(), sparse, dense)


def segment_volume(predict: Callable[[Tensor], Tensor], volume: Tensor, slices: int = 5) -> Tensor:
    """Classes (d h w) of a volume (d 3 h w), as the release tests: a stack around every slice, edges repeated; each
    slice is encoded once in every stack it is in, and its probabilities are added up.

    predict: a stack (slices 3 h w) to the logits (slices classes h w) of its slices.
    """
    count, reach = len(volume), slices // 2
    total: Tensor | None = None
    for middle in range(count):
        around = range(middle - reach, middle + reach + 1)
        probability = predict(volume[[min(max(index, 0), count - 1) for index in around]]).softmax(dim=1)
        if total is None:
            total = torch.zeros(count, *probability.shape[1:], device=probability.device)
        for place, index in enumerate(around):
            if 0 <= index < count:
                total[index] += probability[place]
    assert total is not None
    return total.argmax(dim=1)
