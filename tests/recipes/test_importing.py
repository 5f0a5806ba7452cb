"""Published weights become networks that compute what their originals do, or are refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from volsam import Click, Session, Volume, load_model
from volsam.errors import BadFile, BadInput, NotSupported
from volsam.prompts import Box
from volsam.recipes import store
from volsam.recipes.families.family import families
from volsam.recipes.families.fixture import read_fixture, weight
from volsam.recipes.families.parity import _difference as difference_of
from volsam.recipes.importing import import_checkpoint, recognised

from .files import (
    FORMS,
    RECORDED,
    Tensors,
    in_three_parts,
    of_a_training,
    plain,
    saved,
    tuned_and_sam,
    under_model,
    weights_of,
)
from .manifests import manifest, needs_manifests

pytestmark = pytest.mark.slow

Change = Callable[[Tensors], object]

WHOLE = {"sam2d": "sam", "sam_med3d": "sam-med3d"}
"""Fixtures of whole networks that answer clicks, and their families."""

PUBLISHED = {"sam_med3d": of_a_training, "sam_med2d": under_model, "sam_adapter3d": in_three_parts}
"""The form in which a network is published, where it is not a plain state dict."""

RECORDED_NETWORKS = sorted({path.stem for path in RECORDED.glob("*.json")} - {"fastsam3d_encoder"})


@pytest.fixture
def a_sam(tmp_path: Path) -> Path:
    return saved(plain(weights_of("sam2d")), tmp_path / "sam_vit_b.pth")


@pytest.fixture
def a_teacher(tmp_path: Path) -> Path:
    return saved(of_a_training(weights_of("sam_med3d")), tmp_path / "sam_med3d_turbo.pth")


@pytest.fixture
def a_student(tmp_path: Path) -> Path:
    return saved(of_a_training(weights_of("fastsam3d_encoder")), tmp_path / "fastsam3d.pth")


def nothing_stored(home: Path) -> bool:
    return not any(path.is_file() for path in home.rglob("*"))


# --- recognised and kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", WHOLE)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_published_network_computes_the_recorded_arrays_after_import(
    fixture: str, form: Callable[[Tensors], Any], a_home: Path, tmp_path: Path
) -> None:
    path = saved(form(weights_of(fixture)), tmp_path / "published.pth")
    import_checkpoint(path, name="mine")
    family, network = store.network_of(store.stored("mine"))
    assert family.name == WHOLE[fixture]
    recorded = read_fixture(RECORDED / f"{fixture}.json")
    with torch.no_grad():
        computed = family.compute(network, recorded)
    assert np.allclose(computed["embedding"], recorded.arrays["embedding"], atol=1e-4)


@pytest.mark.parametrize("fixture", RECORDED_NETWORKS)
def test_every_network_computes_all_its_recorded_arrays_after_import(
    fixture: str, a_home: Path, tmp_path: Path
) -> None:
    """Nothing but names and shapes tells the sizes, and nothing that a network has is lost on the way."""
    path = saved(PUBLISHED.get(fixture, plain)(weights_of(fixture)), tmp_path / "published.pth")
    family, network = store.network_of(import_checkpoint(path, name="mine"))
    recorded = read_fixture(RECORDED / f"{fixture}.json")
    with torch.no_grad():
        computed = {name: tensor.numpy() for name, tensor in family.compute(network, recorded).items()}
    compared = [
        difference_of(name, array, computed[name]) for name, array in recorded.arrays.items() if name in computed
    ]
    assert len(compared) >= 3
    assert all(difference.agrees for difference in compared), compared


def test_the_card_says_what_it_is_and_where_it_is_from(a_teacher: Path, a_home: Path) -> None:
    card = import_checkpoint(a_teacher).card
    assert (card.family, card.variant, card.title) == ("sam-med3d", None, "SAM-Med3D")
    assert card.licence == "Apache-2.0"
    assert card.source == families["sam-med3d"].source
    assert card.prompts == families["sam-med3d"].prompts
    assert [origin.file for origin in card.imported] == ["sam_med3d_turbo.pth"]
    assert card.imported[0].sha256 == store.checksum(a_teacher)
    assert "left out: epoch, optimizer_state_dict" in card.note
    assert card.parameters == sum(tensor.numel() for tensor in weights_of("sam_med3d").values())


def test_licence_and_source_are_what_the_user_says(a_sam: Path, a_home: Path) -> None:
    card = import_checkpoint(a_sam, licence="CC-BY-NC-4.0", source="a colleague").card
    assert (card.licence, card.source) == ("CC-BY-NC-4.0", "a colleague")


def test_weights_are_kept_as_they_are_in_the_original(a_sam: Path, a_home: Path, tmp_path: Path) -> None:
    model = import_checkpoint(a_sam)
    store.export(model.weights, tmp_path / "back.pth")
    back, original = torch.load(tmp_path / "back.pth", weights_only=True), weights_of("sam2d")
    assert set(back) == set(original)
    assert all(torch.equal(back[name], original[name]) for name in original)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_compute_in_single_precision_whatever_is_stored(
    dtype: torch.dtype, a_home: Path, tmp_path: Path
) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in weights_of("sam2d").items()}
    model = import_checkpoint(saved(halves, tmp_path / "half.pth"))
    _, network = store.network_of(model)
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}
    assert {tensor.dtype for tensor in load_file(model.weights).values()} == {dtype}


def test_what_follows_from_sizes_is_not_stored_but_its_shape_is_known(a_home: Path, tmp_path: Path) -> None:
    original = weights_of("sam_adapter3d")
    path = saved(in_three_parts(original), tmp_path / "best.pth.tar")
    model = import_checkpoint(path, name="mine")
    stored = load_file(model.weights)
    masks = {name: tuple(tensor.shape) for name, tensor in original.items() if name.endswith(".attn_mask")}
    assert dict(model.card.computed) == {name.replace("image_encoder", "encoder_dict"): masks[name] for name in masks}
    assert len(masks) > 1
    assert not any(name.endswith(".attn_mask") for name in stored)
    assert len(stored) == len(original) - len(masks) + 3  # prompt encoders that take no part are kept, too


def test_a_name_that_must_tell_the_task_is_asked_for_at_once(
    a_home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(in_three_parts(weights_of("sam_adapter3d")), tmp_path / "best.pth.tar")
    assert import_checkpoint(path).name == "best"
    assert "best is kept, but cannot be asked with prompts: best does not say for which task" in caplog.text


# --- files that are a part -------------------------------------------------------------------------------------------


def test_the_student_is_completed_by_its_teacher(a_student: Path, a_teacher: Path, a_home: Path) -> None:
    model = import_checkpoint(a_student, partner=a_teacher)
    assert model.card.family == "fastsam3d"
    assert [origin.file for origin in model.card.imported] == ["fastsam3d.pth", "sam_med3d_turbo.pth"]
    _, network = store.network_of(model)
    image = read_fixture(RECORDED / "fastsam3d_encoder.json").input("image", (1, 1, 64, 64, 64))
    with torch.no_grad():
        embedding = network.encode(image).embedding
    recorded = read_fixture(RECORDED / "fastsam3d_encoder.json").arrays
    assert np.allclose(embedding, recorded[max(recorded)], atol=1e-4)


def test_the_teacher_may_be_a_stored_model(a_student: Path, a_teacher: Path, a_home: Path) -> None:
    import_checkpoint(a_teacher, name="turbo")
    from_file = import_checkpoint(a_student, name="one", partner=a_teacher)
    from_store = import_checkpoint(a_student, name="two", partner="turbo")
    assert from_file.card.sha256 == from_store.card.sha256


def test_a_part_alone_is_refused(a_student: Path, a_home: Path) -> None:
    with pytest.raises(BadInput, match="image encoder of FastSAM3D alone: add --with FILE, a SAM-Med3D checkpoint"):
        import_checkpoint(a_student)
    assert nothing_stored(a_home)


def test_a_partner_of_another_family_is_refused(a_student: Path, a_sam: Path, a_home: Path) -> None:
    with pytest.raises(BadInput, match=r"needs a SAM-Med3D checkpoint, .*, and this is none"):
        import_checkpoint(a_student, partner=a_sam)
    assert nothing_stored(a_home)


def test_a_partner_that_is_not_needed_is_refused(a_sam: Path, a_teacher: Path, a_home: Path) -> None:
    with pytest.raises(BadInput, match="leave --with out"):
        import_checkpoint(a_sam, partner=a_teacher)


def test_a_partner_of_another_size_is_refused(a_student: Path, a_home: Path, tmp_path: Path) -> None:
    tensors = weights_of("sam_med3d")
    tensors["prompt_encoder.no_mask_embed.weight"] = torch.ones(1, 7)
    with pytest.raises(BadInput):
        import_checkpoint(a_student, partner=saved(tensors, tmp_path / "other.pth"))
    assert nothing_stored(a_home)


def test_tuned_tensors_are_completed_by_sam(a_home: Path, tmp_path: Path) -> None:
    tuned, sam = tuned_and_sam()
    first, second = saved(tuned, tmp_path / "btcv.pth"), saved(sam, tmp_path / "sam.pth")
    with pytest.raises(BadInput, match="MA-SAM tuned: add --with FILE, the SAM checkpoint"):
        import_checkpoint(first)
    model = import_checkpoint(first, partner=second)
    assert model.card.family == "ma-sam"
    _, network = store.network_of(model)
    assert torch.equal(network.state_dict()["encoder.neck.mix.weight"][:, :, 0], sam["image_encoder.neck.2.weight"])
    with pytest.raises(NotSupported, match="btcv is MA-SAM, which is automatic and takes no clicks"):
        load_model("btcv", device="cpu")


def test_tuned_tensors_on_another_sam_are_refused(a_sam: Path, a_home: Path, tmp_path: Path) -> None:
    tuned, _ = tuned_and_sam()
    with pytest.raises(BadInput, match="not the weights of the MA-SAM they describe"):
        import_checkpoint(saved(tuned, tmp_path / "btcv.pth"), partner=a_sam)
    assert nothing_stored(a_home)


# --- variants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"name": "my-medsam"}, {"name": "boxes", "family": "medsam"}])
def test_medsam_is_told_by_its_name_or_by_the_user(given: dict[str, str], a_sam: Path, a_home: Path) -> None:
    card = import_checkpoint(a_sam, **given).card
    assert (card.family, card.variant, card.title, card.prompts) == ("sam", "medsam", "MedSAM", ("box",))
    assert load_model(given["name"], device="cpu").takes == {"box", "flat box"}


def test_a_file_called_medsam_is_medsam(a_sam: Path, a_home: Path) -> None:
    assert import_checkpoint(a_sam.rename(a_sam.with_name("medsam_vit_b.pth"))).card.variant == "medsam"


def test_sam_that_is_called_medsam_is_refused(a_sam: Path, a_home: Path) -> None:
    with pytest.raises(BadInput, match="is taken for MedSAM: give a --name without 'medsam'"):
        import_checkpoint(a_sam, name="no-medsam", family="sam")
    assert import_checkpoint(a_sam, name="plain", family="sam").card.variant is None


@pytest.mark.parametrize(
    ("family", "says"),
    [("sam-med3d", "has the names and shapes of SAM"), ("sma", "did you mean 'sam'"), ("zzz", "known are")],
)
def test_a_family_that_it_is_not_is_refused(family: str, says: str, a_sam: Path, a_home: Path) -> None:
    with pytest.raises(BadInput, match=says):
        import_checkpoint(a_sam, family=family)
    assert nothing_stored(a_home)


def test_only_sam_becomes_medsam(a_teacher: Path, a_home: Path) -> None:
    with pytest.raises(BadInput, match=r"--family medsam was given, but .* of SAM-Med3D"):
        import_checkpoint(a_teacher, family="medsam")


# --- refused ---------------------------------------------------------------------------------------------------------


def without(name: str) -> Change:
    return lambda tensors: tensors.pop(name)


def with_more(name: str, tensor: Tensor) -> Change:
    return lambda tensors: tensors.update({name: tensor})


def spoilt(tensors: Tensors) -> None:
    tensors["mask_decoder.iou_token.weight"][0, 3] = float("nan")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("mask_decoder.iou_token.weight"), "quality_token is missing"),
        (without("image_encoder.blocks.1.mlp.lin2.bias"), "is missing"),
        (with_more("mask_decoder.more.weight", torch.ones(2)), "mask_decoder.more.weight is left over"),
        (with_more("mask_decoder.iou_token.weight", torch.ones(1, 31)), r"is \[1, 31\] and must be \[1, 32\]"),
        (with_more("image_encoder.pos_embed", torch.ones(1, 8, 9, 48)), "must be"),
        (with_more("image_encoder.blocks.0.mlp.lin1.weight", torch.ones(5)), "must have 2 axes"),
        (with_more("image_encoder.neck.0.weight", torch.ones(0, 48, 1, 1)), "odd.pth: "),
        (spoilt, "1 of 32 values of mask_decoder.iou_token.weight are NaN"),
        (without("image_encoder.pos_embed"), "fit no network known here; known are .*SAM"),
        (lambda tensors: tensors.clear() or tensors.update(a=torch.ones(1)), "fit no network known here"),
    ],
)
def test_weights_that_are_not_quite_right_are_refused_before_anything_is_written(
    change: Change, says: str, a_home: Path, tmp_path: Path
) -> None:
    tensors = weights_of("sam2d")
    change(tensors)
    with pytest.raises(BadInput, match=says) as refused:
        import_checkpoint(saved(tensors, tmp_path / "odd.pth"))
    assert "\n" not in str(refused.value)
    assert "odd.pth" in str(refused.value)
    assert nothing_stored(a_home)


def test_a_name_that_is_taken_is_refused_before_the_file_is_read(a_sam: Path, a_home: Path, tmp_path: Path) -> None:
    import_checkpoint(a_sam, name="mine")
    with pytest.raises(BadInput, match="called mine already"):
        import_checkpoint(tmp_path / "not-there.pth", name="mine")
    with pytest.raises(BadFile, match="there is no file"):
        import_checkpoint(tmp_path / "not-there.pth", name="mine", force=True)
    assert store.stored("mine").present


# --- loaded ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", WHOLE)
def test_a_stored_model_answers_a_click(
    fixture: str, a_home: Path, tmp_path: Path, a_small_ct: Volume, a_click: Click
) -> None:
    path = saved(weights_of(fixture), tmp_path / "published.pth")
    import_checkpoint(path, name="mine")
    session, unstored = (Session(load_model(given, device="cpu"), a_small_ct) for given in ("mine", path))
    session.add(a_click)
    unstored.add(a_click)
    assert session.mask.grid == a_small_ct.grid
    assert np.array_equal(session.mask.data, unstored.mask.data)


def test_medsam_answers_a_box_and_refuses_a_click(
    a_sam: Path, a_home: Path, a_small_ct: Volume, a_click: Click
) -> None:
    import_checkpoint(a_sam, name="boxes", family="medsam")
    session = Session(load_model("boxes", device="cpu"), a_small_ct)
    with pytest.raises(BadInput, match="takes no click"):
        session.add(a_click)
    centre = np.array(a_click.position)
    session.add(Box(tuple(centre - 10), tuple(centre + 10)))
    assert session.mask.grid == a_small_ct.grid


def test_the_default_is_loaded_from_a_path_as_ever(a_home: Path, tmp_path: Path) -> None:
    from volsam.recipes.volsam_s import WEIGHTS

    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(WEIGHTS.read_bytes())
    assert load_model(copy, device="cpu").name == load_model(device="cpu").name == "volsam-s"
    copy.write_bytes(WEIGHTS.read_bytes()[:-10])
    with pytest.raises(BadFile, match="cut short"):
        load_model(copy, device="cpu")


def test_a_stored_name_with_a_dot_is_no_path(a_sam: Path, a_home: Path) -> None:
    import_checkpoint(a_sam, name="sam.v1")
    assert load_model("sam.v1", device="cpu").name == "sam.v1"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nobody", "no model is called 'nobody'; known are"),
        ("gone.pth", "no weights file at gone.pth"),
        ("a/b.pt", "no weights"),
    ],
)
def test_a_model_that_is_nowhere_is_refused(given: str, says: str, a_home: Path) -> None:
    with pytest.raises(BadInput, match=says):
        load_model(given, device="cpu")


def test_a_network_without_an_engine_says_so(a_sam: Path, a_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_checkpoint(a_sam, name="mine")
    monkeypatch.setitem(families._items, "sam", replace(families["sam"], engine=None))
    with pytest.raises(NotSupported, match="mine is SAM, which volsam keeps but cannot be asked with clicks yet"):
        load_model("mine", device="cpu")


# --- at full size ----------------------------------------------------------------------------------------------------


def official(name: str) -> Tensors:
    """Random weights in the names and shapes of an official file."""
    return {key: torch.from_numpy(weight(key, tuple(empty.shape), seed=0)) for key, empty in manifest(name).items()}


@needs_manifests
@pytest.mark.slow
def test_sam_of_full_size_is_imported_and_predicts(
    a_home: Path, tmp_path: Path, a_small_ct: Volume, a_click: Click
) -> None:
    path = saved(official("sam_vit_b"), tmp_path / "sam_vit_b_01ec64.pth")
    model = import_checkpoint(path)
    assert model.name == "sam_vit_b_01ec64"
    # What the specification counts: 89,670,912 + 6,220 + 4,058,340, and the 2 × 128 of the position matrix.
    assert model.card.parameters == 89_670_912 + 6_220 + 4_058_340 + 256
    path.unlink()
    one_slice = a_small_ct.grid.crop((0, 0, 14), (48, 44, 15))
    volume = Volume(a_small_ct.data[..., 14:15], one_slice, "one slice")
    session = Session(load_model(model.name, device="cpu"), volume)
    session.add(a_click)
    assert session.mask.data.shape == volume.data.shape


def test_a_file_is_recognised_without_being_stored(a_sam: Path, a_home: Path) -> None:
    found = recognised(a_sam, "x")
    assert (found.family.name, found.variant) == ("sam", None)
    assert nothing_stored(a_home)
