import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.adapters.freeze import train_only
from volsam.errors import BadInput
from volsam.evaluation.published.sam_adapter_3d import SamAdapter3D as PublishedSamAdapter3D
from volsam.inference.volumes import CropModel
from volsam.models.features import Prediction
from volsam.recipes.families import sam_adapter_3d
from volsam.recipes.families.family import Described, built, differences, families, family_of, fill, on_no_device
from volsam.recipes.families.fixture import weight
from volsam.recipes.families.parity import verify
from volsam.recipes.families.sam_adapter_3d import ORGANS, SamAdapter3D, convert, crop_model, train_tuned

from . import reference_sam_adapter_3d as reference
from .manifests import described, manifest, needs_manifests

RECORDED = Path(__file__).parent.parent / "reference" / "sam_adapter3d.json"
ARRAYS = {"feature0", "feature1", "feature2", "feature3", "prompted_feature3", "logits"}

SMALL = {
    "grid": 4, "embed_dim": 24, "depth": 4, "num_heads": 3, "window_size": 3, "global_attn_indexes": [1],
    "cubic_window_size": 2, "num_slice": 4, "out_chans": 16, "prompt_depth": 1, "prompt_heads": 4,
    "prompt_mlp_dim": 20, "mlahead_channels": 6, "patch_voxels": 16,
}  # fmt: skip
POINTS = [[0.0, 15.0, 7.0], [3.25, 8.0, 12.0]]
OTHER_SIZES = [
    (SMALL, 1, POINTS),
    # One window, which the shift splits.
    (SMALL | {"cubic_window_size": 4, "num_slice": 1, "depth": 8}, 2, [[15.0, 0.0, 1.0]]),
    (SMALL | {"grid": 6, "cubic_window_size": 3, "prompt_depth": 3, "patch_voxels": 24}, 3, POINTS),
    (SMALL | {"grid": 2, "cubic_window_size": 1, "embed_dim": 16, "num_heads": 2}, 4, []),  # no clicks
]  # fmt: skip


def changed(folder: Path, **parts: object) -> Path:
    path = folder / RECORDED.name
    path.with_suffix(".npz").write_bytes(RECORDED.with_suffix(".npz").read_bytes())
    path.write_text(json.dumps(json.loads(RECORDED.read_text()) | parts))
    return path


def the_weights(c: Mapping[str, object] = SMALL, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the original, in the naming of a fixture."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in reference.build(dict(c)).state_dict().items()}
    return {name: torch.from_numpy(np.asarray(weight(name, shape, seed))) for name, shape in shapes.items()}


def a_network(weights: Mapping[str, Tensor], **facts: object) -> SamAdapter3D:
    """As when a file is loaded."""
    family, shapes = families["3dsam-adapter"], {name: tuple(tensor.shape) for name, tensor in weights.items()}
    network = on_no_device(family, Described("these weights", shapes, {"num_heads": 3, "prompt_heads": 4} | facts))
    fill(network, family, weights, "these weights")
    assert isinstance(network, SamAdapter3D)
    return network.requires_grad_(False)


# --- what the original computes --------------------------------------------------------------------------------------


def test_every_recorded_array_of_the_original_agrees() -> None:
    found = verify(RECORDED)
    assert {difference.name for difference in found} == ARRAYS
    assert all(difference.max_difference < 2e-5 for difference in found), found


@pytest.mark.parametrize(("c", "seed", "points"), OTHER_SIZES)
def test_networks_of_other_sizes_agree_as_well(c: dict, seed: int, points: list, tmp_path: Path) -> None:
    found = verify(reference.record(tmp_path, c, seed, points))
    assert {difference.name for difference in found} == ARRAYS
    assert all(difference.max_difference < 5e-5 for difference in found), found


def test_shapes_tell_all_sizes_but_where_points_are(tmp_path: Path) -> None:
    assert all(d.agrees for d in verify(changed(tmp_path, config={"patch_voxels": 32})))


def test_another_seed_does_not_agree(tmp_path: Path) -> None:
    assert not any(difference.agrees for difference in verify(changed(tmp_path, seed=1)))


def test_the_recorded_arrays_need_the_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    config = sam_adapter_3d.EncoderConfig
    monkeypatch.setattr(sam_adapter_3d, "EncoderConfig", lambda **sizes: config(**(sizes | {"shift": (0, 0, 0)})))
    assert min(difference.max_difference for difference in verify(RECORDED)) > 0.01


# --- from a crop and clicks to a mask --------------------------------------------------------------------------------

CUBE = SMALL | {"num_slice": 16}
"""A crop of 16³ voxels, which is enlarged four times."""


def published_prediction(weights: Mapping[str, Tensor], crop: Tensor, points: Tensor) -> Tensor:
    """Logits of both classes, by the original's way: enlarge the crop, slice it, and so on."""
    parts = reference.build(CUBE)
    parts.load_state_dict(parts.state_dict() | {n: t for n, t in weights.items() if not n.endswith("attn_mask")})
    whole = PublishedSamAdapter3D.__new__(PublishedSamAdapter3D)
    torch.nn.Module.__init__(whole)
    whole.edge, whole.prompt_encoders = 16, torch.nn.ModuleList([parts["prompt_encoder"]])
    whole.image_encoder, whole.mask_decoder = parts["image_encoder"], parts["mask_decoder"]
    with torch.no_grad():
        return whole.decode(crop, whole.encode(crop), points[..., [0, 2, 1]])


@pytest.fixture
def a_crop() -> Tensor:
    return torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_crop_and_clicks_give_the_mask_of_the_original(seed: int, a_crop: Tensor) -> None:
    weights, points = the_weights(CUBE, seed), torch.tensor([[[2.0, 9.0, 14.0], [3.5, 0.0, 8.0]]])
    network = a_network(weights)
    features = network.encode(a_crop)
    found = network.decode(features, points)
    wanted = published_prediction(weights, a_crop, points)
    odds = wanted[:, 1:] - wanted[:, :1]
    assert features.embedding.shape == (1, 16, 4, 4, 4)
    assert [tap.shape for tap in features.taps[:3]] == [(1, 16, 4, 4, 4)] * 3
    assert_close(found.logits, odds, rtol=0, atol=5e-5)
    assert_close(found.logits.sigmoid(), wanted.softmax(dim=1)[:, 1:], rtol=0, atol=2e-5)
    sure = wanted.softmax(dim=1)[:, 1:][odds > 0]
    assert 0 < len(sure) < odds.numel()
    assert_close(found.quality, sure.mean()[None, None], rtol=0, atol=1e-5)
    assert found.low_res.shape == (1, 1, 8, 8, 8)
    assert_close(found.logits, F.interpolate(found.low_res, size=(16, 16, 16), mode="trilinear", align_corners=True))


def test_clicks_are_along_depth_height_and_width(a_crop: Tensor) -> None:
    weights = the_weights(CUBE)
    network, one = a_network(weights), torch.tensor([[[1.0, 6.0, 13.0]]])
    features = network.encode(a_crop)
    wrong = network.decode(features, one[..., [0, 2, 1]]).logits
    assert (network.decode(features, one).logits - wrong).abs().max() > 1e-3


def test_sets_of_clicks_in_one_crop_are_answered_together_as_apart(a_crop: Tensor) -> None:
    network = a_network(the_weights(CUBE))
    features, points = network.encode(a_crop), torch.tensor([[[1.0, 6.0, 13.0]], [[8.0, 8.0, 8.0]]])
    together = network.decode(features, points)
    apart = [network.decode(features, one[None]) for one in points]
    for part in ("logits", "quality", "low_res"):
        assert_close(getattr(together, part), torch.cat([getattr(one, part) for one in apart]), rtol=0, atol=1e-5)


def test_a_mask_of_nothing_has_no_quality(a_crop: Tensor) -> None:
    network = a_network(the_weights(CUBE))
    torch.nn.init.zeros_(network.head.last.weight)
    found = network.decode(network.encode(a_crop), torch.ones(1, 1, 3))
    assert isinstance(found, Prediction)
    assert found.quality.tolist() == [[0.0]]


def test_a_crop_of_another_size_is_refused() -> None:
    with pytest.raises(BadInput, match=r"\(1, 16, 16, 16\), got \(1, 16, 16, 20\)"):
        a_network(the_weights(CUBE)).encode(torch.zeros(1, 1, 16, 16, 20))


def test_a_crop_enlarged_less_is_larger() -> None:
    network = a_network(the_weights(CUBE), enlarged=2)
    assert network.encoder.config.image == (32, 32, 32)
    with torch.no_grad():
        found = network.decode(network.encode(torch.randn(1, 1, 32, 32, 32)), torch.ones(1, 1, 3))
    assert found.logits.shape == (1, 1, 32, 32, 32)
    assert found.low_res.shape == (1, 1, 8, 8, 8)


@pytest.mark.parametrize("task", ORGANS)
def test_the_name_tells_how_a_scan_is_prepared(task: str) -> None:
    model = crop_model(a_network(the_weights(CUBE)), f"My-{task.upper()}", "cpu")
    assert isinstance(model, CropModel)
    assert (model.edge, model.spacing) == (16, 1.0)
    assert (model.window, model.mean, model.spread) == (ORGANS[task].window, ORGANS[task].mean, ORGANS[task].spread)


def test_a_name_without_a_task_is_refused_and_so_is_a_crop_that_is_no_cube() -> None:
    with pytest.raises(BadInput, match="kits, lits, pancreas, colon"):
        crop_model(a_network(the_weights(CUBE)), "best", "cpu")
    with pytest.raises(BadInput, match="cubes"):
        crop_model(a_network(the_weights(SMALL)), "kits", "cpu")


ENCODE = """
import torch
from volsam.evaluation.processes import own_peak
from volsam.recipes.families.family import Described
from volsam.recipes.families.sam_adapter_3d import build
from tests.recipes.reference_sam_adapter_3d import build as reference
c = {sizes}
with torch.device("meta"):
    shapes = {{name: tuple(tensor.shape) for name, tensor in reference(c).state_dict().items()}}
network = build(Described("", shapes, {{"num_heads": c["num_heads"]}})).eval()
with torch.inference_mode():
    network.encoder.patches(torch.zeros(1, 1, 128, 128, 128))
    before = own_peak()
    features = network.encode(torch.zeros(1, 1, 128, 128, 128))
    network.decode(features, torch.zeros(1, 1, 3))
print(own_peak() - before)
"""


@pytest.mark.slow
def test_a_large_crop_needs_little_memory() -> None:
    """The logits of all windows alone would take 800 MB, the slices of the enlarged crop 1.6 GB."""
    sizes = SMALL | {
        "grid": 32, "num_slice": 16, "cubic_window_size": 8, "embed_dim": 48, "num_heads": 12, "mlahead_channels": 8,
        "window_size": 14,
    }  # fmt: skip
    command = [sys.executable, "-c", ENCODE.format(sizes=sizes)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 500  # MiB


# --- names and sizes -------------------------------------------------------------------------------------------------


def as_released(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the naming of the released file, which holds a prompt encoder for every level."""
    parts = {"image_encoder": "encoder_dict", "mask_decoder": "decoder_dict"}
    named = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        if part == "prompt_encoder":
            named |= {f"feature_dict[{level}].{rest}": tensor + (3 - level) for level in range(4)}
        else:
            named[f"{parts[part]}.{rest}"] = tensor
    return named


def test_the_names_of_the_released_file_mean_the_same(a_crop: Tensor) -> None:
    weights, points = the_weights(CUBE), torch.ones(1, 1, 3)
    one, other = a_network(weights), a_network(as_released(weights))
    assert_close(
        other.decode(other.encode(a_crop), points).logits, one.decode(one.encode(a_crop), points).logits, rtol=0, atol=0
    )


@pytest.mark.parametrize("named", [dict, as_released])
def test_weights_are_recognised_under_either_naming(named: type) -> None:
    weights = named(the_weights())
    assert family_of(described(weights)).name == "3dsam-adapter"


def test_windows_without_masks_are_those_of_the_release() -> None:
    c = CUBE | {"grid": 8, "cubic_window_size": 8}
    weights = {name: tensor for name, tensor in the_weights(c).items() if not name.endswith("attn_mask")}
    config = a_network(weights).encoder.config
    assert (config.window, config.shift, config.shifted_blocks) == ((8, 8, 8), (4, 4, 4), (0, 2))


def test_the_scalar_of_the_position_bias_goes_into_the_tables() -> None:
    table = torch.randn(5, 8)
    one, other = "image_encoder.blocks.0.attn.", "image_encoder.blocks.1.attn."
    found = convert({f"{one}rel_pos_h": table, f"{one}lr": torch.tensor(0.5), f"{other}lr": torch.tensor(7.0)})
    assert list(found) == ["encoder.blocks.0.attention.tables.h"]
    assert torch.equal(found["encoder.blocks.0.attention.tables.h"], table / 2)


def test_what_is_unknown_is_refused() -> None:
    for name in (
        "image_encoder.surprise",
        "prompt_encoder.transformer.layers.0.cross_attn_token_to_images",
        "feature_dict[4].x",
        "prompt_encoder.mask_downscaling.0.weight",
    ):
        weights = the_weights() | {name: torch.zeros(1)}
        with pytest.raises(BadInput, match="left over"):
            a_network(weights)


def test_a_missing_weight_is_named() -> None:
    weights = the_weights()
    del weights["mask_decoder.mlahead.head4.3.weight"]
    with pytest.raises(BadInput, match=r"head\.levels\.2\.second\.weight is missing"):
        a_network(weights)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("image_encoder.blocks.0.attn_mask", (8, 27, 27), "do not fit"),
        ("image_encoder.blocks.0.attn_mask", (4, 8, 8), "do not fit"),
        ("mask_decoder.cls.3.weight", (3, 6, 3, 3, 3), "3 classes"),
        ("image_encoder.depth_embed", (4, 24), "must have 3 axes"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(name: str, shape: tuple[int, ...], words: str) -> None:
    weights = the_weights() | {name: torch.zeros(shape)}
    with pytest.raises(BadInput, match=words):
        built(families["3dsam-adapter"], described(weights))


# --- full size -------------------------------------------------------------------------------------------------------

RELEASE = {
    "grid": 32, "embed_dim": 768, "depth": 12, "num_heads": 12, "window_size": 14, "global_attn_indexes": [2, 5, 8, 11],
    "cubic_window_size": 8, "num_slice": 16, "out_chans": 256, "prompt_depth": 2, "prompt_heads": 8,
    "prompt_mlp_dim": 2048, "mlahead_channels": 128,
}  # fmt: skip
TUNED = {
    r"encoder\.blocks\.\d+\.before_attention": 7_220_736,
    r"encoder\.blocks\.\d+\.norm": 36_864,
    r"encoder\.patches\.depth": 24_576,
    r"encoder\.patches\.merge": 13_056,
    r".*\.tables\.d": 46_336,
    r"encoder\.(neck|at_taps)": 7_868_416,
    r"sampler": 3_164_160 - 2 * 131_712,  # without the attention of both layers that is stored and never called
    r"head": 7_088_256,
}


@pytest.fixture(scope="module")
def the_release() -> SamAdapter3D:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in reference.build(RELEASE).state_dict().items()}
    network = on_no_device(families["3dsam-adapter"], Described("the release", shapes))
    assert isinstance(network, SamAdapter3D)
    return network


@pytest.mark.parametrize("part", TUNED)
def test_a_tuned_part_has_its_published_size(part: str, the_release: SamAdapter3D) -> None:
    assert train_only(the_release, part) == TUNED[part]


def test_all_tuned_parts_together_have_their_published_size(the_release: SamAdapter3D) -> None:
    assert train_tuned(the_release) == sum(TUNED.values()) == 25_462_400 - 263_424
    frozen = {name for name, weights in the_release.named_parameters() if not weights.requires_grad}
    assert {"encoder.position", "encoder.patches.plane.weight", "encoder.blocks.3.mlp.layers.0.weight"} <= frozen
    assert len(frozen) == 3 + 12 * 10


def test_the_release_looks_at_128_voxels(the_release: SamAdapter3D) -> None:
    config = the_release.encoder.config
    assert config.image == (128, 128, 128)
    assert (config.patch, config.grid) == ((4, 4, 4), (32, 32, 32))
    assert config.taps == (3, 6, 9)
    assert config.shifted_blocks == (0, 2, 4, 6, 8, 10)


@needs_manifests
def test_the_official_checkpoint_fits_with_nothing_missing_and_nothing_left_over() -> None:
    tensors = manifest("sam_adapter3d")
    family = family_of(described(tensors))
    assert family.name == "3dsam-adapter"
    network = on_no_device(family, described(tensors))
    assert differences(network, convert(tensors)) == []
    # As a file has it: four prompt encoders, each under its number.
    numbered = {name.replace("[i]", f"[{level}]"): tensor for name, tensor in tensors.items() for level in range(4)}
    assert len(numbered) > len(tensors)
    assert differences(network, convert(numbered)) == []
