"""AutoSAM (Hu et al. 2023): a frozen SAM encoder and a small head without prompts, trained on very few scans.

Three heads are published: `vit`, SAM's mask decoder with three tokens a class in the place of prompts; `cnn`; `linear`.
Whoever trains one has one; a network may hold any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from volsam.adapters.freeze import train_only
from volsam.errors import BadInput
from volsam.inference.automatic import StackModel, StackStyle, everything, numbered
from volsam.models.dense_heads import ConvHead, ConvHeadConfig, LinearHead, LinearHeadConfig
from volsam.models.encoder import Encoder, EncoderConfig, Image
from volsam.models.mask_head import HeadConfig, MaskHead
from volsam.models.original_names import from_original
from volsam.models.prompt_encoder import FourierCode
from volsam.recipes.families.family import Described, Family, families
from volsam.recipes.families.fixture import Fixture
from volsam.recipes.families.sam import at_rank, encoder_config, head_config, image_of

Head = Literal["vit", "cnn", "linear"]

SLICE = StackStyle(1, everything)
"""One slice, brought to 0..1 by itself; SAM's mean and spread are not taken off, as published."""

ACDC_LABELS = ("background", "right ventricle", "myocardium", "left ventricle")

_PREFIXES: dict[Head, str] = {"vit": "mask_decoder.", "cnn": "cnn_head.", "linear": "linear_head."}


class AutoSam(nn.Module):
    """SAM's encoder for slices, and one or more heads that need no prompts.

    classes: background included; code: of positions, for the ViT head. Its matrix is drawn anew and
    not SAM's, since the released code stores it under another name than SAM's checkpoint.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        vit: HeadConfig | None = None,
        cnn: ConvHeadConfig | None = None,
        linear: LinearHeadConfig | None = None,
    ) -> None:
        super().__init__()
        counts = {head.classes for head in (vit, cnn, linear) if head is not None}
        if len(counts) != 1:
            raise BadInput(
                f"an AutoSAM needs a head, and all its heads the same classes; got heads of {sorted(counts)}"
            )
        self.classes = counts.pop()
        self.config = encoder
        self.encoder = Encoder(encoder)
        if vit is not None:
            self.code = FourierCode(vit.width, encoder.grid, ("sin", "cos"), (0, 1, 2))
            self.mask_head = MaskHead(vit)
        if cnn is not None:
            self.cnn_head = ConvHead(cnn)
        if linear is not None:
            self.linear_head = LinearHead(linear)

    @property
    def heads(self) -> tuple[Head, ...]:
        """Which heads there are, the paper's own first."""
        modules: dict[Head, str] = {"vit": "mask_head", "cnn": "cnn_head", "linear": "linear_head"}
        return tuple(head for head, module in modules.items() if hasattr(self, module))

    def forward(self, slices: Image, head: Head | None = None) -> Float[Tensor, "b classes 1 y x"]:
        """Logits of every class at the size of the head; class 0 is background."""
        return self.decode(self.encode(slices), head)

    def encode(self, slices: Image) -> Image:
        """The embedding: costly, and the same for every head, so it is worth keeping while the encoder is frozen."""
        return self.encoder(slices)[0]

    def decode(self, embedding: Image, head: Head | None = None) -> Float[Tensor, "b classes 1 y x"]:
        """An embedding to logits by one of the heads, by default the first there is."""
        head = head or self.heads[0]
        if head not in self.heads:
            raise BadInput(f"this network has the heads {', '.join(self.heads)}, not {head}: choose one of these")
        if head == "vit":
            return self.ask(embedding)[0]
        return self.cnn_head(embedding) if head == "cnn" else self.linear_head(embedding)

    def ask(self, embedding: Image) -> tuple[Float[Tensor, "b classes 1 y x"], Float[Tensor, "b classes"]]:
        """What the ViT head says, with its predicted quality, which the original never trained."""
        nothing = embedding.new_zeros(1, 0, embedding.shape[1])
        return self.mask_head(
            embedding, self.code.of_grid, nothing, embedding.new_zeros(1, embedding.shape[1], 1, 1, 1)
        )


def train_heads(network: AutoSam) -> None:
    """Make trainable what AutoSAM trains: the heads, but for the predicted quality, which nobody asks for."""
    train_only(network, r"mask_head(?!\.quality)|cnn_head|linear_head")


def automatic(
    network: nn.Module,
    name: str,
    device: str = "cpu",
    style: StackStyle = SLICE,
    labels: Sequence[str] | None = None,
) -> StackModel:
    """The network, by the first of its heads, behind `volsam predict`.

    labels: of every class, background first; those of ACDC, or numbers, where nothing is said.
    """
    assert isinstance(network, AutoSam)
    network.to(device).eval()
    named = ACDC_LABELS if network.classes == len(ACDC_LABELS) else numbered(network.classes)
    return StackModel(network, name, labels or named, style, network.config.image[2], device)


# --- one network from names and shapes -----------------------------------------------------------------------------


def build(described: Described) -> nn.Module:
    """The encoder and every head whose weights are there."""
    encoder = encoder_config(described, rank=2)
    has = {head: any(name.startswith(prefix) for name in described.shapes) for head, prefix in _PREFIXES.items()}
    return AutoSam(
        encoder,
        vit=vit_config(described, encoder.out) if has["vit"] else None,
        cnn=cnn_config(described) if has["cnn"] else None,
        linear=linear_config(described) if has["linear"] else None,
    )


def vit_config(described: Described, width: int) -> HeadConfig:
    """SAM's mask head with tokens for every class."""
    classes, _ = described.shape("mask_decoder.iou_token.weight", 2)
    return head_config(described, width, rank=2).model_copy(update={"classes": classes})


def cnn_config(described: Described) -> ConvHeadConfig:
    """Channels stage by stage; a stage with a third layer doubles the image."""
    first, width = described.shape("cnn_head.input_block.0.weight", 4)[:2]
    stages = range(described.count("cnn_head.blocks."))
    doubles = [f"cnn_head.blocks.{stage}.4.weight" in described.shapes for stage in stages]
    after = [
        described.shape(f"cnn_head.blocks.{stage}.{4 if twice else 2}.bias", 1)[0]
        for stage, twice in zip(stages, doubles, strict=True)
    ]
    return ConvHeadConfig(
        width=width,
        widths=(first, *after),
        doublings=sum(doubles),
        classes=described.shape("cnn_head.final.1.weight", 4)[0],
    )


def linear_config(described: Described) -> LinearHeadConfig:
    """Channels after each doubling."""
    upscale = [described.shape(f"linear_head.output_upscaling.{index}.weight", 4)[:2] for index in (0, 3)]
    return LinearHeadConfig(
        width=upscale[0][0],
        upscale=tuple(after for _, after in upscale),
        classes=described.shape("linear_head.final.2.weight", 4)[0],
    )


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names; a convolution of one pixel is a linear layer in the linear head."""
    ours = from_original(tensors, "sam")
    return {name: ours[name].flatten(1) if _is_pointwise(name, ours[name]) else ours[name] for name in ours}


def _is_pointwise(name: str, tensor: Tensor) -> bool:
    return name.startswith("linear_head.classify.") and tensor.ndim == 5 and tensor.shape[2:].numel() == 1


def compute(network: nn.Module, fixture: Fixture) -> Mapping[str, Tensor]:
    """The embedding, and what each head makes of it; the ViT head's classes along the batch, as in the original."""
    assert isinstance(network, AutoSam)
    embedding = network.encode(image_of(fixture, network.config, rank=2))
    found = {"embedding": embedding}
    if "vit" in network.heads:
        logits, quality = network.ask(embedding)
        found["vit_logits"] = rearrange(logits, "b k d h w -> (b k) 1 d h w")
        found["vit_iou"] = rearrange(quality, "b k -> (b k) 1")
    for head in ("cnn", "linear"):
        if head in network.heads:
            found[f"{head}_logits"] = network.decode(embedding, head)
    return {name: at_rank(tensor, rank=2) for name, tensor in found.items()}


def recognises(described: Described) -> bool:
    """Whether weights are SAM's encoder with one of the heads."""
    parts = {name.partition(".")[0] for name in described.shapes}
    position = described.shapes.get("image_encoder.pos_embed", ())
    heads = parts - {"image_encoder"}
    whole = {"mask_decoder", "pe_layer"} <= parts or not {"mask_decoder", "pe_layer"} & parts
    return (
        len(position) == 4
        and whole
        and bool(heads)
        and heads <= {"mask_decoder", "pe_layer", "cnn_head", "linear_head"}
    )


families.add(
    "autosam",
    Family(
        name="autosam",
        title="AutoSAM",
        source="Hu et al. 2023, AutoSAM",
        licence="Apache-2.0",
        prompts=(),
        recognises=recognises,
        build=build,
        convert=convert,
        compute=compute,
        automatic=automatic,
    ),
)
