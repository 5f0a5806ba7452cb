"""What computes a network: chosen by name, by the environment or by what is installed, and the same answers by all."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from volsam import Click, Session, Volume, load_model
from volsam.errors import BadInput, NotSupported
from volsam.inference import fast
from volsam.inference.fast import FastSegmenter
from volsam.inference.openvino import OpenVinoSegmenter
from volsam.inference.volumes import ClickModel
from volsam.models.fused import PackedLinear
from volsam.models.segmenter import Segmenter
from volsam.recipes import engine
from volsam.recipes.engine import ENGINE_VARIABLE, PLAIN, choose_engine, prepared
from volsam.recipes.families.family import fill, load_families
from volsam.recipes.families.fixture import read_fixture
from volsam.recipes.families.sam_med3d import click_model
from volsam.recipes.importing import import_checkpoint

from .files import RECORDED, saved, weights_of

pytestmark = pytest.mark.slow


def a_network(name: str = "sam-med3d", fixture: str = "sam_med3d") -> torch.nn.Module:
    recorded = read_fixture(RECORDED / f"{fixture}.json")
    network = load_families()[name].build(recorded)
    fill(network, load_families()[name], recorded.weights(), "test")
    return network


@pytest.mark.parametrize(
    ("wanted", "variable", "device", "chosen"),
    [
        (None, None, "cpu", "openvino"),
        ("auto", "torch", "cpu", "openvino"),
        (None, "torch", "cpu", "torch"),
        ("torch", "openvino", "cpu", "torch"),
        (None, None, "cuda:1", "torch"),
        (None, None, "mps", "torch"),
    ],
)
def test_the_engine_follows_from_name_environment_and_device(
    wanted: str | None, variable: str | None, device: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE)
    if variable is not None:
        monkeypatch.setenv(ENGINE_VARIABLE, variable)
    monkeypatch.setattr(engine, "find_spec", lambda _: object())
    assert choose_engine(wanted, device) == chosen


def test_without_the_library_it_is_torch_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE)
    monkeypatch.setattr(engine, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert choose_engine(None, "cpu") == "torch"
    with pytest.raises(NotSupported, match=r'pip install "volsam\[openvino\]", or take the engine torch'):
        choose_engine("openvino", "cpu")


def test_a_library_that_does_not_load_is_said_and_torch_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda _: object())
    monkeypatch.setitem(sys.modules, "openvino", None)
    network = a_network()
    with caplog.at_level(logging.WARNING):
        assert prepared(network, "mine", "cpu", "auto") is network
    assert "clicks of mine go through torch" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "variable", "device", "says"),
    [
        ("onnx", "torch", "cpu", "--engine is auto, torch, openvino or graphs, got 'onnx'"),
        (None, "onnx", "cpu", "VOLSAM_ENGINE is auto, torch, openvino or graphs, got 'onnx'"),
        ("openvino", "torch", "cuda", "runs on a CPU, and the device is cuda"),
        ("graphs", "torch", "cpu", "needs a GPU of NVIDIA, and the device is cpu"),
    ],
)
def test_what_cannot_be_is_refused(
    wanted: str | None, variable: str, device: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENGINE_VARIABLE, variable)
    with pytest.raises(BadInput, match=says):
        choose_engine(wanted, device)


@pytest.mark.parametrize("fixture", ["sam2d", "sam_med2d", "sam_adapter3d", "ma_sam", "autosam"])
def test_networks_without_another_engine_are_packed_and_refuse_one_by_name(fixture: str) -> None:
    name = {"sam2d": "sam", "sam_med2d": "sam-med2d", "sam_adapter3d": "3dsam-adapter", "ma_sam": "ma-sam"}
    network = a_network(name.get(fixture, fixture), fixture)
    with pytest.raises(NotSupported, match="mine runs on torch alone"):
        prepared(network, "mine", "cpu", "openvino")
    assert prepared(network, "mine", "cpu", "auto") is network
    assert any(isinstance(layer, PackedLinear) for layer in network.modules())


def test_on_another_device_nothing_is_packed() -> None:
    network = a_network()
    assert prepared(network, "mine", "cuda") is network
    assert not any(isinstance(layer, PackedLinear) for layer in network.modules())


def test_a_network_that_is_to_learn_stays_as_it_is() -> None:
    network = a_network()
    before = set(network.state_dict())
    assert prepared(network, "mine", "cpu", PLAIN) is network
    assert set(network.state_dict()) == before


@pytest.mark.parametrize("name", ["openvino", "graphs"])
def test_the_default_model_says_that_it_has_no_other_engine(name: str) -> None:
    with pytest.raises(NotSupported, match=f"volsam-s runs on torch alone; the engine {name}"):
        load_model(device="cpu", engine=name)


def test_recorded_steps_answer_a_session_as_torch_does(
    a_small_ct: Volume, a_click: Click, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, built = a_network(), FastSegmenter
    monkeypatch.setattr(
        fast, "FastSegmenter", lambda network, device: built(network, "cpu", torch.float32, lambda step: step)
    )
    recorded = prepared(network, "mine", "cuda", "graphs")
    assert isinstance(recorded, FastSegmenter)
    sessions = [Session(click_model(each, "mine", "cpu"), a_small_ct) for each in (network, recorded)]
    for session in sessions:
        session.add(a_click)
        session.add(Click(tuple(a_small_ct.grid.to_world((2, 2, 2))), positive=False))
    np.testing.assert_allclose(sessions[1].probability.data, sessions[0].probability.data, atol=1e-4)


def test_a_stored_model_answers_alike_on_both(
    a_home: Path, tmp_path: Path, a_small_ct: Volume, a_click: Click, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    import_checkpoint(saved(weights_of("sam_med3d"), tmp_path / "published.pth"), name="mine")
    torched, other = (load_model("mine", device="cpu", engine=name) for name in ("torch", "openvino"))
    assert isinstance(torched, ClickModel)
    assert isinstance(other, ClickModel)
    assert isinstance(torched.network, Segmenter)
    assert isinstance(other.network, OpenVinoSegmenter)
    # The shapes of a network that is being recorded are no numbers, and a run that checks them would refuse.
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        other.network.ready()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert len(list((a_home / "openvino").iterdir())) == 1
    masks = []
    for model in (torched, other):
        session = Session(model, a_small_ct)
        session.add(a_click)
        masks.append(session.mask.data)
    assert (masks[0] != masks[1]).mean() <= 1e-5
