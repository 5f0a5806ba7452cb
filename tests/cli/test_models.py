"""What is said of models, and whether a difference is noticed."""

import json
import shutil

import numpy as np
import pytest

from .conftest import error_of


def test_the_models_are_listed(type_):
    result = type_("models", "list")
    assert result.exit_code == 0, result.output
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["name", "summary", "prompts", "licence", "size", "present"]
    assert any(row.startswith("volsam-s ") and "Apache-2.0" in row for row in rows)


def test_the_list_comes_as_json(type_):
    records = {record["name"]: record for record in json.loads(type_("models", "list", "--json").stdout)}
    default = records["volsam-s"]
    assert default["present"] is True
    assert default["bytes"] > 1_000_000
    assert len(default["sha256"]) == 64


def test_a_model_shows_what_is_known_of_it(type_):
    result = type_("models", "show", "volsam-s")
    assert result.exit_code == 0, result.output
    assert "licence   Apache-2.0" in result.stdout


def test_the_card_is_shown_whole(type_, monkeypatch, tmp_path):
    from dataclasses import replace

    from volsam.recipes.recipe import recipes

    card = tmp_path / "card.md"
    card.write_text("# A card\n\nIts limits.\n", encoding="utf-8")
    monkeypatch.setitem(recipes._items, "volsam-s", replace(recipes["volsam-s"], card=card))
    assert type_("models", "show", "volsam-s").stdout.endswith("\n\n# A card\n\nIts limits.\n")


def test_an_unknown_model_is_refused(type_):
    assert "did you mean 'volsam-s'" in error_of(type_("models", "show", "volsam_s"))


def test_a_fixture_that_is_not_there_is_refused(type_, tmp_path):
    assert "cannot be read" in error_of(type_("models", "verify", tmp_path / "gone.json"))


@pytest.fixture
def a_fixture(shared_data, tmp_path):
    """What a published network computes, in files of one's own."""
    source = shared_data.parent / "parity"
    if not source.is_dir():
        pytest.skip("no recorded networks here")
    for ending in ("json", "npz"):
        shutil.copy(source / f"sam2d.{ending}", tmp_path)
    return tmp_path / "sam2d.json"


@pytest.mark.data
def test_a_network_that_agrees_ends_with_0(type_, a_fixture):
    result = type_("models", "verify", a_fixture)
    assert result.exit_code == 0, result.output
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["array", "shape", "largest", "difference"]
    assert len(rows) > 10
    assert all(row.rstrip().endswith("agrees") for row in rows)


@pytest.mark.data
def test_a_network_that_differs_ends_with_1(type_, a_fixture):
    arrays = a_fixture.with_suffix(".npz")
    with np.load(arrays) as stored:
        changed = {name: stored[name] + (name == "embedding") for name in stored}
    np.savez(arrays, **changed)
    result = type_("models", "verify", a_fixture)
    assert result.exit_code == 1
    assert result.stdout.count("DIFFERS") == 1
    assert result.stderr.startswith("error: 1 of ")
