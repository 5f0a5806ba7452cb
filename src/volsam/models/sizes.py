"""The published networks at full size, each a few numbers.

SAM: Kirillov et al. 2023; SAM-Med3D: Wang et al. 2023; FastSAM3D: Shen et al. 2024.
"""

from volsam.models.encoder import EncoderConfig
from volsam.models.mask_head import HeadConfig
from volsam.models.prompt_encoder import PromptConfig
from volsam.models.segmenter import SegmenterConfig
from volsam.models.shapes import Shape


def sam(width: int, depth: int, heads: int, wide_blocks: tuple[int, ...], image: int = 1024) -> SegmenterConfig:
    """2D SAM, also MedSAM: a slice is a volume of depth one in three colours; window of 14 tokens."""
    encoder = EncoderConfig(
        image=(1, image, image),
        channels=3,
        patch=(1, 16, 16),
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        window=(1, 14, 14),
        wide_window=(1, 0, 0),
        wide_blocks=wide_blocks,
        bias_axes="hw",
        out=256,
        neck_kernel=(1, 3, 3),
    )
    return SegmenterConfig(
        encoder=encoder,
        prompts=PromptConfig(image=encoder.image, grid=encoder.grid, width=256, mask_stride=(1, 2, 2)),
        head=HeadConfig(width=256, inner=128, upscale=(64, 32), step=(1, 2, 2)),
    )


def _sam_3d(encoder: EncoderConfig) -> SegmenterConfig:
    """An encoder with the prompt encoder and the mask head of SAM-Med3D, quirks of its position code included."""
    return SegmenterConfig(
        encoder=encoder,
        prompts=PromptConfig(
            image=encoder.image,
            grid=encoder.grid,
            width=384,
            boxes=False,
            waves=("sin", "cos", "sin"),
            dense_axes=(1, 0, 2),
        ),
        head=HeadConfig(width=384, inner=192, upscale=(96, 48)),
    )


_CUBE: Shape = (128, 128, 128)

SAM_B = sam(width=768, depth=12, heads=12, wide_blocks=(2, 5, 8, 11))
SAM_L = sam(width=1024, depth=24, heads=16, wide_blocks=(5, 11, 17, 23))
SAM_H = sam(width=1280, depth=32, heads=16, wide_blocks=(7, 15, 23, 31))

SAM_MED3D = _sam_3d(
    EncoderConfig(
        image=_CUBE,
        width=768,
        depth=12,
        heads=12,
        mlp_width=3072,
        window=(14, 14, 14),
        wide_blocks=(2, 5, 8, 11),
        bias="published",
        out=384,
    )
)

FASTSAM3D = _sam_3d(
    EncoderConfig(
        image=_CUBE,
        width=768,
        depth=6,
        heads=6,
        mlp_width=3072,
        bias="published",
        blocks_without_attention=2,
        shortcut="normed",
        out=384,
    )
)
"""The student's encoder under SAM-Med3D's prompt encoder and mask head."""
