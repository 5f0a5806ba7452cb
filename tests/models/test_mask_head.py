import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.models.mask_head import Candidates, HeadConfig, MaskHead, Upscaling

CONFIG = HeadConfig(width=16, heads=2, mlp_width=20, inner=8, masks=4, upscale=(8, 4), quality_width=10)


def a_head(**changes: object) -> MaskHead:
    torch.manual_seed(0)
    return MaskHead(CONFIG.model_copy(update=changes)).eval()


def decoded(head: MaskHead, candidates: Candidates = "one", batch: int = 1, prompts: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    embedding, position, tokens = torch.randn(batch, 16, 2, 3, 4), torch.randn(2, 3, 4, 16), torch.randn(prompts, 3, 16)
    with torch.no_grad():
        return head(embedding, position, tokens, torch.zeros(1, 16, 1, 1, 1), candidates)


def test_candidates_are_parts_of_the_same_answer() -> None:
    head = a_head()
    (masks, quality), (one, best), (several, others) = (decoded(head, which) for which in ("all", "one", "several"))
    assert masks.shape == (1, 4, 8, 12, 16)
    assert quality.shape == (1, 4)
    assert_close(one, masks[:, :1])
    assert_close(several, masks[:, 1:])
    assert_close(torch.cat([best, others], dim=1), quality)


def test_one_image_serves_many_prompts_and_one_prompt_many_images() -> None:
    assert decoded(a_head(), prompts=5)[0].shape == (5, 1, 8, 12, 16)
    assert decoded(a_head(), batch=3)[0].shape == (3, 1, 8, 12, 16)


def test_slices_grow_within_the_slice() -> None:
    masks, _ = decoded(a_head(step=(1, 2, 2)))
    assert masks.shape == (1, 1, 2, 12, 16)


def test_a_head_may_have_any_number_of_masks_and_doublings() -> None:
    masks, quality = decoded(a_head(masks=6, upscale=(8, 4, 4, 2), step=(1, 2, 2)), "all")
    assert masks.shape == (1, 6, 2, 48, 64)
    assert quality.shape == (1, 6)


def test_upscaling_is_transposed_convolutions_with_norms_between() -> None:
    torch.manual_seed(0)
    upscaling = Upscaling(8, (6, 4, 2), (1, 2, 2)).double()
    image, weights = torch.randn(2, 8, 2, 3, 3, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    blocks = upscaling(rearrange(image, "b c d h w -> b (d h w) c"))
    masks = upscaling.unfold(weights @ rearrange(blocks, "b l s c -> b c (l s)"), (2, 3, 3))

    for index, step in enumerate(upscaling.steps):
        image = F.conv_transpose3d(image, step.weight, step.bias, stride=(1, 2, 2))
        if index < 2:
            norm = upscaling.norms[index]
            image = F.layer_norm(image.movedim(1, -1), image.shape[1:2], norm.weight, norm.bias, 1e-6).movedim(-1, 1)
        image = F.gelu(image)
    assert_close(masks, torch.einsum("bnc,bcdhw->bndhw", weights, image))


def test_every_weight_learns_when_all_masks_do() -> None:
    head = a_head().train()
    masks, quality = head(
        torch.randn(1, 16, 2, 2, 2), torch.randn(2, 2, 2, 16), torch.randn(1, 1, 16), torch.zeros(1, 16, 1, 1, 1), "all"
    )
    (masks.square().sum() + quality.sum()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
