import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from volsam.models import sizes
from volsam.models.folded import folded
from volsam.models.kernels import KernelCount, count_kernels
from volsam.models.prompt_encoder import PromptBatch
from volsam.models.segmenter import Segmenter


def counted(call: object) -> KernelCount:
    return count_kernels(call, "cpu")  # type: ignore[arg-type]


X = torch.randn(4, 6)


def test_views_launch_nothing() -> None:
    count = counted(lambda: X.T.reshape(6, 4)[1:].expand(5, 4).unsqueeze(0).unflatten(1, (5, 1)))
    assert (count.kernels, count.fused) == (0, 0)
    assert count.ops > 0


def test_pointwise_arithmetic_joins_the_product_before_or_behind_it() -> None:
    assert counted(lambda: (X.exp() + 1) @ X.T).fused == 1
    assert counted(lambda: ((X @ X.T) + 1).relu().exp()).fused == 1
    count = counted(lambda: F.gelu(F.linear(X, X)) @ X)
    assert count.heavy == ("mm", "mm")
    assert (count.kernels, count.fused) == (3, 2)


def test_pointwise_arithmetic_alone_is_one_launch_a_group() -> None:
    assert counted(lambda: (X.exp() + 1).relu()).fused == 1
    assert counted(lambda: (X.exp(), X.sin().cos())).fused == 2
    assert counted(lambda: (X.exp() + X.sin()) * 2).fused == 1
    other = torch.randn(4, 6)
    assert counted(lambda: (X.exp(), other @ other.T)).fused == 2


def test_a_view_of_a_result_still_belongs_to_it() -> None:
    assert counted(lambda: (X @ X.T).flatten().exp()).fused == 1


def test_writing_in_place_is_seen() -> None:
    def call() -> Tensor:
        out = torch.empty(4, 4)
        out.copy_(X @ X.T)
        return out.exp()

    assert counted(call).fused == 1


def test_norms_and_attention_count_once_each() -> None:
    q = torch.randn(1, 2, 5, 4)
    assert counted(lambda: F.layer_norm(X, (6,))).heavy == ("native_layer_norm",)
    assert counted(lambda: F.scaled_dot_product_attention(q, q, q)).heavy == ("scaled_dot_product_attention",)


@pytest.mark.parametrize(
    "call",
    [
        lambda: X.sum().item(),
        lambda: bool((X > 0).any()),
        lambda: X[X > 0],
        lambda: X.nonzero(),
        lambda: torch.masked_select(X, X > 0),
        lambda: X.to("meta"),
    ],
)
def test_waiting_for_the_device_is_seen(call: object) -> None:
    assert counted(call).syncs


def test_indexing_by_numbers_does_not_wait() -> None:
    index = torch.tensor([1, 0])
    assert counted(lambda: X[index]).syncs == ()


def test_tensors_of_the_host_are_seen() -> None:
    assert counted(lambda: X[torch.tensor([1, 0])]).host_made
    assert counted(lambda: X + torch.arange(6, device=X.device)).host_made == ()
    there = X.to("meta")
    assert count_kernels(lambda: torch.arange(6), "meta").host_made == ("arange",)
    assert count_kernels(lambda: there + torch.arange(6, device="meta"), "meta").host_made == ()


# --- the published networks at full size ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fast_sam_3d() -> Segmenter:
    with torch.device("meta"):
        return Segmenter(sizes.FASTSAM3D).eval()


def a_click(mask: bool = True, points: int = 1) -> PromptBatch:
    at = torch.empty(1, points, 3, device="meta")
    labels = torch.empty(1, points, dtype=torch.long, device="meta")
    return PromptBatch(at, labels, mask=torch.empty(1, 1, 32, 32, 32, device="meta") if mask else None)


def test_an_encode_of_fastsam3d_is_few_launches_and_never_waits(fast_sam_3d: Segmenter) -> None:
    count = count_kernels(lambda: fast_sam_3d.encode(torch.empty(1, 1, 128, 128, 128, device="meta")), "meta")
    assert count.fused <= 130
    assert (count.syncs, count.host_made) == ((), ())
    assert len(count.heavy) > 30  # the trace saw the network


@pytest.mark.parametrize("points", [1, 7])
@pytest.mark.parametrize("mask", [True, False])
def test_a_click_of_fastsam3d_is_few_launches_and_never_waits(fast_sam_3d: Segmenter, points: int, mask: bool) -> None:
    with torch.inference_mode():
        features = fast_sam_3d.encode(torch.empty(1, 1, 128, 128, 128, device="meta"))
    plain = count_kernels(lambda: fast_sam_3d.decode(features, a_click(mask, points)), "meta")
    alone = folded(fast_sam_3d)
    count = count_kernels(lambda: alone.decode(features, a_click(mask, points)), "meta")
    assert count.fused <= 60
    assert count.fused < plain.fused <= 70
    assert len(count.heavy) > 30
    for each in (plain, count):
        assert (each.syncs, each.host_made) == ((), ())


def test_on_the_cpu_nothing_waits_either() -> None:
    torch.manual_seed(0)
    small = sizes.FASTSAM3D.model_copy(
        update={"encoder": sizes.FASTSAM3D.encoder.model_copy(update={"width": 12, "mlp_width": 24, "depth": 3})}
    )
    segmenter = Segmenter(small).eval()
    assert isinstance(segmenter.encoder, nn.Module)
    image = torch.randn(1, 1, 128, 128, 128)
    encode = count_kernels(lambda: segmenter.encode(image), "cpu")
    with torch.inference_mode():
        features = segmenter.encode(image)
    click = PromptBatch(torch.rand(1, 1, 3), torch.ones(1, 1, dtype=torch.long), mask=torch.randn(1, 1, 32, 32, 32))
    decode = count_kernels(lambda: segmenter.decode(features, click), "cpu")
    for count in (encode, decode):
        assert (count.syncs, count.host_made) == ((), ())
        assert len(count.heavy) > 10
