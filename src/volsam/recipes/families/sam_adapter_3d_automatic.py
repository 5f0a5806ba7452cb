"""3DSAM-adapter without clicks (Gong et al. 2024): all classes of a crop at once, with any method's adapters.

A volume is covered by overlapping crops. At the published sizes a crop has 256³ voxels, is enlarged twice, and its
32³ tokens are answered at 64³ and enlarged four times.
"""

from __future__ import annotations

from jaxtyping import Float
from pydantic import BaseModel, PositiveInt
from torch import Tensor, nn

from volsam.adapters.freeze import ADAPTERS, NORMS, train_only
from volsam.adapters.methods import Method, add_method
from volsam.errors import BadInput
from volsam.models.aggregation_head import AggregationHead, enlarged_to_corners
from volsam.models.encoder import Encoder, EncoderConfig
from volsam.models.segmenter import enlarge
from volsam.models.visual_sampler import VisualSampler
from volsam.recipes.families.sam_adapter_3d import SamAdapter3D, volume_encoder


class VolumeConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of a network for volumes; with its weights they are all there is to store."""

    encoder: EncoderConfig
    """SAM's blocks in 3D windows."""
    enlarged: PositiveInt
    """How many times a crop is enlarged before patches are made."""
    rows: tuple[PositiveInt, ...]
    """Rows of the position tables of every block, those of SAM."""
    method: Method
    """Whose adapters stand in the blocks."""
    classes: PositiveInt
    """Classes, background included."""


class AutomaticSamAdapter3D(nn.Module):
    """Encoder with a neck for every level, and a head over all levels."""

    def __init__(self, config: VolumeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = adapted_encoder(config)
        self.head = head_of(config)

    def forward(self, crop: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b classes d h w"]:
        """Logits of every class and voxel; class 0 is background."""
        wanted = self.config.encoder.image
        if tuple(crop.shape[1:]) != (1, *wanted):
            raise BadInput(
                f"the model takes crops of (1, depth, height, width) = {(1, *wanted)}, got {tuple(crop.shape[1:])}: "
                "crop or pad to that size first"
            )
        d, h, w = self.config.encoder.grid
        deepest, others = self.encoder(crop)
        context = self.head.context(others, enlarge(crop, (2 * d, 2 * h, 2 * w)))
        return enlarged_to_corners(self.head(context, deepest), wanted)


def prompted(config: VolumeConfig) -> SamAdapter3D:
    """The network that takes clicks, with two classes, of the same sizes."""
    if config.classes != 2:
        raise BadInput(f"with clicks there are 2 classes, object and background, got {config.classes}")
    out = config.encoder.out
    sampler = VisualSampler(out, depth=2, heads=8, mlp_width=8 * out, inner=out // 2, queries=10)
    return SamAdapter3D(adapted_encoder(config), sampler, head_of(config))


def adapted_encoder(config: VolumeConfig) -> Encoder:
    """The encoder with a method's adapters."""
    times = config.enlarged
    rows = [dict.fromkeys("dhw", length) for length in config.rows]
    encoder = volume_encoder(config.encoder, (times, times, times), rows)
    add_method(encoder, config.method)
    return encoder


def head_of(config: VolumeConfig) -> AggregationHead:
    """A head over all levels, with the published share of channels."""
    out = config.encoder.out
    return AggregationHead(out, max(1, out // 2), config.classes, len(config.encoder.taps) + 1)


NEW = r"blocks\.\d+\.attention\.tables\.d|patches\.(merge|depth)|at_taps|neck"
"""Names of what a volume's encoder has and SAM's has not, besides adapters."""


def train_tuned(network: AutomaticSamAdapter3D) -> int:
    """Make trainable the adapters, norms of the blocks and what is not SAM's, with `full` everything; returns how many
    weights learn.
    """
    everything = network.config.method == "full"
    return train_only(network, "" if everything else rf"encoder\.({ADAPTERS}|{NORMS}|{NEW})|head")
