import pytest

from volsam.errors import BadInput
from volsam.registry import Registry


@pytest.fixture
def a_registry() -> Registry[int]:
    registry: Registry[int] = Registry("recipe")
    registry.add("ma-sam", 1)
    registry.add("autosam", 2)
    return registry


def test_a_name_gives_what_was_registered(a_registry):
    assert a_registry["ma-sam"] == 1
    assert "ma-sam" in a_registry
    assert "ma_sam" not in a_registry


def test_names_come_in_alphabetical_order(a_registry):
    assert list(a_registry) == ["autosam", "ma-sam"]
    assert len(a_registry) == 2


def test_a_decorated_definition_stays_what_it_is(a_registry):
    @a_registry.named("fastsam3d")
    def build():
        return 3

    assert build() == 3
    assert a_registry["fastsam3d"] is build


def test_a_misspelt_name_is_answered_with_the_nearest_one(a_registry):
    with pytest.raises(BadInput, match=r"^no recipe is called 'masam'; did you mean 'ma-sam'\?$"):
        a_registry["masam"]


def test_a_strange_name_is_answered_with_the_known_ones(a_registry):
    with pytest.raises(BadInput, match="known are: autosam, ma-sam"):
        a_registry["zzz"]


def test_a_name_is_taken_once(a_registry):
    with pytest.raises(ValueError, match="registered already"):
        a_registry.add("ma-sam", 4)
