import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from volsam.errors import BadInput, VolsamError
from volsam.models.encoder import EncoderConfig
from volsam.models.prompt_encoder import PromptConfig
from volsam.recipes.families import sam
from volsam.recipes.families.family import Family
from volsam.recipes.families.fixture import read_fixture
from volsam.recipes.families.parity import ArrayDifference, verify

from ..models import reference_sam

RECORDED = Path(__file__).parent.parent / "reference"
NETWORKS = ("sam2d", "sam_med3d", "fastsam3d_encoder")

SAM_2D = {
    "img_size": 80, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3, "window_size": 2,
    "global_attn_indexes": [0], "out_chans": 48, "transformer_mlp_dim": 40, "decoder_heads": 4, "decoder_depth": 3,
    "iou_head_hidden_dim": 20, "mask_in_chans": 8,
}  # fmt: skip
SAM_3D = {
    "img_size": 40, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "window_size": 4,
    "global_attn_indexes": [2], "out_chans": 48, "iou_head_hidden_dim": 24, "mask_in_chans": 32,
}  # fmt: skip
STUDENT = {
    "img_size": 40, "patch_size": 8, "embed_dim": 24, "depth": 5, "num_heads": 2, "window_size": 0,
    "global_attn_indexes": [], "out_chans": 16, "skip_layer": 1,
}  # fmt: skip
OTHER_SIZES = [
    ("sam2d", SAM_2D, 3),
    ("sam2d", SAM_2D | {"img_size": 48, "window_size": 14, "global_attn_indexes": []}, 7),
    ("sam2d", SAM_2D | {"window_size": 0}, 1),
    ("sam_med3d", SAM_3D, 5),
    ("sam_med3d", SAM_3D | {"img_size": 24, "window_size": 7, "depth": 2, "global_attn_indexes": [1]}, 11),
    ("sam_med3d", SAM_3D | {"decoder_heads": 4, "transformer_mlp_dim": 64, "window_size": 5}, 12),
    ("fastsam3d_encoder", STUDENT, 2),
    ("fastsam3d_encoder", STUDENT | {"window_size": 3, "skip_layer": 0, "global_attn_indexes": [1]}, 4),
]


def copied(network: str, folder: Path) -> Path:
    for ending in (".json", ".npz"):
        (folder / network).with_suffix(ending).write_bytes((RECORDED / network).with_suffix(ending).read_bytes())
    return folder / f"{network}.json"


def changed(path: Path, **parts: object) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return path


@pytest.mark.parametrize("network", NETWORKS)
def test_every_recorded_array_of_a_published_network_agrees(network: str) -> None:
    differences = verify(RECORDED / f"{network}.json")
    assert len(differences) == {"sam2d": 19, "sam_med3d": 11, "fastsam3d_encoder": 4}[network]
    assert all(d.agrees and d.max_difference < 2e-5 for d in differences), differences


@pytest.mark.parametrize("network", NETWORKS)
def test_the_reference_of_these_tests_gives_the_recorded_arrays_too(network: str) -> None:
    fixture = read_fixture(RECORDED / f"{network}.json")
    rank = {"sam2d": 2, "sam_med3d": 3, "fastsam3d_encoder": 3}[network]
    student = network == "fastsam3d_encoder"
    shapes = (reference_sam.encoder_shapes if student else reference_sam.sam_shapes)(dict(fixture.facts), rank)
    assert shapes == fixture.shapes
    given = dict(fixture.arrays)
    found = (
        reference_sam.compute_student(dict(fixture.facts), shapes, fixture.seed)
        if student
        else reference_sam.compute_sam(dict(fixture.facts), shapes, fixture.seed, given)
    )
    compared = [name for name in fixture.arrays if name in found]
    assert len(compared) == {"sam2d": 19, "sam_med3d": 11, "fastsam3d_encoder": 4}[network]
    for name in compared:
        np.testing.assert_allclose(
            reference_sam.as_stored(name, found[name].numpy()), fixture.arrays[name], atol=2e-5, rtol=0
        )


@pytest.mark.parametrize(("network", "config", "seed"), OTHER_SIZES)
def test_networks_of_other_sizes_agree_as_well(network: str, config: dict, seed: int, tmp_path: Path) -> None:
    differences = verify(reference_sam.record(tmp_path, network, config, seed))
    assert len(differences) >= 4
    assert all(d.agrees for d in differences), differences


def farthest(path: Path, monkeypatch: pytest.MonkeyPatch, config: type[BaseModel], **quirk: object) -> float:
    """The largest difference when one published quirk is taken back."""
    monkeypatch.setattr(sam, config.__name__, lambda **sizes: config(**(sizes | quirk)))
    return max(difference.max_difference for difference in verify(path))


@pytest.mark.parametrize("network", ["sam_med3d", "fastsam3d_encoder"])
def test_the_recorded_arrays_need_the_published_bias(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert farthest(RECORDED / f"{network}.json", monkeypatch, EncoderConfig, bias="aligned") > 0.01


def test_the_recorded_arrays_need_the_swapped_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert farthest(RECORDED / "sam_med3d.json", monkeypatch, PromptConfig, dense_axes=(0, 1, 2)) > 0.01


def test_the_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    path = copied("sam2d", tmp_path)
    for ending in (".json", ".npz"):
        path.with_suffix(ending).rename(tmp_path / f"fastsam3d_encoder{ending}")
    assert all(d.agrees for d in verify(tmp_path / "fastsam3d_encoder.json"))


@pytest.mark.parametrize(("part", "value"), [("seed", 1)])
def test_another_seed_does_not_agree(part: str, value: int, tmp_path: Path) -> None:
    differences = verify(changed(copied("sam2d", tmp_path), **{part: value}))
    assert not any(d.agrees for d in differences if d.name == "embedding")


def test_an_array_of_another_shape_is_infinitely_far(tmp_path: Path) -> None:
    path = copied("fastsam3d_encoder", tmp_path)
    np.savez(path.with_suffix(".npz"), stage0=np.zeros((1, 2, 2, 3, 48), np.float32))
    assert verify(path) == [ArrayDifference("stage0", (1, 2, 2, 3, 48), float("inf"), agrees=False)]


def test_an_array_with_holes_does_not_agree(tmp_path: Path) -> None:
    path = copied("fastsam3d_encoder", tmp_path)
    np.savez(path.with_suffix(".npz"), stage0=np.full((1, 4, 4, 4, 48), np.nan, np.float32))
    assert not verify(path)[0].agrees


def test_a_family_can_be_added_by_whoever_knows_it(tmp_path: Path) -> None:
    path = changed(copied("sam2d", tmp_path), config={"mine": 1}, state_dict={"w": [2]})
    np.savez(path.with_suffix(".npz"), out=np.ones(3, np.float32))
    mine = Family(
        name="mine",
        title="Mine",
        source="",
        licence="",
        prompts=(),
        recognises=lambda described: "w" in described.shapes,
        build=lambda described: torch.nn.ParameterDict({"w": torch.zeros(2)}),
        convert=dict,
        compute=lambda network, fixture: {"out": torch.ones(3)},
    )
    assert [d.agrees for d in verify(path, families=[mine])] == [True]


# --- refusals ------------------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        verify(path)
    assert isinstance(caught.value, VolsamError)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_fixture_of_an_unknown_network_is_refused(tmp_path: Path) -> None:
    path = changed(copied("sam2d", tmp_path), config={}, state_dict={"some.weight": [3]})
    assert "known are" in refusal(path)


def test_a_network_with_parts_that_sam_lacks_is_not_taken_for_sam(tmp_path: Path) -> None:
    path = copied("sam2d", tmp_path)
    shapes = json.loads(path.read_text())["state_dict"] | {"image_encoder.blocks.0.adapter.weight": [48]}
    assert "fit no network known here" in refusal(changed(path, state_dict=shapes))


def test_missing_arrays_are_refused(tmp_path: Path) -> None:
    path = copied("sam2d", tmp_path)
    path.with_suffix(".npz").unlink()
    assert "sam2d.npz: missing" in refusal(path)


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    path = copied("sam2d", tmp_path)
    path.with_suffix(".npz").write_bytes(b"not an archive")
    assert "not an archive of arrays" in refusal(path)


def test_cut_off_arrays_are_refused(tmp_path: Path) -> None:
    path = copied("sam2d", tmp_path)
    stored = path.with_suffix(".npz")
    stored.write_bytes(stored.read_bytes()[:20_000])
    assert "not an archive of arrays" in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "nothing.json")


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"seed": 0}', '{"seed": 0, "config": {}, "state_dict": {"a": 3}}'])
def test_malformed_json_is_refused(text: str, tmp_path: Path) -> None:
    path = copied("sam2d", tmp_path)
    path.write_text(text)
    assert "not a fixture" in refusal(path)


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        ("image_encoder.blocks.0.norm1.weight", [47], "encoder.blocks.0.norm1.weight is [47] and must be [48]"),
        ("image_encoder.blocks.0.norm1.weight", None, "encoder.blocks.0.norm1.weight is missing"),
        ("image_encoder.blocks.0.norm3.weight", [48], "encoder.blocks.0.norm3.weight is left over"),
        (
            "prompt_encoder.point_embeddings.3.weight",
            None,
            "labels.weight is [4, 32] and must be [5, 32]",
        ),
        ("prompt_encoder.no_mask_embed.weight", [1, 31], "prompt_encoder.no_mask is [31] and must be [32]"),
        ("image_encoder.neck.2.weight", [32, 32, 1, 1], "must be [32, 32, 1, 3, 3]"),
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", [2, 15], "must be [3, 16]"),
        ("mask_decoder.surprise", [1], "mask_decoder.surprise is left over"),
    ],
)
def test_weights_must_be_exactly_those_of_the_network(
    name: str, shape: list[int] | None, word: str, tmp_path: Path
) -> None:
    path = copied("sam2d", tmp_path)
    shapes = json.loads(path.read_text())["state_dict"]
    shapes.pop(name, None)
    if shape is not None:
        shapes[name] = shape
    assert word in refusal(changed(path, state_dict=shapes))


@pytest.mark.parametrize(
    "config",
    [
        {"img_size": "large"},
        {"depth": -1},
        {"depth": 0},
        {"patch_size": 0},
        {"num_heads": 5},
        {"global_attn_indexes": 3},
    ],
)
def test_a_config_without_its_sizes_is_refused(config: dict, tmp_path: Path) -> None:
    path = copied("sam2d", tmp_path)
    whole = json.loads(path.read_text())["config"]
    refusal(changed(path, config=whole | config))


@pytest.mark.parametrize("network", NETWORKS)
def test_shapes_alone_tell_the_sizes_of_a_network(network: str, tmp_path: Path) -> None:
    assert all(d.agrees for d in verify(changed(copied(network, tmp_path), config={})))


def test_arrays_that_the_network_does_not_compute_are_refused(tmp_path: Path) -> None:
    path = copied("fastsam3d_encoder", tmp_path)
    np.savez(path.with_suffix(".npz"), stage9=np.zeros(1, np.float32))
    assert "stage9" in refusal(path)


def test_a_scene_without_its_prompts_is_refused(tmp_path: Path) -> None:
    path = copied("sam2d", tmp_path)
    np.savez(path.with_suffix(".npz"), **{"points.sparse": np.zeros((1, 3, 32), np.float32)})
    assert "points_xy" in refusal(path)
