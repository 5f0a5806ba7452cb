"""`volsam serve` before it serves: what it refuses, in one line."""

import logging
import socket
import sys

import pytest

from ..training.conftest import UNET, make_dataset
from .conftest import error_of


def automatic_run(folder):
    """A U-Net that has learnt for two steps."""
    from volsam.data.dataset import read_dataset
    from volsam.data.splits import Fold
    from volsam.recipes.methods import runs

    dataset = read_dataset(make_dataset(folder / "Dataset001_Shapes").folder)
    fold = Fold(("case0", "case1", "case2"), ("case3",), ("case4",))
    settings = {**UNET, "max_steps": 2, "validate_every": 1.0}
    runs.train(runs.start("unet", dataset, folder / "runs/shapes", settings=settings, fold=fold))
    return folder / "runs/shapes"


def test_another_address_needs_a_key(type_):
    assert "--api-key-file" in error_of(type_("serve", "--host", "0.0.0.0"))


def test_a_port_that_is_taken_is_named(type_, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error_of(type_("serve", "--port", port, "--sessions", tmp_path / "sessions"))
    assert f"127.0.0.1 port {port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--studies", "nowhere"), "--studies nowhere is not a folder"),
        (("--api-key-file", "nowhere"), "cannot read the key"),
        (("--dialects", "klingon", "--port", "0"), "no dialect is called 'klingon'"),
        (("--log-level", "loud"), "--log-level is debug"),
    ],
)
def test_bad_options_are_refused(type_, words, said, tmp_path):
    assert said in error_of(type_("serve", *words, "--sessions", tmp_path / "sessions"))


@pytest.fixture
def nothing_serves(monkeypatch):
    """Whoever begins to serve fails the test."""
    pytest.importorskip("uvicorn")
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: pytest.fail("it serves"))


def test_models_of_other_licences_are_refused_at_the_start(type_, tmp_path, nothing_serves):
    words = ("serve", "--port", "0", "--sessions", tmp_path / "sessions", "--allow-licence")
    assert "the model volsam-s has the licence Apache-2.0; allowed are: MIT" in error_of(type_(*words, "MIT"))
    assert "--allow-licence takes licences" in error_of(type_(*words, "MIT,"))


@pytest.mark.parametrize("names", ["nope", "volsam-s,nope", "volsam-s, nope"])
def test_a_model_that_nobody_knows_is_refused_at_the_start(type_, names, tmp_path, nothing_serves):
    line = error_of(type_("serve", "--models", names, "--port", "0", "--sessions", tmp_path / "sessions"))
    assert "no model is called 'nope'" in line


@pytest.mark.parametrize("before", ["", "volsam-s,"])
def test_a_scan_is_no_model(type_, before, a_scan, tmp_path, nothing_serves):
    words = ("--port", "0", "--sessions", tmp_path / "sessions")
    served = error_of(type_("serve", "--models", f"{before}{a_scan}", *words))
    assert served == error_of(type_("segment", a_scan, "-p", "5,5,5", "--model", a_scan))


def test_a_name_that_is_missing_between_commas_is_told(type_, tmp_path):
    assert "a comma between two" in error_of(type_("serve", "--models", "volsam-s,", "--sessions", tmp_path / "s"))


def test_a_device_that_is_not_there_is_refused_at_the_start(type_, monkeypatch, tmp_path, nothing_serves):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = error_of(type_("serve", "--device", "cuda", "--port", "0", "--sessions", tmp_path / "sessions"))
    assert "the device cuda was asked for" in line


def test_an_automatic_model_is_refused_at_the_start(type_, tmp_path, monkeypatch, nothing_serves):
    monkeypatch.setenv("VOLSAM_HOME", str(tmp_path / "home"))
    run = automatic_run(tmp_path)
    assert type_("models", "import", run, "--name", "shapes").exit_code == 0
    for name in (run, "shapes"):
        line = error_of(type_("serve", "--models", f"volsam-s,{name}", "--port", "0", "--sessions", tmp_path / "s"))
        assert f"{name} was trained to be automatic and takes no clicks" in line
        assert "volsam predict" in line


@pytest.fixture
def a_quiet_uvicorn(monkeypatch):
    """It closes the handlers of all libraries when it sets up its own, some of which then close pytest's streams."""
    monkeypatch.setattr("uvicorn.Config.configure_logging", lambda self: None)


@pytest.mark.usefixtures("a_quiet_uvicorn")
def test_models_that_are_known_are_served(type_, monkeypatch, tmp_path):
    served = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, **_: served.append(self.config.app.state.core.models))
    result = type_("serve", "--models", "volsam-s,sam-mini", "--port", "0", "--sessions", tmp_path / "s")
    assert result.exit_code == 0, result.output
    (models,) = served
    assert [models.is_loaded(name) for name in models.names] == [True, False]


@pytest.mark.usefixtures("a_quiet_uvicorn")
def test_warnings_are_made_for_clients_even_where_the_terminal_is_to_be_still(type_, monkeypatch, tmp_path):
    def speak(*_, **__):
        assert logging.getLogger("volsam.data.nifti").isEnabledFor(logging.WARNING)
        logging.getLogger("volsam.data.nifti").warning("a guess")

    monkeypatch.setattr("uvicorn.Server.run", speak)
    words = ("serve", "--port", "0", "--sessions", tmp_path / "s", "--log-level")
    assert "a guess" not in type_(*words, "error").stderr
    assert "a guess" in type_(*words, "warning").stderr


def test_a_missing_extra_is_named(type_, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert 'pip install "volsam[serve]"' in error_of(type_("serve"))
