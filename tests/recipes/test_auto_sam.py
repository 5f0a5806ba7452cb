import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from volsam.errors import BadInput
from volsam.geometry import Grid
from volsam.models import sizes
from volsam.models.dense_heads import ConvHeadConfig, LinearHeadConfig
from volsam.recipes.families.auto_sam import ACDC_LABELS, AutoSam, automatic, recognises, train_heads
from volsam.recipes.families.family import Described, built, families, family_of, fill
from volsam.recipes.families.fixture import read_fixture
from volsam.recipes.families.parity import verify
from volsam.volume import Volume

from .published_networks import SMALL, record_auto_sam

RECORDED = Path(__file__).parent.parent / "reference" / "autosam.json"
OURS = SMALL | {"num_classes": 4, "cnn_num_depth": 2, "cnn_top_channel": 6}


def test_every_recorded_array_agrees() -> None:
    differences = verify(RECORDED)
    assert [d.name for d in differences] == ["embedding", "vit_logits", "vit_iou", "cnn_logits", "linear_logits"]
    assert all(d.agrees and d.max_difference < 2e-5 for d in differences), differences


@pytest.mark.parametrize(
    ("changes", "seed", "heads"),
    [
        ({}, 1, {"vit", "cnn", "linear"}),
        ({"num_classes": 2, "img_size": 64}, 2, {"vit"}),
        ({"cnn_num_depth": 4, "cnn_top_channel": 3}, 3, {"cnn"}),
        ({"num_classes": 7, "out_chans": 64}, 4, {"linear", "cnn"}),
    ],
)
def test_other_sizes_and_any_of_the_heads_agree_as_well(
    changes: dict, seed: int, heads: set[str], tmp_path: Path
) -> None:
    differences = verify(record_auto_sam(tmp_path, OURS | changes, seed, heads))
    assert len(differences) == 1 + 2 * ("vit" in heads) + ("cnn" in heads) + ("linear" in heads)
    assert all(d.agrees for d in differences), differences


def shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in json.loads(RECORDED.read_text())["state_dict"].items()}


def without(*prefixes: str) -> Described:
    return Described("here", {name: shape for name, shape in shapes().items() if not name.startswith(prefixes)})


def test_any_of_the_heads_makes_the_family_and_none_does_not() -> None:
    assert family_of(without("cnn_head", "linear_head")).name == "autosam"
    assert family_of(without("mask_decoder", "pe_layer", "cnn_head")).name == "autosam"
    assert not recognises(without("mask_decoder", "pe_layer", "cnn_head", "linear_head"))
    assert not recognises(without("pe_layer"))
    assert not recognises(Described("here", shapes() | {"prompt_encoder.no_mask_embed.weight": (1, 64)}))


def recorded_network() -> AutoSam:
    fixture = read_fixture(RECORDED)
    network = built(families["autosam"], fixture)
    fill(network, families["autosam"], fixture.weights(), "the fixture")
    assert isinstance(network, AutoSam)
    return network


@torch.no_grad()
def test_the_embedding_serves_every_head_and_every_slice_by_itself() -> None:
    network = recorded_network()
    slices = torch.randn(2, 3, 1, 128, 128)
    embedding = network.encode(slices)
    for head in network.heads:
        logits = network.decode(embedding, head)
        assert logits.shape == (2, 3, 1, 32, 32)
        assert_close(network(slices[1:], head), logits[1:], atol=1e-5, rtol=0)
    assert_close(network(slices), network.decode(embedding, "vit"), atol=0, rtol=0)


def test_a_head_that_is_not_there_is_refused() -> None:
    with torch.device("meta"):
        network = built(families["autosam"], without("mask_decoder", "pe_layer", "linear_head"))
    assert isinstance(network, AutoSam)
    assert network.heads == ("cnn",)
    with pytest.raises(BadInput, match="has the heads cnn, not vit"):
        network.decode(torch.zeros(1, 64, 1, 8, 8), "vit")


def test_it_labels_a_volume_slice_by_slice() -> None:
    network = recorded_network()
    data = np.random.default_rng(0).normal(0, 100, (40, 36, 3)).astype(np.float32)
    volume = Volume(data, Grid.at(data.shape, (2, 2, 5)))
    model = families["autosam"].automatic(network, "mine", "cpu")
    assert model.labels == ("background", "class 1", "class 2")
    found = model.segment(volume)
    assert found.grid == volume.grid
    slice_ = torch.from_numpy(np.ascontiguousarray(data[::-1, ::-1, 1].T))[None, None]
    slice_ = (slice_ - slice_.min()) / (slice_.max() - slice_.min())
    image = F.interpolate(slice_, size=(128, 128), mode="bilinear").expand(-1, 3, -1, -1)
    with torch.no_grad():
        logits = F.interpolate(network(image[:, :, None])[:, :, 0], size=(36, 40), mode="bilinear")
    wanted = logits[0].argmax(dim=0).numpy()[::-1, ::-1].T
    assert (found.data[0, :, :, 1] == wanted).mean() > 0.999
    assert len(np.unique(wanted)) > 1


def test_four_classes_are_those_of_acdc() -> None:
    config = sizes.SAM_B.encoder.model_copy(update={"width": 24, "depth": 0, "heads": 2, "image": (1, 64, 64)})
    network = AutoSam(config, linear=LinearHeadConfig(width=256, upscale=(4, 4), classes=4))
    assert automatic(network, "heart").labels == ACDC_LABELS


def test_heads_of_different_classes_and_no_head_are_refused() -> None:
    linear = LinearHeadConfig(width=256, upscale=(4, 4), classes=4)
    cnn = ConvHeadConfig(width=256, widths=(8, 4), doublings=1, classes=3)
    with torch.device("meta"):
        with pytest.raises(BadInput, match=r"heads of \[3, 4\]"):
            AutoSam(sizes.SAM_B.encoder, cnn=cnn, linear=linear)
        with pytest.raises(BadInput, match=r"heads of \[\]"):
            AutoSam(sizes.SAM_B.encoder)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def test_the_published_part_of_the_vit_head_learns() -> None:
    head = sizes.SAM_B.head.model_copy(update={"masks": 2, "classes": 4})
    with torch.device("meta"):
        network = AutoSam(sizes.SAM_B.encoder, vit=head)
    assert count(network.mask_head) == 3_780_002
    train_heads(network)
    assert count(network) == 3_646_880
