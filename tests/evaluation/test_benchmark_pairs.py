"""Pairs and suites at toy size: both sides compute the same, and nothing published is taken on trust."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from volsam.errors import BadInput
from volsam.evaluation import benchmark
from volsam.evaluation.published import auto_sam, ma_sam, sam
from volsam.evaluation.published.checkout import Checkout
from volsam.evaluation.published.encoder import AdaptedBlock
from volsam.recipes.bench import compared, suites
from volsam.recipes.bench.compared import Pair
from volsam.recipes.bench.suites import Settings

pytestmark = pytest.mark.slow

SMALL = {"width": 48, "depth": 3, "heads": 4, "window": 3, "wide": (1,)}
HEAD = {"hidden": 32, "quality_width": 16}


def tiny(name: str) -> Pair:
    """A pair with a reference of its kind that computes in milliseconds."""
    student = sam.STUDENT | {"width": 48, "depth": 3, "heads": 4, "skip": 1}
    builds: dict[str, tuple[int, Callable[[int], nn.Module]]] = {
        "fastsam3d": (32, lambda edge: sam.Sam(3, edge, width=48, encoder=student, decoder=HEAD)),
        "sam-med3d": (32, lambda edge: sam.Sam(3, edge, width=48, encoder=SMALL, decoder=HEAD)),
        "sam": (64, lambda edge: sam.Sam(2, edge, width=32, encoder=SMALL, decoder=HEAD)),
        "sam-med2d": (
            64,
            lambda edge: sam.Sam(2, edge, width=32, encoder=SMALL | {"block": AdaptedBlock}, decoder=HEAD),
        ),
        "ma-sam": (64, lambda edge: ma_sam.MaSam(image=edge, classes=3, rank=4, out=64, decoder=HEAD, **SMALL)),
        "autosam": (64, lambda edge: auto_sam.AutoSam(image=edge, classes=3, out=32, decoder=HEAD, **SMALL)),
    }
    size, build = builds[name]
    known = compared.PAIRS[name]
    return Pair(name, known.family, known.kind, size, build, known.figures)


@pytest.fixture(autouse=True)
def _small_and_single(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("fastsam3d", "sam-med3d", "sam", "sam-med2d", "ma-sam", "autosam"):
        monkeypatch.setitem(compared.PAIRS, name, tiny(name))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CASES = [
    ("click", "fastsam3d"),
    ("click", "sam-med3d"),
    ("click", "sam"),
    ("click", "sam-med2d"),
    ("encode", "sam-med3d"),
    ("encode", "sam"),
    ("volume", "sam"),
    ("volume", "ma-sam"),
    ("volume", "autosam"),
    ("train", "sam-med3d"),
]


@pytest.mark.parametrize(("suite", "name"), CASES)
def test_both_sides_of_a_pair_compute_the_same(suite: suites.Suite, name: str) -> None:
    ours, theirs = suites.candidates(suite, [name], Settings())
    assert (ours.name, theirs.name) == (name, f"{name} (published)")
    assert ours.peer == theirs.name
    assert ours.same
    gflop = benchmark.rehearse([ours, theirs])
    found = benchmark.agreement(ours.outputs(), theirs.outputs())
    assert found.holds, found
    assert found.difference > 0 or suite == "volume"  # two implementations, not one called twice
    assert all(value > 0 for tasks in gflop.values() for value in tasks.values())


def test_both_sides_weigh_the_same() -> None:
    ours, theirs = suites.candidates("encode", ["sam-med3d"], Settings())
    assert ours.parameters == pytest.approx(theirs.parameters)


def test_other_weights_are_seen() -> None:
    ours, _ = suites.candidates("encode", ["sam-med3d"], Settings())
    _, theirs = suites.candidates("encode", ["sam-med3d"], Settings(seed=1))
    benchmark.rehearse([ours, theirs])
    assert not benchmark.agreement(ours.outputs(), theirs.outputs()).holds


def test_a_training_step_changes_the_weights_of_each_side_by_itself() -> None:
    sides = compared.build(tiny("sam-med3d"))
    assert sides.ours is not None
    assert sides.published is not None
    theirs = sides.published.get_parameter("image_encoder.blocks.0.mlp.lin1.weight").detach().clone()
    ours = suites.candidate("train", sides, "ours", Settings())
    before = sides.ours.get_parameter("encoder.blocks.0.mlp.layers.0.weight").detach().clone()
    benchmark.rehearse([ours])
    assert not torch.equal(before, sides.ours.get_parameter("encoder.blocks.0.mlp.layers.0.weight"))
    assert torch.equal(theirs, sides.published.get_parameter("image_encoder.blocks.0.mlp.lin1.weight"))


def test_all_may_be_compared_with_one_published_network() -> None:
    found = suites.candidates("encode", ["sam-med3d", "fastsam3d"], Settings(against="fastsam3d"))
    assert [one.name for one in found] == ["sam-med3d", "fastsam3d", "fastsam3d (published)"]
    assert [one.peer for one in found] == ["fastsam3d (published)"] * 2 + [None]
    assert [one.same for one in found] == [False, True, False]


def test_half_precision_is_for_our_side_only() -> None:
    ours, theirs = suites.candidates("encode", ["sam-med3d"], Settings(dtype="bf16"))
    assert "bf16" in ours.flags
    assert theirs.flags == ()
    benchmark.rehearse([ours, theirs])
    found = benchmark.agreement(ours.outputs(), theirs.outputs())
    assert not found.holds
    assert found.cosine > 0.99


def test_one_side_alone_needs_no_other() -> None:
    ours = compared.alone(tiny("sam-med3d"), "ours")
    assert ours.published is None
    assert ours.ours is not None
    assert compared.alone(tiny("sam-med3d"), "published").ours is None


def test_clicks_are_the_same_every_time_and_within_the_image() -> None:
    presses = suites.presses_in(64, flat=False, count=5)
    assert presses == suites.presses_in(64, flat=False, count=5)
    assert all(0 <= place < 64 for press in presses for place in press.voxel)
    inside = suites.ball((64, 64, 64))
    assert all(inside[press.voxel] == press.positive for press in presses)


def test_an_unknown_pair_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"there are: .*sam-med3d"):
        compared.pair_of("sam4")


# --- checkouts -----------------------------------------------------------------------------------------------------

ENCODER_3D = """
from volsam.evaluation.published.encoder import Encoder
from .own import EXTRA

class ImageEncoderViT3D(Encoder):
    def __init__(self, depth, embed_dim, img_size, mlp_ratio, norm_layer, num_heads, patch_size, qkv_bias, use_rel_pos,
                 global_attn_indexes, window_size, out_chans):
        super().__init__(3, grid=img_size // patch_size, width=48 + EXTRA, depth=2, heads=4, window=window_size,
                         wide=global_attn_indexes, out=out_chans)

    def forward(self, x):
        return [None, super().forward(x)], 0.5
"""
PROMPTS_3D = """
from volsam.evaluation.published.prompts import PromptEncoder

class PromptEncoder3D(PromptEncoder):
    def __init__(self, embed_dim, image_embedding_size, input_image_size, mask_in_chans):
        super().__init__(3, image=input_image_size[0], grid=image_embedding_size[0], width=embed_dim)

    def forward(self, points, boxes, masks):
        return super().forward(*points, boxes, masks)

    def get_dense_pe(self):
        return self.dense_code()
"""
DECODER_3D = """
from volsam.evaluation.published.decoder import MaskDecoder

class MaskDecoder3D(MaskDecoder):
    def __init__(self, *, transformer_dim, num_multimask_outputs=3, iou_head_depth=3, iou_head_hidden_dim=256):
        super().__init__(3, width=transformer_dim)

    def forward(self, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings, multimask_output):
        masks, quality = super().forward(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        return masks[:, :1], quality[:, :1]
"""


@pytest.fixture
def a_checkout(tmp_path: Path) -> Path:
    """Like a release: classes by the released names, and packages whose own code must not run."""
    home = tmp_path / "original" / "segment_anything" / "modeling"
    home.mkdir(parents=True)
    for folder in (home, home.parent):
        (folder / "__init__.py").write_text("raise RuntimeError('this was executed')\n")
    (home / "own.py").write_text("EXTRA = 0\n")
    (home / "image_encoder3D.py").write_text(ENCODER_3D)
    (home / "prompt_encoder3D.py").write_text(PROMPTS_3D)
    (home / "mask_decoder3D.py").write_text(DECODER_3D)
    return tmp_path / "original"


def test_a_checkout_takes_the_place_of_the_reference(a_checkout: Path) -> None:
    checkout = Checkout(a_checkout)
    assert checkout.fits == ("sam-med3d",)
    pair = compared.PAIRS["sam-med3d"]
    sides = compared.build(pair, edge=48, checkout=checkout)
    found = [suites.candidate("click", sides, which, Settings(size=48)) for which in ("ours", "published")]
    benchmark.rehearse(found)
    assert benchmark.agreement(found[0].outputs(), found[1].outputs()).holds


def test_a_checkout_of_another_size_is_not_the_published_network(a_checkout: Path) -> None:
    with pytest.raises(BadInput, match="it is another network, so no ratio"):
        compared.build(compared.PAIRS["sam-med3d"], checkout=Checkout(a_checkout))


def test_looking_at_a_checkout_executes_nothing(a_checkout: Path) -> None:
    home = a_checkout / "segment_anything" / "modeling"
    for name in ("image_encoder3D", "prompt_encoder3D", "mask_decoder3D"):
        (home / f"{name}.py").write_text("skip_layer = 1\nraise RuntimeError('this was executed')\n")
    checkout = Checkout(a_checkout)
    assert checkout.fits == ("fastsam3d",)
    with pytest.raises(BadInput, match=r"could not be built \(RuntimeError: this was executed\)"):
        checkout.build("fastsam3d", 32)


def test_two_checkouts_do_not_meet(a_checkout: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(a_checkout, other)
    (other / "segment_anything" / "modeling" / "own.py").write_text("EXTRA = 48\n")
    widths = [
        Checkout(path).build("sam-med3d", 32).get_parameter("image_encoder.pos_embed").shape[-1]
        for path in (a_checkout, other)
    ]
    assert widths == [48, 96]


@pytest.mark.parametrize("missing", ["mask_decoder3D.py", "prompt_encoder3D.py"])
def test_a_checkout_that_lacks_a_part_is_refused_in_a_line(a_checkout: Path, missing: str) -> None:
    (a_checkout / "segment_anything" / "modeling" / missing).unlink()
    with pytest.raises(BadInput, match=f"lacks {missing}"):
        Checkout(a_checkout)


def test_a_folder_that_is_no_checkout_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no segment_anything/modeling"):
        Checkout(tmp_path)


def test_a_checkout_without_the_released_class_is_refused_in_a_line(a_checkout: Path) -> None:
    (a_checkout / "segment_anything" / "modeling" / "mask_decoder3D.py").write_text("")
    with pytest.raises(BadInput, match="defines no MaskDecoder3D"):
        Checkout(a_checkout).build("sam-med3d", 32)
