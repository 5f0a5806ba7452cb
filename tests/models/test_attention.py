import math

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.errors import BadInput
from volsam.models.attention import GridAttention
from volsam.models.token_attention import Attention

WIDTH, HEADS = 12, 3


def an_attention(
    window: tuple[int, ...], grid: tuple[int, ...], bias: str = "aligned", axes: str = "dhw"
) -> GridAttention:
    torch.manual_seed(0)
    attention = GridAttention(WIDTH, HEADS, window, grid, axes, bias).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    return attention


def rows(table: Tensor, size: int) -> Tensor:
    """(query, key, channels) by explicit indexing, the table interpolated where it has another length."""
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], size=2 * size - 1, mode="linear")[0].T
    at = torch.arange(size)
    return table[at[:, None] - at[None, :] + size - 1]


def with_filling(attention: GridAttention, x: Tensor) -> Tensor:
    """The same attention done the long way: zeros fill the windows and take part as queries and keys."""
    _, *grid, c = x.shape
    d, h, w = window = [step or size for step, size in zip(attention.window, grid, strict=True)]
    pad = [-size % step for size, step in zip(grid, window, strict=True)]
    padded = F.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
    z, y, u = (size // step for size, step in zip(padded.shape[1:4], window, strict=True))
    cut = rearrange(padded, "b (z d) (y h) (u w) c -> (b z y u) (d h w) c", d=d, h=h, w=w)
    q, k, v = rearrange(attention.qkv(cut), "b l (part n c) -> part b n l c", part=3, n=HEADS)
    logits = (q @ k.mT / math.sqrt(c // HEADS)).reshape(*q.shape[:2], d, h, w, d, h, w)
    query = rearrange(q, "b n (d h w) c -> b n d h w c", d=d, h=h, w=w)
    sizes = dict(zip("dhw", window, strict=True))
    tables = {axis: rows(table, sizes[axis]) for axis, table in attention.tables.items()}
    if attention.bias == "published":
        of_d, of_h, of_w = (torch.einsum(f"bndhwc,{axis}kc->bndhwk", query, tables[axis]) for axis in "dhw")
        logits = logits + of_d[..., None, None, :] + of_h[:, :, :, :, None, :, None, :] + of_w[:, :, :, :, None, None]
    else:
        for axis, place in zip("dhw", ("k 1 1", "1 k 1", "1 1 k"), strict=True):
            if axis in tables:
                term = torch.einsum(f"bndhwc,{axis}kc->bndhwk", query, tables[axis])
                logits = logits + rearrange(term, f"b n d h w k -> b n d h w {place}")
    out = logits.flatten(5).flatten(2, 4).softmax(-1) @ v
    out = rearrange(out, "(b z y u) n (d h w) c -> b (z d) (y h) (u w) (n c)", z=z, y=y, u=u, d=d, h=h, w=w)
    return attention.project(out[:, : grid[0], : grid[1], : grid[2]])


CASES = [
    # window, grid, bias, axes
    ((4, 4, 4), (3, 3, 3), "aligned", "dhw"),
    ((4, 4, 4), (3, 3, 3), "published", "dhw"),
    ((3, 3, 3), (4, 4, 4), "published", "dhw"),  # eight patterns of filling
    ((3, 3, 3), (4, 5, 7), "aligned", "dhw"),
    ((3, 3, 3), (4, 5, 7), "published", "dhw"),
    ((3, 3, 3), (3, 6, 4), "published", "dhw"),  # full windows along two axes
    ((3, 3, 3), (4, 6, 3), "published", "dhw"),
    ((3, 3, 3), (6, 3, 3), "published", "dhw"),  # nothing filled
    ((2, 3, 4), (5, 3, 6), "aligned", "dhw"),
    ((1, 4, 4), (1, 9, 9), "aligned", "hw"),  # as 2D SAM: only the last windows are filled
    ((1, 4, 4), (3, 6, 4), "aligned", "hw"),
    ((1, 5, 5), (2, 3, 4), "aligned", "hw"),
    ((1, 0, 0), (3, 4, 5), "aligned", "hw"),
    ((0, 0, 0), (2, 3, 4), "aligned", "dhw"),
    ((0, 0, 0), (3, 3, 3), "published", "dhw"),
    ((0, 2, 2), (3, 3, 3), "aligned", "dh"),
    ((3, 3, 3), (4, 4, 4), "aligned", ""),  # no tables
    ((0, 0, 0), (2, 3, 4), "aligned", ""),
]


@pytest.mark.parametrize(("window", "grid", "bias", "axes"), CASES)
def test_folding_the_filling_away_changes_nothing(
    window: tuple[int, ...], grid: tuple[int, ...], bias: str, axes: str
) -> None:
    attention = an_attention(window, grid, bias, axes)
    x = torch.randn(2, *grid, WIDTH, dtype=torch.float64)
    assert_close(attention(x), with_filling(attention, x), rtol=0, atol=1e-11)
    with torch.no_grad():  # takes another way
        assert_close(attention(x), with_filling(attention, x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("bias", ["aligned", "published"])
def test_in_float32_the_fold_stays_close(bias: str) -> None:
    attention = an_attention((6, 6, 6), (4, 4, 4), bias).float()
    x = torch.randn(1, 4, 4, 4, WIDTH)
    assert_close(attention(x), with_filling(attention, x), rtol=0, atol=1e-5 * float(attention(x).detach().abs().max()))


@pytest.mark.parametrize(("window", "grid", "bias", "axes"), CASES[:5] + CASES[9:10])
def test_every_weight_learns_as_with_the_filling(
    window: tuple[int, ...], grid: tuple[int, ...], bias: str, axes: str
) -> None:
    attention = an_attention(window, grid, bias, axes)
    x = torch.randn(1, *grid, WIDTH, dtype=torch.float64, requires_grad=True)
    wanted = [x, *attention.parameters()]
    ours = torch.autograd.grad(attention(x).square().sum(), wanted)
    theirs = torch.autograd.grad(with_filling(attention, x).square().sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        assert one.abs().max() > 0
        assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_the_published_bias_is_another_function_than_the_aligned_one() -> None:
    aligned, published = (an_attention((0, 0, 0), (3, 3, 3), bias) for bias in ("aligned", "published"))
    x = torch.randn(1, 3, 3, 3, WIDTH, dtype=torch.float64)
    assert (aligned(x) - published(x)).abs().max() > 1e-2


def test_the_published_bias_is_refused_where_axes_differ() -> None:
    with pytest.raises(BadInput, match="cubic"):
        GridAttention(WIDTH, HEADS, (0, 0, 0), (2, 3, 3), bias="published")
    with pytest.raises(BadInput, match="cubic"):
        GridAttention(WIDTH, HEADS, (0, 0, 0), (3, 3, 3), axes="hw", bias="published")


def test_tables_of_another_length_are_interpolated() -> None:
    attention = an_attention((3, 3, 3), (5, 5, 5))
    for axis in "dhw":
        attention.tables[axis] = nn.Parameter(torch.randn(11, WIDTH // HEADS, dtype=torch.float64))
    x = torch.randn(1, 5, 5, 5, WIDTH, dtype=torch.float64)
    assert_close(attention(x), with_filling(attention, x), rtol=0, atol=1e-11)


def test_a_volume_of_another_size_uses_the_tables_of_whole_axes_too() -> None:
    attention = an_attention((1, 0, 0), (1, 5, 5), axes="hw")
    x = torch.randn(1, 1, 3, 7, WIDTH, dtype=torch.float64)
    assert_close(attention(x), with_filling(attention, x), rtol=0, atol=1e-11)


def test_a_replaced_qkv_also_decides_what_filled_tokens_become() -> None:
    class Shifted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.cos(x).sum(-1, keepdim=True)

    attention = an_attention((4, 4, 4), (3, 3, 3))
    attention.qkv = Shifted(WIDTH, 3 * WIDTH).double()
    x = torch.randn(1, 3, 3, 3, WIDTH, dtype=torch.float64)
    assert_close(attention(x), with_filling(attention, x), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("window", "grid", "bias", "axes"), CASES[2:4])
def test_windows_may_be_read_a_few_at_a_time(
    window: tuple[int, ...], grid: tuple[int, ...], bias: str, axes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention = an_attention(window, grid, bias, axes)
    x = torch.randn(3, *grid, WIDTH, dtype=torch.float64)
    together = attention(x)
    monkeypatch.setattr("volsam.models.attention.LOGITS_AT_ONCE", 2 * HEADS * math.prod(window) ** 2)
    assert_close(attention(x), together, rtol=0, atol=1e-12)


def rolled(attention: GridAttention, x: Tensor) -> Tensor:
    """Shifted windows the long way (Liu et al. 2021): roll, mask pairs that were no neighbours, roll back."""
    _, *grid, c = x.shape
    back = [-step for step in attention.shift]
    d, h, w = attention.window
    q, k, v = rearrange(
        attention.qkv(torch.roll(x, back, (1, 2, 3))),
        "b (z d) (y h) (u w) (part n c) -> part (b z y u) n (d h w) c", d=d, h=h, w=w, part=3, n=HEADS,
    )  # fmt: skip
    region = torch.zeros(grid, dtype=torch.long)
    for axis, (size, step) in enumerate(zip(grid, attention.shift, strict=True)):
        wrapped = (torch.arange(size) >= size - step).long() + (torch.arange(size) >= size - attention.window[axis])
        region = 3 * region + wrapped.reshape([-1 if other == axis else 1 for other in range(3)])
    region = rearrange(region, "(z d) (y h) (u w) -> (z y u) (d h w)", d=d, h=h, w=w).repeat(len(x), 1)
    logits = q @ k.mT / math.sqrt(c // HEADS) - 100.0 * (region[:, None, :, None] != region[:, None, None, :])
    query = rearrange(q, "b n (d h w) c -> b n d h w c", d=d, h=h, w=w)
    for axis, place in zip("dhw", ("k 1 1", "1 k 1", "1 1 k"), strict=True):
        rows_of = rows(attention.tables[axis], attention.window["dhw".index(axis)])
        term = rearrange(torch.einsum(f"bndhwc,{axis}kc->bndhwk", query, rows_of), f"b n d h w k -> b n d h w {place}")
        logits = logits + term.expand(*term.shape[:5], d, h, w).flatten(5).flatten(2, 4)
    out = rearrange(
        logits.softmax(-1) @ v, "(b z y u) n (d h w) c -> b (z d) (y h) (u w) (n c)",
        z=grid[0] // d, y=grid[1] // h, u=grid[2] // w, d=d, h=h, w=w,
    )  # fmt: skip
    return attention.project(torch.roll(out, attention.shift, (1, 2, 3)))


@pytest.mark.parametrize(
    ("window", "grid", "shift"),
    [
        ((4, 4, 4), (8, 8, 8), (2, 2, 2)),
        ((4, 4, 4), (4, 8, 12), (1, 3, 2)),  # one window along depth, which the shift splits
        ((2, 3, 2), (4, 6, 4), (0, 1, 1)),
        ((3, 2, 2), (6, 4, 2), (1, 0, 0)),
        ((2, 2, 2), (4, 4, 4), (0, 0, 0)),
    ],
)
def test_shifted_windows_are_those_of_a_cyclic_shift_with_its_mask(
    window: tuple[int, ...], grid: tuple[int, ...], shift: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    attention = GridAttention(WIDTH, HEADS, window, grid, shift=shift).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, *grid, WIDTH, dtype=torch.float64)
    assert_close(attention(x), rolled(attention, x), rtol=0, atol=1e-11)


def test_windows_that_do_not_fill_the_grid_are_shorter_at_both_ends_when_shifted() -> None:
    attention = GridAttention(WIDTH, HEADS, (1, 1, 3), (1, 1, 6), shift=(0, 0, 2)).double()
    x = torch.randn(1, 1, 1, 8, WIDTH, dtype=torch.float64)
    whole = attention(x)
    # Alone, the first tokens fill no window, whatever comes after them.
    assert_close(whole[:, :, :, :2], attention(x[:, :, :, :2]))
    attention.shift = (0, 0, 0)
    assert_close(whole[:, :, :, 2:], attention(x[:, :, :, 2:]))


def test_the_published_bias_knows_no_shift() -> None:
    with pytest.raises(BadInput, match="shifted"):
        GridAttention(WIDTH, HEADS, (3, 3, 3), (6, 6, 6), bias="published", shift=(1, 1, 1))


def test_slices_do_not_see_each_other() -> None:
    attention = an_attention((1, 3, 3), (1, 5, 5), axes="hw")
    x = torch.randn(1, 4, 5, 5, WIDTH, dtype=torch.float64)
    apart = torch.cat([attention(slice_) for slice_ in x.split(1, dim=1)], dim=1)
    assert_close(attention(x), apart)


def test_attention_between_lists_is_a_softmax_over_the_keys() -> None:
    torch.manual_seed(0)
    attention = Attention(WIDTH, HEADS, inner=6).double()
    query, key, value = (torch.randn(2, length, WIDTH, dtype=torch.float64) for length in (3, 5, 5))
    q, k, v = (
        rearrange(part, "b l (n c) -> b n l c", n=HEADS)
        for part in (attention.query(query), attention.key(key), attention.value(value))
    )
    out = (q @ k.mT / math.sqrt(6 // HEADS)).softmax(-1) @ v
    assert_close(attention(query, key, value), attention.project(rearrange(out, "b n l c -> b l (n c)")))


@pytest.mark.parametrize("bias", ["aligned", "published"])
def test_a_window_of_very_many_logits_is_read_in_rows(bias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = GridAttention(12, 2, (0, 0, 0), (4, 4, 4), bias=bias).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 4, 4, 4, 12)
    with torch.no_grad():
        expected = attention(x)
        for rows in (1, 2, 3):
            monkeypatch.setattr("volsam.models.attention.LOGITS_AT_ONCE", rows * 2 * 4 * 4 * 64)
            assert attention._rows_at_once(torch.zeros(1, 2, 4, 4, 4, 6)) == rows
            assert_close(attention(x), expected, rtol=0, atol=1e-6)
