import math

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.errors import BadInput
from volsam.models.encoder import Encoder, EncoderConfig
from volsam.models.sparse_attention import ColumnAttention, DilatedAttention, attend_dilated

WIDTH, HEADS = 12, 3


def an_input(grid: tuple[int, int, int], batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, *grid, WIDTH, dtype=torch.float64)


def projected(attention: ColumnAttention | DilatedAttention, x: Tensor) -> Tensor:
    return rearrange(attention.qkv(x), "b d h w (part n c) -> part b n (d h w) c", part=3, n=HEADS)


def finished(attention: ColumnAttention | DilatedAttention, out: Tensor, like: Tensor) -> Tensor:
    _, d, h, w, _ = like.shape
    return attention.project(rearrange(out, "b n (d h w) c -> b d h w (n c)", d=d, h=h, w=w))


# --- columns -------------------------------------------------------------------------------------------------------


def a_column_attention(grid: tuple[int, int, int], columns: int, order: str = "restored") -> ColumnAttention:
    torch.manual_seed(0)
    return ColumnAttention(WIDTH, HEADS, grid, columns, order).double()  # type: ignore[arg-type]


def column_by_column(attention: ColumnAttention, x: Tensor) -> list[list[Tensor]]:
    """[column][place in it] -> (b n c), by loops."""
    q, k, v = projected(attention, x)
    tokens = q.shape[2]
    found = []
    for s in range(attention.columns):
        own = range(s, tokens, attention.columns)
        collected = []
        for i in own:
            logits = torch.stack([(q[:, :, i] * k[:, :, j]).sum(-1) for j in own], -1) / math.sqrt(WIDTH // HEADS)
            weights = logits.softmax(-1)
            collected.append(sum(weights[..., at, None] * v[:, :, j] for at, j in enumerate(own)))
        found.append(collected)
    return found


@pytest.mark.parametrize(("grid", "columns"), [((4, 2, 3), 6), ((4, 2, 3), 8), ((2, 2, 2), 1), ((2, 2, 2), 8)])
def test_columns_attend_to_themselves(grid: tuple[int, int, int], columns: int) -> None:
    x = an_input(grid)
    restored, published = (a_column_attention(grid, columns, order) for order in ("restored", "published"))
    found = column_by_column(restored, x)
    size = math.prod(grid) // columns
    in_place = torch.stack([found[token % columns][token // columns] for token in range(size * columns)], dim=2)
    laid_down = torch.stack([found[token // size][token % size] for token in range(size * columns)], dim=2)
    assert_close(restored(x), finished(restored, in_place, x))
    assert_close(published(x), finished(published, laid_down, x))


def test_the_published_order_is_a_fixed_permutation_of_the_restored_one() -> None:
    x = torch.randn(1, 8, 8, 8, WIDTH, dtype=torch.float64)
    restored, published = (a_column_attention((8, 8, 8), 64, order) for order in ("restored", "published"))
    right = restored(x).flatten(1, 3)
    wrong = published(x).flatten(1, 3)
    for s in (0, 1, 17, 63):
        for j in (0, 3, 7):
            assert_close(wrong[:, 8 * s + j], right[:, s + 64 * j])
    assert (right - wrong).abs().max() > 1e-2


def test_a_column_of_the_full_grid_runs_along_depth() -> None:
    attention = a_column_attention((8, 8, 8), 64)
    x = torch.randn(1, 8, 8, 8, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[0, 2, 3, 4] += 1
    difference = (attention(changed) - attention(x)).abs().amax(-1)[0]
    assert (difference[:, 3, 4] > 1e-6).all()
    difference[:, 3, 4] = 0
    assert difference.max() < 1e-12


def test_tokens_that_make_no_columns_are_refused() -> None:
    with pytest.raises(BadInput, match="27 tokens do not fall into 64 columns"):
        ColumnAttention(WIDTH, HEADS, (3, 3, 3))


# --- dilated -------------------------------------------------------------------------------------------------------


def a_dilated_attention(grid: tuple[int, int, int], segments: tuple[int, ...], dilations: tuple[int, ...]):
    torch.manual_seed(0)
    return DilatedAttention(WIDTH, HEADS, grid, segments, dilations).double()


def shown(head: int, tokens: int, segment: int, dilation: int) -> Tensor:
    """(query, key): whether the branch shows the key to the query."""
    at = torch.arange(tokens)
    read = at % dilation == head % dilation  # a segment is a multiple of the dilation
    same = at[:, None] // segment == at[None, :] // segment
    return same & read[:, None] & read[None, :]


BRANCHES = [(24, 1), (8, 1), (8, 2), (12, 4), (24, 8), (24, 3), (24, 24)]


@pytest.mark.parametrize(("segment", "dilation"), BRANCHES)
def test_a_branch_is_masked_dense_attention(segment: int, dilation: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, HEADS, 24, 4, dtype=torch.float64)
    out, total = attend_dilated(q, k, v, segment, dilation)
    for head in range(HEADS):
        mask = shown(head, 24, segment, dilation)
        has_part = mask.any(-1)
        logits = (q[:, head] @ k[:, head].mT / 2).masked_fill(~mask, -torch.inf)
        dense = logits.softmax(-1).nan_to_num(0.0) @ v[:, head]
        assert_close(out[:, head], dense)
        assert_close(total[:, head][:, has_part], logits.logsumexp(-1)[:, has_part])
        assert torch.isneginf(total[:, head][:, ~has_part]).all()


@pytest.mark.parametrize(
    ("segments", "dilations"),
    [((24,), (1,)), ((8, 24), (1, 2)), ((6, 12, 24), (1, 2, 4)), ((4, 8, 24, 24), (1, 4, 3, 8)), ((100, 8), (1, 8))],
)
def test_branches_are_one_softmax_over_all_they_show(segments: tuple[int, ...], dilations: tuple[int, ...]) -> None:
    attention, x = a_dilated_attention((2, 3, 4), segments, dilations), an_input((2, 3, 4))
    q, k, v = projected(attention, x)
    collected = []
    for head in range(HEADS):
        times = sum(
            shown(head, 24, min(segment, 24), dilation).double()
            for segment, dilation in zip(segments, dilations, strict=True)
        )
        exponentials = (q[:, head] @ k[:, head].mT / 2).exp() * times
        collected.append(exponentials / exponentials.sum(-1, keepdim=True) @ v[:, head])
    assert_close(attention(x), finished(attention, torch.stack(collected, dim=1), x))


@pytest.mark.parametrize("segment", [24, 512])
def test_one_segment_over_all_with_dilation_one_is_dense_attention(segment: int) -> None:
    attention, x = a_dilated_attention((2, 3, 4), (segment,), (1,)), an_input((2, 3, 4))
    assert_close(attention(x), finished(attention, F.scaled_dot_product_attention(*projected(attention, x)), x))


def test_every_weight_learns() -> None:
    for attention in (
        a_dilated_attention((2, 3, 4), (6, 24), (1, 4)),
        a_column_attention((2, 3, 4), 6, "published"),
    ):
        x = an_input((2, 3, 4)).requires_grad_()
        found = torch.autograd.grad(attention(x).square().sum(), [x, *attention.parameters()])
        assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in found)


@pytest.mark.parametrize(
    ("segments", "dilations", "word"),
    [
        ((8, 24), (1,), "one dilation a segment"),
        ((8, 24), (2, 4), "1 among them"),
        ((9,), (1,), "segments of 9 tokens"),
        ((24, 8), (1, 3), "in steps of 3"),
    ],
)
def test_branches_that_do_not_fit_are_refused(segments: tuple[int, ...], dilations: tuple[int, ...], word: str) -> None:
    with pytest.raises(BadInput, match=word):
        DilatedAttention(WIDTH, HEADS, (2, 3, 4), segments, dilations)


# --- in an encoder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", ["columns", "published", "dilated"])
def test_a_student_may_be_sparse(sparse: str) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        image=(32, 32, 32), patch=(4, 4, 4), width=WIDTH, depth=3, heads=HEADS, mlp_width=24, out=8,
        blocks_without_attention=1, shortcut="normed", sparse=sparse,  # type: ignore[arg-type]
    )  # fmt: skip
    encoder = Encoder(config)
    names = {name for name in encoder.state_dict() if "attention" in name}
    assert names == {
        f"blocks.{i}.attention.{part}.{kind}"
        for i in (1, 2)
        for part in ("qkv", "project")
        for kind in ("weight", "bias")
    }
    embedding, _ = encoder(torch.randn(1, 1, 32, 32, 32))
    assert embedding.shape == (1, 8, 8, 8, 8)
    dense = Encoder(config.model_copy(update={"sparse": "none", "bias_axes": ""}))
    dense.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        image = torch.randn(1, 1, 32, 32, 32)
        assert (dense(image)[0] - encoder(image)[0]).abs().max() > 1e-3


def test_a_new_encoder_is_not_sparse() -> None:
    assert EncoderConfig.model_fields["sparse"].default == "none"
