from pathlib import Path

import pytest
import torch

from volsam.inference.slices import SAM_MED2D
from volsam.recipes.families.family import Described, built, families, family_of
from volsam.recipes.families.parity import verify

from .manifests import fits, needs_manifests
from .published_networks import SMALL, record_sam_med2d

RECORDED = Path(__file__).parent.parent / "reference"


def test_every_recorded_array_agrees() -> None:
    differences = verify(RECORDED / "sam_med2d.json")
    assert [d.name for d in differences] == ["embedding", "logits_multi", "iou_multi"]
    assert all(d.agrees and d.max_difference < 2e-5 for d in differences), differences


@pytest.mark.parametrize(
    ("changes", "seed"),
    [({}, 1), ({"window_size": 5, "global_attn_indexes": [0], "img_size": 128}, 2), ({"depth": 1, "num_heads": 2}, 3)],
)
def test_other_sizes_agree_as_well(changes: dict, seed: int, tmp_path: Path) -> None:
    differences = verify(record_sam_med2d(tmp_path, SMALL | changes, seed))
    assert len(differences) == 3
    assert all(d.agrees for d in differences), differences


@needs_manifests
def test_the_official_checkpoint_fits_with_nothing_missing_and_nothing_left_over() -> None:
    assert fits("sam_med2d") == ("sam-med2d", [])


def test_the_network_stands_behind_a_session() -> None:
    family = families["sam-med2d"]
    described = Described("here", small_shapes())
    assert family_of(described) is family
    assert family.engine is not None
    model = family.engine(built(family, described), "mine", "cpu")
    assert model.name == "mine"
    assert model.style is SAM_MED2D


def small_shapes() -> dict[str, tuple[int, ...]]:
    import json

    shapes = json.loads((RECORDED / "sam_med2d.json").read_text())["state_dict"]
    return {name: tuple(shape) for name, shape in shapes.items()}


def test_a_grid_that_the_adapter_cannot_halve_is_refused() -> None:
    shapes = small_shapes() | {"image_encoder.pos_embed": (1, 5, 5, 48)}
    described = Described("here", shapes)
    with pytest.raises(Exception, match="even, got 5 × 5"), torch.device("meta"):
        built(families["sam-med2d"], described)
