"""What every parameter-efficient method has in common: sizes, what learns, and that it works on slices and volumes."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from volsam.adapters.bottleneck import add_houlsby, add_pro_tuning, add_st_adapter
from volsam.adapters.freeze import train_adapters, train_only
from volsam.adapters.lowrank import add_fact, add_lora
from volsam.adapters.med_tuning import add_med_tuning
from volsam.adapters.slices import add_gated_surround, add_slice_mixers
from volsam.adapters.spatial import add_spatial_adapters
from volsam.models import sizes
from volsam.models.encoder import Encoder

Add = Callable[..., None]

METHODS: dict[str, Add] = {
    "adapter": partial(add_houlsby, channels=6),
    "pro-tuning": partial(add_pro_tuning, channels=6),
    "st-adapter": partial(add_st_adapter, channels=6),
    "st-adapter twice": partial(add_st_adapter, channels=6, places=("before_attention", "before_mlp")),
    "med-tuning": partial(add_med_tuning, channels=6),
    "lora": partial(add_lora, rank=2),
    "fact": partial(add_fact, rank=2, dropout=0.0),
    "3dsam-adapter": partial(add_spatial_adapters, channels=12),
    "ma-sam": partial(add_slice_mixers, channels=6),
    "sam-med2d": add_gated_surround,
}

NORMS = 36_864
TABLE = {
    "st-adapter": (partial(add_st_adapter, channels=384), 7_110_144 + NORMS),
    "pro-tuning": (partial(add_pro_tuning, channels=384), 7_137_792 + NORMS),
    "adapter": (partial(add_houlsby, channels=205), 7_580_472 + NORMS),
    # 32 tokens along depth; with the 128 of its own paper 2,304 more.
    "med-tuning": (partial(add_med_tuning, channels=384, depth=32), 10_869_504 + NORMS),
    "lora": (add_lora, 147_456 + NORMS),
    "3dsam-adapter": (partial(add_spatial_adapters, channels=384), 7_220_736 + NORMS),
}
"""Weights that learn in a ViT-B: adapters and norms, as the table of 3DSAM-adapter counts them."""


@pytest.mark.parametrize("method", TABLE)
def test_a_method_has_its_published_number_of_weights(method: str) -> None:
    add, wanted = TABLE[method]
    with torch.device("meta"):
        encoder = Encoder(sizes.SAM_B.encoder)
        add(encoder)
    assert train_adapters(encoder) == wanted


def test_the_published_millions_come_out() -> None:
    millions = {method: round(wanted / 1e6, 2) for method, (_, wanted) in TABLE.items()}
    assert millions["st-adapter"] == 7.15
    assert millions["pro-tuning"] == 7.17
    assert millions["adapter"] == 7.62  # 7.61 in the table, whose layout is not known
    assert millions["med-tuning"] == 10.91  # 11.10 in the table; the rest is not explained


def test_full_fine_tuning_is_sams_whole_encoder() -> None:
    with torch.device("meta"):
        assert train_only(Encoder(sizes.SAM_B.encoder), "") == 89_670_912


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("of", ["volume", "slice"])
def test_exactly_the_adapters_and_norms_learn_and_all_of_them_do(
    method: str, of: str, request: pytest.FixtureRequest
) -> None:
    encoder: Encoder = request.getfixturevalue(f"a_{of}_encoder")
    image: Tensor = request.getfixturevalue("a_volume" if of == "volume" else "a_stack")
    own = {name for name, _ in encoder.named_parameters()}
    add = METHODS[method]
    add(encoder, depth=5) if method == "med-tuning" and of == "slice" else add(encoder)
    train_adapters(encoder)
    learns = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    frozen = {name.replace(".qkv.linear.", ".qkv.") for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == {name for name in own if ".norm" not in name or name.startswith("neck.")}
    moved: set[str] = set()
    optimiser = torch.optim.SGD(learns.values(), 0.1)
    for _ in range(3):  # behind a layer of zeros nothing moves at first
        optimiser.zero_grad()
        encoder(image)[0].square().mean().backward()
        moved |= {name for name, p in learns.items() if p.grad is not None and p.grad.abs().sum() > 0}
        optimiser.step()
    assert set(learns) == moved
    assert encoder(image[:1])[0].shape == (1, 8, *((4, 4, 4) if of == "volume" else (5, 4, 4)))


@pytest.mark.parametrize("method", METHODS)
def test_a_single_slice_is_a_volume_too(method: str, a_slice_encoder: Encoder, a_stack: Tensor) -> None:
    METHODS[method](a_slice_encoder)
    assert a_slice_encoder(a_stack[:, :, :1])[0].shape == (2, 8, 1, 4, 4)
