"""The scripts that train and score sam-mini, on invented scenes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from volsam.models.original_names import from_original

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks" / "sam_mini"
NAMES = ("muon", "network", "slices", "train", "scenes", "evaluate", "pretraining")

pytest.importorskip("SimpleITK")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The trainer, imported as it is when it is run; its neighbours' names are common ones, and are forgotten again."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("train")
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def a_sampler(script: ModuleType) -> object:
    """Slices of one scene: a bright block with a core in noise, also as a CT."""
    scenes = sys.modules["scenes"]
    rng = np.random.default_rng(0)
    labels = np.zeros((40, 44, 36), np.uint16)
    labels[10:30, 12:30, 8:28] = 1
    labels[16:24, 18:26, 14:22] = 2
    image = (labels * 60.0 + rng.normal(0, 5, labels.shape)).astype(np.float32)
    spacing = np.array([1.0, 1.0, 2.0])
    made = []
    for values in (image, image - 1000 * (labels == 0)):
        targets = scenes.targets_of(labels, 0, spacing, rng)
        made.append(scenes.Scene(values, spacing, [labels], targets, targets))
    return sys.modules["slices"].SliceSampler(made, made, (0.4, 0.3, 0.3), 4, rng)


def test_a_slice_has_targets_inside_the_scan(a_sampler) -> None:
    for _ in range(12):
        drawn = a_sampler.draw()
        assert drawn.image.shape == drawn.valid.shape == (256, 256)
        assert drawn.image.dtype == np.uint8
        assert drawn.masks.shape == (4, 256, 256)
        assert (drawn.masks.sum(axis=(1, 2)) >= 40).all()
        assert not (drawn.masks & ~drawn.valid).any()


def test_prompts_say_the_truth(script, a_sampler) -> None:
    batch = script.collate([a_sampler.draw() for _ in range(4)])
    generator = torch.Generator().manual_seed(0)
    assert batch.image.shape == (4, 3, 1, 256, 256)
    kinds = set()
    for _ in range(12):
        prompts = script.first_prompts(batch, generator)
        kinds.add(prompts.boxes is None)
        row, column = prompts.points[:, 0, 1].long(), prompts.points[:, 0, 2].long()
        assert batch.masks[torch.arange(16), row, column].all()
        if prompts.boxes is not None:
            corners = prompts.boxes[:, 0, :, 1:].round().long().clamp(min=0).tolist()
            for mask, ((top, left), (bottom, right)) in zip(batch.masks, corners, strict=True):
                assert int(mask[top : bottom + 1, left : right + 1].sum()) > 0.7 * int(mask.sum())
    assert kinds == {True, False}


def test_the_next_click_falls_into_the_error(script, a_sampler) -> None:
    batch = script.collate([a_sampler.draw() for _ in range(4)])
    generator = torch.Generator().manual_seed(0)
    first = script.first_prompts(batch, generator)
    nothing = torch.full((16, 1, 64, 64), -5.0)
    missed = script.next_prompts(first, nothing, batch, generator)
    thick = batch.low.amax(dim=(1, 2, 3)) > 0.5
    assert (missed.labels[:, -1][thick] == 1).all()
    everything = script.next_prompts(first, -nothing, batch, generator)
    assert (everything.labels[:, -1] == 0).all()
    row, column = everything.points[:, -1, 1].long(), everything.points[:, -1, 2].long()
    assert not batch.masks[torch.arange(16), row, column].any()


def test_steps_lower_the_loss_on_the_same_slices(script, a_sampler) -> None:
    config = script.Config(mixed=False, targets=4)
    torch.manual_seed(0)
    model = sys.modules["network"].fresh(0, depth=2).train()
    both = script.optimisers(model, config)
    batch = script.collate([a_sampler.draw() for _ in range(2)])
    losses = []
    for _ in range(12):
        loss, dice = script.step(model, batch, config, 0.0, torch.Generator().manual_seed(3))
        losses.append(loss.item())
        assert all(0 <= value <= 1 for value in dice.values())
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser in both:
            optimiser.step()
    assert losses[-1] < 0.8 * losses[0]


def test_a_training_that_was_stopped_goes_on_and_leaves_whole_files(script, a_sampler, tmp_path, monkeypatch) -> None:
    network = sys.modules["network"]
    monkeypatch.setattr(script, "load", lambda *given: ([], []))
    monkeypatch.setattr(script, "SliceSampler", lambda *given: a_sampler)
    monkeypatch.setattr(script, "fresh", lambda seed: network.fresh(seed, depth=2))
    monkeypatch.setattr(script, "original", lambda weights: network.original(weights, depth=2))
    config = script.Config(minutes=0.02, slices=1, targets=4)
    script.train(0, config, tmp_path, tmp_path, None)
    first = torch.load(tmp_path / "last.pt", weights_only=True)
    # More time than is spent already, however slow the machine was: at least one step.
    script.train(0, replace(config, minutes=first["spent"] / 60 + 0.05), tmp_path, tmp_path, None)
    second = torch.load(tmp_path / "last.pt", weights_only=True)
    assert 1 <= first["count"] < second["count"]
    assert second["spent"] > first["spent"]
    weights = load_file(tmp_path / "sam-mini.safetensors")
    torch.testing.assert_close(weights, {k: v.half() for k, v in network.original(second["mean"], depth=2).items()})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "sam-mini.safetensors"]


def test_weights_come_back_from_their_original_names(script) -> None:
    network = sys.modules["network"]
    ours = network.fresh(0, depth=2).state_dict()
    back = from_original(network.original(ours, depth=2), "sam")
    assert set(back) == set(ours)
    for name, tensor in ours.items():
        if name == "prompt_encoder.code.matrix":  # depth has no say in SAM
            assert torch.equal(back[name][1:], tensor[1:])
        else:
            assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("shape", [(3, 24, 60), (2, 60, 24), (1, 32, 32)])
def test_a_step_of_muon_is_nearly_orthogonal(script, shape) -> None:
    turned = sys.modules["muon"].orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert turned.shape == shape
    sizes = torch.linalg.svdvals(turned)
    assert sizes.min() > 0.2
    assert sizes.max() < 1.4


def test_training_rests_while_the_file_exists(script, tmp_path, monkeypatch) -> None:
    flag = tmp_path / "measuring"
    flag.touch()
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            flag.unlink()

    monkeypatch.setattr(script.time, "sleep", nap)
    assert script.rest(flag) >= 0
    assert len(naps) == 3
    script.rest(None)
    assert len(naps) == 3


def test_every_field_of_the_configuration_is_known(script, tmp_path) -> None:
    for path in FOLDER.glob("*.yaml"):
        assert script.read(script.Config, path).minutes > 0
    (tmp_path / "odd.yaml").write_text("minuts: 3\n")
    with pytest.raises(SystemExit, match="unknown fields: minuts"):
        script.read(script.Config, tmp_path / "odd.yaml")
