"""FastSAM3D (Shen et al. 2024): a distilled student encoder under SAM-Med3D's prompt encoder and mask decoder.

The released file of the student holds its encoder alone, without a prefix: that is the family `fastsam3d-encoder`. With
the other two parts from a SAM-Med3D checkpoint it is `fastsam3d`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from volsam.models.encoder import Encoder, EncoderConfig
from volsam.models.original_names import from_original
from volsam.models.segmenter import Segmenter
from volsam.recipes.families.family import Described, Family, families
from volsam.recipes.families.fixture import Fixture
from volsam.recipes.families.sam import compute, encoder_config, image_of, is_plain, segmenter_config
from volsam.recipes.families.sam_med3d import attends_everywhere, click_model


def build_encoder(described: Described) -> nn.Module:
    """The student's encoder, which goes on from the normed tokens, with taps after every second block."""
    config = normed(encoder_config(described, rank=3, prefix=""))
    taps = tuple(range(0, config.depth + 1, 2))
    return nn.ModuleDict({"encoder": Encoder(config.model_copy(update={"taps": taps}))})


def build(described: Described) -> nn.Module:
    """All three parts."""
    config = segmenter_config(described, rank=3)
    return Segmenter(config.model_copy(update={"encoder": normed(config.encoder)}))


def normed(config: EncoderConfig) -> EncoderConfig:
    """The student goes on from the tokens after the second norm; its weights were trained so."""
    return config.model_copy(update={"shortcut": "normed"})


def compute_encoder(network: nn.Module, fixture: Fixture) -> Mapping[str, Tensor]:
    """Tokens after the patch embedding and after every second block, then the embedding."""
    assert isinstance(network, nn.ModuleDict)
    encoder = network["encoder"]
    assert isinstance(encoder, Encoder)
    embedding, taps = encoder(image_of(fixture, encoder.config, rank=3))
    return {f"stage{index}": stage for index, stage in enumerate((*taps, embedding))}


families.add(
    "fastsam3d-encoder",
    Family(
        name="fastsam3d-encoder",
        title="FastSAM3D student encoder",
        source="Shen et al. 2024, FastSAM3D",
        licence="Apache-2.0",
        prompts=(),
        recognises=lambda described: len(described.shapes.get("pos_embed", ())) == 5,
        build=build_encoder,
        convert=lambda tensors: from_original(tensors, "fastsam3d_encoder"),
        compute=compute_encoder,
    ),
)

families.add(
    "fastsam3d",
    Family(
        name="fastsam3d",
        title="FastSAM3D",
        source="Shen et al. 2024, FastSAM3D",
        licence="Apache-2.0",
        prompts=("point", "scribble", "mask"),
        recognises=lambda described: is_plain(described, rank=3) and not attends_everywhere(described),
        build=build,
        convert=lambda tensors: from_original(tensors, "sam_med3d"),
        compute=compute,
        engine=click_model,
    ),
)
