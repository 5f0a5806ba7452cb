"""3DSAM-adapter without clicks (Gong et al. 2024): all classes of a crop at once.

A volume is covered by overlapping crops. At the published sizes a crop has 256³ voxels, is enlarged twice, and its
32³ tokens are answered at 64³ and enlarged four times. Other methods' adapters may stand in the encoder.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from volsam.adapters.freeze import ADAPTERS, NORMS, train_only
from volsam.errors import BadInput
from volsam.models.aggregation_head import AggregationHead, enlarged_to_corners
from volsam.models.encoder import Encoder
from volsam.models.segmenter import enlarge


class AutomaticSamAdapter3D(nn.Module):
    """Encoder with a neck for every level, and a head over all levels."""

    def __init__(self, encoder: Encoder, head: AggregationHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, crop: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b classes d h w"]:
        """Logits of every class and voxel; class 0 is background."""
        if tuple(crop.shape[1:]) != (1, *self.encoder.config.image):
            raise BadInput(
                f"the model takes crops of (1, depth, height, width) = {(1, *self.encoder.config.image)}, "
                f"got {tuple(crop.shape[1:])}: crop or pad to that size first"
            )
        d, h, w = self.encoder.config.grid
        deepest, others = self.encoder(crop)
        context = self.head.context(others, enlarge(crop, (2 * d, 2 * h, 2 * w)))
        return enlarged_to_corners(self.head(context, deepest), self.encoder.config.image)


NEW = r"blocks\.\d+\.attention\.tables\.d|patches\.(merge|depth)|at_taps|neck"
"""Names of what a volume's encoder has and SAM's has not, besides adapters."""


def train_tuned(network: AutomaticSamAdapter3D) -> int:
    """Let learn adapters, norms of the blocks and what is not SAM's; returns the number of weights."""
    return train_only(network, rf"encoder\.({ADAPTERS}|{NORMS}|{NEW})|head")
