from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.models import fused
from volsam.models.encoder import MLP
from volsam.models.fused import Linear, PackedLinear, linear_gelu, pack


@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 4, 5, 12), (0, 12)])
@pytest.mark.parametrize("biased", [True, False])
def test_one_step_gives_what_two_give(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(7, 12), torch.randn(7) if biased else None
    expected = F.gelu(F.linear(x, weight, bias))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            # Values up to 6: some roundings of float32, of which processors make different ones.
            assert_close(linear_gelu(x, weight, bias), expected, rtol=0, atol=5e-6)


def test_numbers_that_do_not_lie_side_by_side_are_read_rightly() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 24)[:, ::2], torch.randn(12, 7).T
    for bias in (torch.randn(1).expand(7), torch.randn(14)[::2]):
        with torch.no_grad():
            expected = F.gelu(F.linear(x, weight, bias))
            assert_close(linear_gelu(x, weight, bias), expected, rtol=0, atol=5e-6)


def test_gradients_flow() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 12), torch.randn(7, 12, requires_grad=True), torch.randn(7)
    linear_gelu(x, weight, bias).sum().backward()
    ours, weight.grad = weight.grad, None
    F.gelu(F.linear(x, weight, bias)).sum().backward()
    assert_close(ours, weight.grad)


def test_other_precisions_are_kept() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 12), torch.randn(7, 12), torch.randn(7)
    with torch.no_grad():
        double = linear_gelu(x.double(), weight.double(), bias.double())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = linear_gelu(x, weight, bias)
    assert double.dtype == torch.float64
    assert mixed.dtype == torch.bfloat16
    assert_close(mixed.double(), double, rtol=0, atol=0.05)


def test_it_works_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 12), torch.randn(7, 12)
    monkeypatch.setattr("volsam.models.fused._has_kernel", lambda: False)
    with torch.no_grad():
        assert_close(linear_gelu(x, weight, None), F.gelu(F.linear(x, weight)))


@pytest.mark.parametrize("activation", [F.gelu, F.relu])
@pytest.mark.parametrize("rows", [1, 20])
def test_a_packed_network_computes_the_same(activation: Callable[[torch.Tensor], torch.Tensor], rows: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 24, bias=False), MLP((24, 48, 7), activation))
    some = [torch.randn(12), torch.randn(5, 12), torch.randn(2, 3, 4, 5, 12)]
    with torch.no_grad():
        expected = [network(x) for x in some]
        pack(network, rows)
        found = [network(x) for x in some]
    packed = [type(layer) for layer in network.modules() if hasattr(layer, "bias")]
    assert packed == [PackedLinear] * 3
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=0, atol=1e-6)


def test_changed_layers_and_other_precisions_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(nn.Linear):
        pass

    network = nn.Sequential(Changed(3, 4), nn.Linear(4, 5).double())
    pack(network, rows=8)
    assert [type(layer) for layer in network] == [Changed, nn.Linear]
    monkeypatch.setattr("volsam.models.fused._has_kernel", lambda: False)
    plain = nn.Sequential(nn.Linear(3, 4))
    pack(plain, rows=8)
    assert type(plain[0]) is nn.Linear


# --- large products while they learn ---------------------------------------------------------------------------------


@pytest.fixture
def every_product_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "LARGE", 0)


@pytest.mark.usefixtures("every_product_is_large")
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("frozen", [(), ("weight", "bias"), ("x",)])
def test_a_layer_learns_as_that_of_torch(biased: bool, frozen: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    layer, theirs = Linear(24, 40, bias=biased), nn.Linear(24, 40, bias=biased)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 24, 3).transpose(-1, -2)  # as it does not lie side by side
    weight = torch.randn(2, 5, 3, 40)
    found = []
    for module in (layer, theirs):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
        given = x.clone().requires_grad_("x" not in frozen)
        answer = module(given)
        answer.mul(weight).sum().backward()
        found.append([answer, given.grad, *(parameter.grad for parameter in module.parameters())])
    for ours, expected in zip(*found, strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None:
            assert_close(ours, expected, rtol=0, atol=2e-5)
    assert type(found[0][0].grad_fn) is not type(found[1][0].grad_fn)


@pytest.mark.usefixtures("every_product_is_large")
def test_the_gradient_of_a_sum_is_one_number_for_all_places() -> None:
    layer, x = Linear(8, 4), torch.randn(6, 8)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert_close(layer.weight.grad, x.sum(dim=0).expand(4, 8), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("every_product_is_large")
def test_mixed_precision_and_doubles_go_torch_s_way() -> None:
    layer, x = Linear(8, 4), torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.usefixtures("every_product_is_large")
@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (8,)])
def test_an_answer_may_be_written_into(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = Linear(8, 4), torch.randn(shape)
    answer = layer(x)
    answer[..., :2] += 1.0
    answer.square().sum().backward()
    ours, layer.weight.grad = layer.weight.grad, None
    theirs = F.linear(x, layer.weight, layer.bias)
    (theirs + torch.tensor([1.0, 1.0, 0.0, 0.0])).square().sum().backward()
    assert_close(ours, layer.weight.grad, rtol=0, atol=1e-4)
