"""How much memory there is, by whatever the system tells."""

import pytest

from volsam.data import memory
from volsam.errors import BadInput
from volsam.geometry import Grid


def test_this_machine_tells():
    assert memory.available_memory() is None or memory.available_memory() > 10_000_000


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 400000\nactive_file 1\n")
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    assert memory.available_memory() == 900_000


def test_a_container_without_a_limit_has_the_memory_of_its_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_free_of_machine", lambda: 77)
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    assert memory.available_memory() == 77


def test_a_volume_that_fits_is_let_through(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 3_000_000)
    memory.require_room(Grid.at((100, 100, 100)), "ct")
    with pytest.raises(BadInput, match=r"ct has 200 × 100 × 100 voxels"):
        memory.require_room(Grid.at((200, 100, 100)), "ct")


def test_a_system_that_does_not_tell_lets_everything_through(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    memory.require_room(Grid.at((20_000, 20_000, 20_000)), "ct")


def test_giving_back_is_harmless_where_it_cannot_be_done(monkeypatch):
    memory.give_back()
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    memory.give_back()
