"""The small 2D SAM that ships: what its file holds, that it answers, and that training can begin from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from volsam import Session, load_model
from volsam.errors import BadFile
from volsam.evaluation.metrics import dice
from volsam.inference.slices import SliceModel
from volsam.models.original_names import from_original
from volsam.prompts import Click
from volsam.recipes.families.family import Described, built, differences, family_of
from volsam.recipes.recipe import shipped
from volsam.recipes.sam_mini import WEIGHTS, build, tensors
from volsam.volume import Volume


@pytest.fixture(scope="module")
def described() -> Described:
    return Described("sam-mini", {name: tuple(tensor.shape) for name, tensor in tensors().items()})


def test_its_file_is_small() -> None:
    assert WEIGHTS.stat().st_size < 13_000_000
    assert sum(tensor.numel() for tensor in tensors().values()) < 8_000_000


def test_its_weights_are_told_to_be_those_of_a_sam_and_fill_one(described: Described) -> None:
    family = family_of(described)
    assert family.name == "sam"
    network = built(family, described)
    assert differences(network, from_original(tensors(), "sam")) == []
    assert network.config.encoder.image == (1, 256, 256)
    assert network.config.encoder.patch == (1, 16, 16)


def test_its_tensors_are_finite_and_in_single_precision() -> None:
    for name, tensor in tensors().items():
        assert tensor.dtype == torch.float32, name
        assert torch.isfinite(tensor).all(), name


def test_a_click_finds_most_of_a_ball_in_its_slice(a_small_ct: Volume, a_ball: np.ndarray, a_click: Click) -> None:
    model = load_model("sam-mini", device="cpu")
    assert isinstance(model, SliceModel)
    assert model.name == "sam-mini"
    session = Session(model, a_small_ct)
    session.add(a_click)
    index = int(np.rint(a_small_ct.grid.to_voxels(a_click.position))[2])
    assert dice(session.mask.data[0, ..., index] > 0, a_ball[..., index]) > 0.6


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(WEIGHTS.read_bytes()[:-10])
    with pytest.raises(BadFile, match=r"short\.safetensors is not a whole safetensors file"):
        build(path)


def test_its_card_names_licence_and_checksum() -> None:
    recipe = shipped()["sam-mini"]
    assert recipe.card is not None
    card = recipe.card.read_text(encoding="utf-8")
    assert "Apache-2.0" in card
    assert recipe.checksum() in card


def test_asking_what_ships_loads_no_torch() -> None:
    code = "import sys; from volsam.recipes.recipe import shipped; print(*shipped()); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sam-mini", "volsam-s"]
