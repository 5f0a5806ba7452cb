"""Whether what is wrong is found, and the fix said."""

import json
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from volsam.cli import doctor


@pytest.fixture
def a_quick_prediction(monkeypatch):
    monkeypatch.setattr(doctor, "_click_on_a_ball", lambda: (100, 0.5))


def found(name: str) -> doctor.Finding:
    return next(finding for finding in doctor.examine() if finding.what == name)


def test_a_sound_installation_has_no_problem(type_):
    result = type_("doctor")
    assert result.exit_code == 0, result.output
    assert "problem" not in result.stdout
    for what in ("python", "torch", "weights volsam-s", "network", "prediction"):
        assert any(line.split()[1:].count(what.split()[0]) for line in result.stdout.splitlines())


def test_findings_come_as_json(type_, a_quick_prediction):
    report = json.loads(type_("doctor", "--json").stdout)
    assert report["ok"] is True
    assert {"what", "state", "found", "fix"} == set(report["findings"][0])


def test_missing_weights_end_with_1_and_the_fix(type_, a_quick_prediction, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    result = type_("doctor")
    assert result.exit_code == 1
    assert "-> pip install --force-reinstall --no-deps volsam" in result.stdout
    assert result.stderr.startswith("error: volsam cannot work here because of: weights")
    assert json.loads(type_("doctor", "--json").stdout)["ok"] is False


def test_weights_that_are_not_those_of_the_card_are_a_problem(a_quick_prediction, monkeypatch, tmp_path):
    (tmp_path / "toy.safetensors").write_bytes(b"weights")
    (tmp_path / "toy.md").write_text(f"| SHA-256 | `{'0' * 64}` |\n")
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    finding = found("weights toy")
    assert finding.state == "problem"
    assert "but its card says 000" in finding.found


def test_torch_that_does_not_load_is_a_problem(a_quick_prediction, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    finding = found("torch")
    assert finding.state == "problem"
    assert finding.fix == 'pip install --upgrade "torch>=2.6"'


def test_a_package_that_is_missing_or_old_is_a_problem(a_quick_prediction, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=99", "nosuchthing>=1"])
    finding = found("packages")
    assert finding.state == "problem"
    assert "nosuchthing absent" in finding.found
    assert finding.fix == 'pip install "numpy>=99" "nosuchthing>=1"'


def test_an_absent_extra_is_a_note_with_its_name(a_quick_prediction, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ['nosuchthing>=1; extra == "itk"'])
    finding = found("extra itk")
    assert finding.state == "note"
    assert finding.fix == 'pip install "volsam[itk]"'


def test_a_package_that_was_never_installed_is_a_problem(a_quick_prediction, monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert found("volsam").state == "problem"


@pytest.mark.parametrize(("free", "state"), [(None, "ok"), (500_000_000, "problem"), (1e9, "note"), (1e10, "ok")])
def test_little_memory_is_said(a_quick_prediction, monkeypatch, free, state):
    monkeypatch.setattr(doctor, "available_memory", lambda: free)
    assert found("memory").state == state


def test_a_folder_without_write_permission_is_a_note(a_quick_prediction, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert found("writing").state == "note"


def test_a_prediction_that_fails_is_a_problem(monkeypatch):
    def fail():
        raise RuntimeError("no kernel\nsecond line")

    monkeypatch.setattr(doctor, "_click_on_a_ball", fail)
    assert found("prediction").found == "failed: RuntimeError: no kernel"
    monkeypatch.setattr(doctor, "_click_on_a_ball", lambda: (0, 0.5))
    assert found("prediction").state == "problem"


def test_an_old_python_is_a_problem(a_quick_prediction, monkeypatch):
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 8, 1), version="3.8.1 (x)", platform="linux"))
    assert found("python").fix == "make an environment with Python 3.10 to 3.13"
