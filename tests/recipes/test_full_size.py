"""Every published network at its full size: random weights under the original's names are imported, kept, loaded again
and asked, but for the two largest. Nothing is downloaded, and nothing of what comes out is looked at but its grid.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from volsam import Click, Session, Volume, load_model
from volsam.evaluation.published.ma_sam import MaSam
from volsam.inference.automatic import AutomaticModel
from volsam.inference.session import Model
from volsam.recipes.bench import compared
from volsam.recipes.importing import import_checkpoint, load_automatic

pytestmark = pytest.mark.slow

HUGE = {"width": 1280, "depth": 32, "heads": 16, "wide": (7, 15, 23, 31)}
"""SAM's ViT-H."""


def random_file(build: Callable[[], nn.Module], path: Path, pair: compared.Pair | None = None) -> int:
    """A file of random weights as the original has them; returns how many numbers they are."""
    with torch.device("meta"):
        shapes = {name: tensor for name, tensor in build().state_dict().items() if not name.endswith("attn_mask")}
    g = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {
        name: torch.empty(tensor.shape).normal_(std=0.02, generator=g) for name, tensor in shapes.items()
    }
    if pair is not None:
        tensors = compared.under_family_names(pair, tensors)
    torch.save(tensors, path)
    return sum(tensor.numel() for tensor in tensors.values())


def one_slice(volume: Volume) -> Volume:
    return Volume(volume.data[..., 14:15], volume.grid.crop((0, 0, 14), (*volume.grid.shape[:2], 15)), "one slice")


@pytest.mark.parametrize("name", ["fastsam3d", "sam-med3d", "sam-med2d"])
def test_a_promptable_network_answers_a_click(
    name: str, a_home: Path, tmp_path: Path, a_small_ct: Volume, a_click: Click
) -> None:
    volume = one_slice(a_small_ct) if compared.PAIRS[name].kind == "slice" else a_small_ct
    session = Session(kept(name, tmp_path / f"{name}.pth"), volume)
    session.add(a_click)
    assert session.mask.grid == volume.grid
    assert session.quality is not None
    assert np.isfinite(session.quality)


def test_3dsam_adapter_is_kept_and_loaded(a_home: Path, tmp_path: Path) -> None:
    """One look of it takes a CPU minutes; smaller ones run in other tests."""
    kept("3dsam-adapter", tmp_path / "3dsam-adapter-kits.pth")  # it asks for a name that tells the task


def kept(name: str, path: Path) -> Model:
    """A promptable model of random weights, once they are kept; the file is gone by then."""
    pair = compared.PAIRS[name]
    random_file(lambda: pair.build(pair.size), path, pair)
    model = import_checkpoint(path)
    path.unlink()
    assert model.card.family == pair.family
    return load_model(model.name, device="cpu")


def test_autosam_labels_a_slice(a_home: Path, tmp_path: Path, a_small_ct: Volume) -> None:
    pair = compared.PAIRS["autosam"]
    random_file(lambda: pair.build(pair.size), tmp_path / "autosam.pth")
    automatic = loaded(tmp_path / "autosam.pth")
    volume = one_slice(a_small_ct)
    labels = automatic.segment(volume)
    assert labels.grid == volume.grid
    assert len(automatic.labels) == 14
    assert labels.data.max() < 14


def test_ma_sam_on_the_largest_sam_is_kept_and_loaded(a_home: Path, tmp_path: Path) -> None:
    """730 million weights, 2.9 GB. A stack would take it minutes on a CPU; smaller ones run in other tests."""
    path = tmp_path / "ma-sam-h.pth"
    count = random_file(lambda: MaSam(**HUGE), path)
    assert 729e6 < count < 731e6
    assert len(loaded(path).labels) == 13


def loaded(path: Path) -> AutomaticModel:
    """The model of a file, once it is kept; the file is gone by then."""
    model = import_checkpoint(path)
    path.unlink()
    automatic = load_automatic(model.name, "cpu")
    assert automatic is not None
    return automatic
