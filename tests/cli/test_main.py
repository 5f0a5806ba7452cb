"""The program as a whole."""

import os
import runpy
import sys
import warnings

import pytest

import volsam
from volsam.cli import main


def test_the_version_is_told(type_):
    assert type_("--version").stdout == f"volsam {volsam.__version__}\n"


def test_help_names_every_command(type_):
    result = type_("--help")
    assert result.exit_code == 0
    for word in ("segment", "demo", "doctor", "models", "data", "--debug", "--version"):
        assert word in result.stdout


@pytest.mark.parametrize("words", [("segment",), ("models", "show"), ("data", "synth"), ("doctor", "everything")])
def test_wrong_usage_ends_with_2(type_, words):
    assert type_(*words).exit_code == 2


@pytest.mark.parametrize("words", [("models", "-h"), ("models", "list", "-h"), ("data", "check", "--help")])
def test_every_command_has_help(type_, words):
    result = type_(*words)
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_the_console_script_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["volsam", "--version"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"volsam {volsam.__version__}\n"
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_it_runs_as_a_module_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["volsam", "--version"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        runpy.run_module("volsam", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"volsam {volsam.__version__}\n"
