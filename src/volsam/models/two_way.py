"""The two-way transformer: prompt tokens and image tokens read each other in turn (Kirillov et al. 2023, appendix A).

Works on lists of tokens, so it knows nothing of ranks.
"""

from typing import TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor, nn

from volsam.models.encoder import MLP
from volsam.models.token_attention import Attention

PromptTokens: TypeAlias = Float[Tensor, "b t c"]
ImageTokens: TypeAlias = Float[Tensor, "b l c"]


class TwoWayTransformer(nn.Module):
    """Layers in which tokens and image read each other, then one last look of the tokens at the image."""

    def __init__(self, width: int, depth: int, heads: int, mlp_width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(width, heads, mlp_width, inner) for _ in range(depth))
        self.last_look = Attention(width, heads, inner)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        tokens: PromptTokens,
        image: ImageTokens,
        position: Float[Tensor, "#b l c"],
        absent: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[PromptTokens, ImageTokens]:
        """Tokens and image after reading each other.

        The tokens are their own position code: they are added again to every query and key, and so is `position` to
        those of the image, lest either forgets where it stands. Tokens that are `absent` are read by nobody: the others
        answer as if the list were shorter.
        """
        code = tokens
        for index, layer in enumerate(self.layers):
            tokens, image = layer(tokens, image, None if index == 0 else code, code, position, absent)
        tokens = tokens + self.last_look(tokens + code, image + position, image)
        return self.norm(tokens), image


class TwoWayLayer(nn.Module):
    """Tokens among themselves, tokens from image, MLP, image from tokens; a norm after each."""

    def __init__(self, width: int, heads: int, mlp_width: int, inner: int) -> None:
        super().__init__()
        self.among_tokens = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.tokens_from_image = Attention(width, heads, inner)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP((width, mlp_width, width))
        self.norm3 = nn.LayerNorm(width)
        self.image_from_tokens = Attention(width, heads, inner)
        self.norm4 = nn.LayerNorm(width)

    def forward(
        self,
        tokens: PromptTokens,
        image: ImageTokens,
        own_code: PromptTokens | None,
        code: PromptTokens,
        position: Float[Tensor, "#b l c"],
        absent: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[PromptTokens, ImageTokens]:
        """One round. `own_code` is None in the first layer, where tokens still equal their code: there self-attention
        replaces them instead of being added.
        """
        if own_code is None:
            tokens = self.norm1(self.among_tokens(tokens, tokens, tokens, absent))
        else:
            coded = tokens + own_code
            tokens = self.norm1(tokens + self.among_tokens(coded, coded, tokens, absent))
        placed = image + position
        tokens = self.norm2(tokens + self.tokens_from_image(tokens + code, placed, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.image_from_tokens(placed, tokens + code, tokens, absent))
        return tokens, image
