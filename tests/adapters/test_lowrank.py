import copy

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from volsam.adapters.lowrank import ChangedProjection, LowRank, add_fact, add_lora, fold
from volsam.models.encoder import Encoder


def untrained(encoder: Encoder) -> Encoder:
    add_fact(encoder, rank=4, scale=0.5)
    return encoder.eval()


def trained(encoder: Encoder) -> Encoder:
    untrained(encoder)
    nn.init.normal_(encoder.factors.up.weight)
    return encoder


def test_an_untrained_change_changes_nothing(a_slice_encoder: Encoder, a_stack: Tensor) -> None:
    with torch.no_grad():
        before = a_slice_encoder(a_stack)[0]
        assert_close(untrained(a_slice_encoder)(a_stack)[0], before, atol=0, rtol=0)


def test_folded_changes_compute_the_same(a_slice_encoder: Encoder, a_stack: Tensor) -> None:
    plain = copy.deepcopy(a_slice_encoder)
    trained(a_slice_encoder)
    with torch.no_grad():
        before = a_slice_encoder(a_stack)[0]
        assert (before - plain(a_stack)[0]).abs().max() > 1e-2
        fold(a_slice_encoder)
        assert_close(a_slice_encoder(a_stack)[0], before, atol=1e-5, rtol=0)
    assert list(a_slice_encoder.state_dict()) == list(plain.state_dict())


def test_query_and_value_change_and_the_key_does_not() -> None:
    torch.manual_seed(0)
    linear, down, up = nn.Linear(6, 18), nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
    core = nn.Linear(2, 2, bias=False)
    changed = ChangedProjection(linear, {"v": LowRank(down, up, core, scale=3.0)})
    x = torch.randn(5, 6)
    difference = changed(x) - linear(x)
    assert difference[:, :12].abs().max() == 0
    assert_close(difference[:, 12:], 3 * x @ down.weight.T @ core.weight.T @ up.weight.T, atol=1e-5, rtol=0)
    assert_close(changed.folded()(x), changed(x), atol=1e-5, rtol=0)


def test_without_a_core_it_is_a_product_of_two_factors() -> None:
    torch.manual_seed(0)
    down, up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
    change, x = LowRank(down, up), torch.randn(5, 6)
    assert_close(change(x), x @ (up.weight @ down.weight).T)
    assert_close(change.weight(), up.weight @ down.weight)


def test_shared_factors_are_stored_once_and_follow_a_copy(a_slice_encoder: Encoder, a_stack: Tensor) -> None:
    trained(a_slice_encoder)
    names = [name for name in a_slice_encoder.state_dict() if "factors" in name or "changes" in name]
    assert names == [
        *(f"blocks.{block}.attention.qkv.changes.{part}.core.weight" for block in (0, 1) for part in "qv"),
        "factors.down.weight",
        "factors.up.weight",
    ]
    twin = copy.deepcopy(a_slice_encoder)
    with torch.no_grad():
        before = a_slice_encoder(a_stack)[0]
        twin.factors.up.weight.zero_()
        assert_close(a_slice_encoder(a_stack)[0], before, atol=0, rtol=0)
        assert (twin(a_stack)[0] - before).abs().max() > 1e-2


def test_factors_and_cores_learn_below_a_frozen_layer(a_slice_encoder: Encoder, a_stack: Tensor) -> None:
    trained(a_slice_encoder).train()
    a_slice_encoder.requires_grad_(False)
    tuned = [p for name, p in a_slice_encoder.named_parameters() if "factors" in name or "changes" in name]
    for parameter in tuned:
        parameter.requires_grad_(True)
    a_slice_encoder(a_stack)[0].square().sum().backward()
    assert len(tuned) == 6
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in tuned)


def test_lora_has_factors_of_its_own_at_every_place_and_begins_at_nothing(
    a_slice_encoder: Encoder, a_stack: Tensor
) -> None:
    plain = copy.deepcopy(a_slice_encoder)
    with torch.no_grad():
        before = a_slice_encoder(a_stack)[0]
        add_lora(a_slice_encoder, rank=2)
        assert_close(a_slice_encoder(a_stack)[0], before, atol=0, rtol=0)
    factors = {name: p for name, p in a_slice_encoder.named_parameters() if "factors" in name}
    assert len(factors) == 2 * 2 * 2
    assert len({id(p) for p in factors.values()}) == 8
    for weights in factors.values():
        nn.init.normal_(weights)
    with torch.no_grad():
        changed = a_slice_encoder(a_stack)[0]
        assert (changed - before).abs().max() > 1e-2
        fold(a_slice_encoder)
        assert_close(a_slice_encoder(a_stack)[0], changed, atol=1e-4, rtol=0)
    assert list(a_slice_encoder.state_dict()) == list(plain.state_dict())
