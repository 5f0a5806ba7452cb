import pytest
from torch import nn

from volsam.adapters.freeze import train_only
from volsam.errors import BadInput


def test_exactly_the_named_weights_learn() -> None:
    network = nn.ModuleDict({"encoder": nn.Linear(3, 2), "head": nn.Linear(2, 4)})
    assert train_only(network, "head") == 12
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="nothing would learn"):
        train_only(nn.Linear(3, 2), "head")
