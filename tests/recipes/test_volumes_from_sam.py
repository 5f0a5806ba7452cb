import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.adapters.freeze import train_only
from volsam.adapters.methods import METHODS, Method
from volsam.errors import BadInput
from volsam.evaluation.published.sam_adapter_3d import AggregationDecoder, VolumeEncoder
from volsam.models.original_names import from_original
from volsam.recipes.families.sam_adapter_3d import convert, train_tuned
from volsam.recipes.families.sam_adapter_3d_automatic import AutomaticSamAdapter3D, VolumeConfig, prompted
from volsam.recipes.methods.from_sam import peft_from_sam, sam_adapter_3d_from_sam

from .sams import a_full_sam, a_tiny_sam
from .test_from_sam import count, gradients_reach_exactly_what_learns, learning

pytestmark = pytest.mark.slow

CROP = (16, 16, 16)
"""Enlarged four times: a grid of 4³."""


@pytest.fixture(scope="module")
def sam() -> dict[str, Tensor]:
    """On a grid of 4 × 4 tokens."""
    return a_tiny_sam()


@pytest.fixture
def a_crop() -> Tensor:
    return torch.randn(1, 1, *CROP, generator=torch.Generator().manual_seed(1))


# --- what comes from SAM ---------------------------------------------------------------------------------------------


def the_original(sam: dict[str, Tensor], classes: int) -> nn.ModuleDict:
    """3DSAM-adapter as published, with SAM's weights where it has them and random ones elsewhere."""
    torch.manual_seed(3)
    encoder = VolumeEncoder(
        grid=4, width=24, depth=4, heads=3, extent=3, wide=(1, 3), wide_extent=8, window=2, slices=16, out=32
    )
    parts = nn.ModuleDict({
        "image_encoder": encoder,
        "mask_decoder": AggregationDecoder(width=32, channels=16, classes=classes),
    })  # fmt: skip
    own = {name: tensor for name, tensor in sam.items() if name in parts.state_dict()}
    parts.load_state_dict(own, strict=False)
    for block in encoder.blocks:
        block.attn.rel_pos_d.data = (block.attn.rel_pos_h + block.attn.rel_pos_w).data / 2
    return parts.requires_grad_(False)


def test_it_is_the_published_network_with_sams_weights() -> None:
    """The way of the original: enlarge a crop of 32³ twice, slice it, answer at 8³, enlarge four times."""
    sam = a_tiny_sam(image=128)
    original = the_original(sam, classes=3)
    network = peft_from_sam(sam, classes=3, crop=(32, 32, 32), enlarged=2, window=2)
    state, converted = network.state_dict(), convert(original.state_dict())
    assert set(state) == set(converted)
    of_sam = {name for name in state if torch.equal(state[name], converted[name])}
    blocks = {name for name in state if ".blocks." in name and ".before_attention." not in name}
    plane = {"encoder.patches.plane.weight", "encoder.patches.plane.bias", "encoder.position"}
    assert of_sam >= blocks | plane
    fresh = ("encoder.patches.merge", "encoder.neck.project", "head.", "encoder.at_taps.0.mix")
    assert not any(name.startswith(fresh) for name in of_sam)
    network.load_state_dict(converted)

    crop = torch.randn(1, 1, 32, 32, 32)
    slices = F.interpolate(crop.expand(-1, 3, -1, -1, -1), scale_factor=2, mode="trilinear")[0].transpose(0, 1)
    raw = F.interpolate(crop, size=(8, 8, 8), mode="trilinear").permute(0, 1, 3, 4, 2)
    wanted = original["mask_decoder"](original["image_encoder"](slices), raw, (2, 4)).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        assert_close(network(crop), wanted, atol=5e-5, rtol=0)


def test_a_position_is_kept_averaged_or_resized(sam: dict[str, Tensor]) -> None:
    position = sam["image_encoder.pos_embed"]
    kept, averaged, resized = (
        peft_from_sam(sam, classes=2, crop=(8, size, size), enlarged=4).encoder.position[:, 0] for size in (16, 8, 12)
    )
    assert torch.equal(kept, position)
    assert_close(averaged, F.avg_pool2d(position.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))
    bilinear = F.interpolate(position.permute(0, 3, 1, 2), size=(3, 3), mode="bilinear").permute(0, 2, 3, 1)
    assert_close(resized, bilinear)


def test_levels_are_read_after_each_quarter_of_the_blocks() -> None:
    network = peft_from_sam(a_tiny_sam(depth=8), classes=2, crop=CROP, enlarged=4)
    config = network.encoder.config
    assert config.taps == (2, 4, 6)
    assert (config.window, config.shift, config.shifted_blocks) == ((4, 4, 4), (2, 2, 2), (0, 2, 4, 6))
    shallow = peft_from_sam(a_tiny_sam(depth=2), classes=2, crop=CROP, enlarged=4)
    assert shallow.encoder.config.taps == (1,)
    assert len(shallow.head.levels) == 2


def test_crops_need_not_be_cubes(sam: dict[str, Tensor]) -> None:
    network = peft_from_sam(sam, classes=4, crop=(8, 24, 16), enlarged=4)
    assert network.encoder.config.grid == (2, 6, 4)
    assert network(torch.randn(2, 1, 8, 24, 16)).shape == (2, 4, 8, 24, 16)


def test_levels_may_have_fewer_channels_than_sams_neck(sam: dict[str, Tensor], a_crop: Tensor) -> None:
    network = peft_from_sam(sam, classes=2, crop=CROP, enlarged=4, out=8)
    assert network.head.mix.weight.shape == (4, 4 * 4 + 1, 3, 3, 3)
    assert network(a_crop).shape == (1, 2, *CROP)


@pytest.mark.parametrize("method", METHODS)
def test_sizes_and_weights_are_all_there_is_to_store(method: Method, sam: dict[str, Tensor], a_crop: Tensor) -> None:
    network = peft_from_sam(sam, method, classes=3, crop=CROP, enlarged=4, window=2, out=8).eval()
    stored = network.config.model_dump_json()
    again = AutomaticSamAdapter3D(VolumeConfig.model_validate_json(stored)).eval()
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert_close(again(a_crop), network(a_crop), atol=0, rtol=0)


def test_the_tensors_that_were_given_do_not_learn(sam: dict[str, Tensor], a_crop: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in sam.items()}
    network = peft_from_sam(sam, "full", classes=2, crop=CROP, enlarged=4)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    network(a_crop).square().mean().backward()
    optimiser.step()
    assert all(torch.equal(sam[name], before[name]) for name in sam)


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_promises_is_reached_and_nothing_else(
    method: Method, sam: dict[str, Tensor], a_crop: Tensor
) -> None:
    network = peft_from_sam(sam, method, classes=3, crop=CROP, enlarged=4, window=2)
    assert network(a_crop).shape == (1, 3, *CROP)
    of_sam = {n for n in from_original(sam, "sam") if n.startswith("encoder.blocks.") and ".norm" not in n}
    learns = {name.replace(".qkv.linear.", ".qkv.") for name in learning(network)}
    assert len(of_sam) == 4 * 10
    assert of_sam & learns == (of_sam if method == "full" else set())
    assert ("encoder.position" in learning(network)) == (method == "full")
    norms = {f"encoder.blocks.{index}.norm{k}.weight" for index in range(4) for k in (1, 2)}
    new = {"encoder.patches.merge", "encoder.patches.depth", "encoder.neck.mix.weight", "head.mix.weight"}
    assert learning(network) >= norms | new | {f"encoder.blocks.{index}.attention.tables.d" for index in range(4)}
    gradients_reach_exactly_what_learns(network, a_crop)


@pytest.mark.parametrize("method", ["st-adapter", "fact", "lora"])
def test_neutral_methods_begin_where_nothing_was_added(method: Method, sam: dict[str, Tensor], a_crop: Tensor) -> None:
    logits = []
    for each in (method, "full"):
        torch.manual_seed(5)
        network = peft_from_sam(sam, each, classes=2, crop=CROP, enlarged=4).eval()
        new = {n: p for n, p in network.named_parameters() if n.startswith(("encoder.neck", "encoder.at_taps", "head"))}
        for name, weights in new.items():
            nn.init.normal_(weights, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        with torch.no_grad():
            logits.append(network(a_crop))
    assert_close(logits[0], logits[1], atol=0, rtol=0)


FULL = (256, 256, 256)
NEW = 24_576 + 13_056 + 46_336 + 7_868_416 + 7_088_256
"""Depth code, merging, tables of depth, necks and head: with every method the same."""

TUNED = {
    "adapter": 7_617_336,
    "pro-tuning": 7_174_656,
    "st-adapter": 7_147_008,
    "med-tuning": 10_906_368,
    "fact": 73_728 + 36_864,
    "lora": 147_456 + 36_864,
    "3dsam-adapter": 7_220_736 + 36_864,
}


@pytest.mark.parametrize("method", TUNED)
def test_methods_have_their_published_sizes(method: Method) -> None:
    with torch.device("meta"):
        network = peft_from_sam(a_full_sam("B"), method, classes=2)
    assert network.encoder.config.grid == (32, 32, 32)
    assert count(network) == TUNED[method] + NEW


def test_the_automatic_3dsam_adapter_tunes_its_published_parts() -> None:
    with torch.device("meta"):
        network = peft_from_sam(a_full_sam("B"), classes=2, crop=FULL)
    assert train_only(network, "head") == 7_088_256
    sam = r"encoder\.(position|patches\.plane|blocks\.\d+\.(mlp|attention\.(qkv|project|tables\.[hw])))"
    everything = sum(p.numel() for p in network.encoder.parameters())
    assert everything - train_only(network, sam) == 15_209_984


@pytest.mark.parametrize("size", ["L", "H"])
def test_larger_sams_have_larger_parts(size: str) -> None:
    with torch.device("meta"):
        network = peft_from_sam(a_full_sam(size), classes=2)
    depth, width = (24, 1024) if size == "L" else (32, 1280)
    assert network.encoder.config.taps == tuple(depth // 4 * level for level in (1, 2, 3))
    adapters = depth * (width * width + 27 * width // 2 + width // 2 + width // 2 + width)
    assert train_only(network, r"encoder\.blocks\.\d+\.before_attention") == adapters


# --- with clicks -----------------------------------------------------------------------------------------------------


def test_with_clicks_it_answers_an_object_and_learns_what_is_tuned(sam: dict[str, Tensor], a_crop: Tensor) -> None:
    network = sam_adapter_3d_from_sam(sam, crop=CROP, window=2)
    points = torch.tensor([[[2.0, 9.0, 14.0], [3.5, 0.0, 8.0]]])
    found = network.decode(network.encode(a_crop), points)
    assert found.logits.shape == (1, 1, *CROP)
    found.logits.square().mean().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == learning(network)
    before = learning(network)
    train_tuned(network)
    assert learning(network) == before


def test_with_clicks_it_has_its_published_size() -> None:
    with torch.device("meta"):
        network = sam_adapter_3d_from_sam(a_full_sam("B"))
    unused = 2 * 131_712  # the attention of both layers that the release stores and never calls
    assert count(network) == 25_462_400 - unused
    assert train_only(network, "sampler") == 3_164_160 - unused


def test_with_clicks_it_is_built_anew_from_sizes_too(sam: dict[str, Tensor]) -> None:
    config = peft_from_sam(sam, classes=2, crop=CROP, enlarged=4).config
    prompted(config).load_state_dict(sam_adapter_3d_from_sam(sam, crop=CROP).state_dict())
    with pytest.raises(BadInput, match="2 classes, object and background, got 3"):
        prompted(config.model_copy(update={"classes": 3}))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"method": "prompts"}, "'prompts' is not known: choose one of full, adapter"),
        ({"classes": 1}, "2 classes or more"),
        ({"crop": (16, 16, 18)}, r"\(16, 16, 18\) voxels, enlarged 4 times, is not whole patches of 16"),
        ({"enlarged": 3}, "enlarged 3 times"),
        ({"window": 0}, "a token or more"),
        ({"method": "sam-med2d", "crop": (16, 12, 12)}, "must be even, got 3 × 3"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(asked: dict, words: str, sam: dict[str, Tensor]) -> None:
    with pytest.raises(BadInput, match=words):
        peft_from_sam(sam, **({"classes": 2, "crop": CROP, "enlarged": 4} | asked))


def test_tensors_without_an_encoder_are_refused_and_other_crops_too(sam: dict[str, Tensor]) -> None:
    with pytest.raises(BadInput, match="give the weights of a 2D SAM"):
        sam_adapter_3d_from_sam({"encoder.position": torch.zeros(1)})
    network = peft_from_sam(sam, "lora", classes=2, crop=CROP, enlarged=4)
    with pytest.raises(BadInput, match=r"\(1, 16, 16, 16\), got \(1, 16, 16, 20\)"):
        network(torch.zeros(1, 1, 16, 16, 20))
