from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.errors import BadInput
from volsam.models.original_names import from_original
from volsam.recipes.methods.from_sam import auto_sam_from_sam, ma_sam_from_sam

from .manifests import manifest, needs_manifests
from .sams import FULL, a_full_sam, a_tiny_sam


@pytest.fixture(scope="module")
def sam() -> dict[str, Tensor]:
    """On a grid of 4 × 4 tokens."""
    return a_tiny_sam()


def ours(sam: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return from_original(sam, "sam")


def learning(network: nn.Module) -> set[str]:
    return {name for name, weights in network.named_parameters() if weights.requires_grad}


def count(network: nn.Module) -> int:
    return sum(weights.numel() for weights in network.parameters() if weights.requires_grad)


def gradients_reach_exactly_what_learns(network: nn.Module, image: Tensor) -> None:
    """Two steps, since behind a layer of zeros nothing moves at first."""
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    moved: set[str] = set()
    for _ in range(2):
        optimiser.zero_grad()
        network(image).square().mean().backward()
        found = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        moved |= found
        optimiser.step()
    assert moved <= learning(network)
    assert learning(network) - moved == set()


# --- AutoSAM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["vit", "cnn", "linear"])
def test_autosam_has_sams_encoder_and_the_head_that_was_asked_for(head: str, sam: dict[str, Tensor]) -> None:
    network = auto_sam_from_sam(sam, classes=3, head=head)
    assert network.heads == (head,)
    state = network.state_dict()
    encoder = {name: tensor for name, tensor in ours(sam).items() if name.startswith("encoder.")}
    assert len(encoder) == 2 + 1 + 4 * 14 + 6
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.items())
    assert network(torch.randn(2, 3, 1, 64, 64)).shape == (2, 3, 1, 16, 16)


def test_the_vit_head_begins_as_sams_but_for_tokens_and_quality(sam: dict[str, Tensor]) -> None:
    state, original = auto_sam_from_sam(sam, classes=3).state_dict(), ours(sam)
    same = {name for name in state if name in original and torch.equal(state[name], original[name])}
    head = {name for name in same if name.startswith("mask_head.")}
    assert head == {name for name in state if name.startswith(("mask_head.tr", "mask_head.up", "mask_head.weights."))}
    assert {name.split(".")[2] for name in head if ".weights." in name} == {"0", "1"}
    assert state["mask_head.mask_tokens"].shape == (6, 32)


@pytest.mark.parametrize("head", ["vit", "cnn", "linear"])
def test_only_the_head_of_autosam_learns(head: str, sam: dict[str, Tensor]) -> None:
    network = auto_sam_from_sam(sam, classes=3, head=head)
    assert not any(name.startswith(("encoder.", "mask_head.quality")) for name in learning(network))
    frozen = network.encode(torch.randn(1, 3, 1, 64, 64))
    assert not frozen.requires_grad
    unused = {name for name in learning(network) if name.startswith("mask_head.weights.1.")}
    for name, weights in network.named_parameters():
        if name in unused:  # the second mask of a class is asked for and not read
            weights.requires_grad_(False)
    if head != "linear":  # whose logits are cut off at zero
        gradients_reach_exactly_what_learns(network, torch.randn(1, 3, 1, 64, 64))


@pytest.mark.parametrize(("head", "learns", "held"), [
    ("vit", 3_646_880, 3_780_002), ("cnn", 20_686_340, 20_686_340), ("linear", 75_140, 75_140),
])  # fmt: skip
def test_heads_of_autosam_have_their_published_size(head: str, learns: int, held: int) -> None:
    with torch.device("meta"):
        network = auto_sam_from_sam(a_full_sam("B"), classes=4, head=head)
    assert count(network) == learns
    whole = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("encoder."))
    assert whole == held


def test_autosam_takes_smaller_slices_with_its_position_resized(sam: dict[str, Tensor]) -> None:
    network = auto_sam_from_sam(sam, classes=2, head="linear", image=32)
    position = F.interpolate(sam["image_encoder.pos_embed"].permute(0, 3, 1, 2), size=(2, 2), mode="bilinear")
    assert_close(network.encoder.position[:, 0], position.permute(0, 2, 3, 1))
    assert network(torch.randn(1, 3, 1, 32, 32)).shape == (1, 2, 1, 8, 8)


# --- MA-SAM ----------------------------------------------------------------------------------------------------------


def test_ma_sam_begins_with_what_sam_has_and_with_new_classes(sam: dict[str, Tensor]) -> None:
    network = ma_sam_from_sam(sam, classes=5, image=64, rank=4, channels=6)
    state, original = network.state_dict(), ours(sam)
    state = {name.replace(".qkv.linear.", ".qkv."): tensor for name, tensor in state.items()}
    fresh = {name for name in state if name not in original or not torch.equal(state[name], original[name])}
    new = (
        "encoder.factors.", "mask_head.mask_tokens", "mask_head.quality.", "mask_head.weights.",
        "mask_head.upscaling.steps.2.", "mask_head.upscaling.steps.3.", "mask_head.upscaling.norms.1.",
        "mask_head.upscaling.norms.2.",
    )  # fmt: skip
    adapters = ("changes", "before_attention", "before_mlp")
    assert fresh == {n for n in state if n.startswith(new) or any(f".{place}." in n for place in adapters)}
    assert state["mask_head.mask_tokens"].shape == (5, 32)


@pytest.mark.parametrize("slices", [1, 3, 5])
def test_ma_sam_answers_stacks_of_any_length_at_full_size(slices: int, sam: dict[str, Tensor]) -> None:
    network = ma_sam_from_sam(sam, classes=3, image=32, rank=4, channels=6)
    assert network(torch.randn(2, 3, slices, 32, 32)).shape == (2, 3, slices, 32, 32)


def test_without_adapters_and_factors_the_embedding_is_sams(sam: dict[str, Tensor]) -> None:
    network = ma_sam_from_sam(sam, classes=3, image=64, rank=4, channels=6)
    for name, weights in network.named_parameters():
        if ".up." in name and ".before_" in name:
            nn.init.zeros_(weights)
    slices = torch.randn(1, 3, 2, 64, 64)
    plain = auto_sam_from_sam(sam, classes=3).encode(slices)
    assert_close(network.encoder(slices)[0], plain, atol=1e-5, rtol=0)


def test_what_ma_sam_tunes_is_reached_and_nothing_else(sam: dict[str, Tensor]) -> None:
    network = ma_sam_from_sam(sam, classes=3, image=64, rank=4, channels=6)
    of_sam = {name.replace(".qkv.", ".qkv.linear.") for name in ours(sam) if name.startswith("encoder.")}
    assert not learning(network) & of_sam
    unread = ("prompt_encoder.mask.", "prompt_encoder.labels", "mask_head.quality.")
    for name, weights in network.named_parameters():
        if name.startswith(unread):  # no prompts are given, and nobody asks for a quality
            weights.requires_grad_(False)
    gradients_reach_exactly_what_learns(network, torch.randn(1, 3, 2, 64, 64))


@pytest.mark.parametrize(("size", "tuned"), [("B", 30_142_361), ("L", 64_463_769), ("H", 96_811_929)])
def test_what_ma_sam_tunes_has_its_published_size(size: str, tuned: int) -> None:
    with torch.device("meta"):
        network = ma_sam_from_sam(a_full_sam(size), classes=13)
    assert network.config.encoder.wide_blocks == FULL[size].encoder.wide_blocks
    assert count(network) == tuned


# --- what is refused -------------------------------------------------------------------------------------------------


@needs_manifests
def test_the_official_file_has_the_names_and_shapes_that_are_expected() -> None:
    official, full = manifest("sam_vit_b"), a_full_sam("B")
    assert {n: t.shape for n, t in official.items()} == {n: t.shape for n, t in full.items()}


@pytest.mark.parametrize("make", [auto_sam_from_sam, ma_sam_from_sam])
def test_tensors_that_are_no_sam_are_refused(make: object, sam: dict[str, Tensor]) -> None:
    assert callable(make)
    with pytest.raises(BadInput, match="give the weights of a 2D SAM"):
        make({"weight": torch.zeros(1)}, classes=2)
    with pytest.raises(BadInput, match=r"adapted already \(image_encoder\.blocks\.0\.Adapter\.norm\)"):
        make({**sam, "image_encoder.blocks.0.Adapter.norm": torch.zeros(1)}, classes=2)
    without = {name: tensor for name, tensor in sam.items() if not name.startswith("mask_decoder.")}
    with pytest.raises(BadInput, match="has no mask_decoder"):
        make(without, classes=2)
    with pytest.raises(BadInput, match="2 classes or more, background included, got 1"):
        make(sam, classes=1)
    with pytest.raises(BadInput, match="not whole patches of 16"):
        make(sam, classes=2, image=50)
    incomplete = {name: tensor for name, tensor in sam.items() if name != "image_encoder.blocks.2.norm1.weight"}
    with pytest.raises(BadInput, match=r"lacks 1 weights \(first: encoder\.blocks\.2\.norm1\.weight\)"):
        make(incomplete, classes=2, image=64)


def test_an_encoder_alone_is_enough_for_heads_that_begin_anew(sam: dict[str, Tensor]) -> None:
    alone = {name: tensor for name, tensor in sam.items() if name.startswith("image_encoder.")}
    assert auto_sam_from_sam(alone, classes=2, head="cnn").heads == ("cnn",)
