"""Every method from a dataset to a mask: trained, stored, brought back from its folder alone."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from volsam.data.dataset import read_dataset, read_image, read_label
from volsam.errors import BadFile, BadInput
from volsam.evaluation.placement import box_around
from volsam.inference.session import Session
from volsam.inference.slice_predictor import SlicePredictor
from volsam.inference.slices import SlicePrompts
from volsam.models.segmenter import enlarge
from volsam.prompts import Click
from volsam.recipes.importing import load, load_automatic
from volsam.recipes.methods import runs, slices
from volsam.recipes.methods.method import load_methods
from volsam.recipes.methods.validation import score
from volsam.recipes.trained import load_run, pack
from volsam.training import packed
from volsam.training.config import configured
from volsam.training.contrast import ContrastTask, contrast, projection
from volsam.training.run import counts, fill

from ..recipes.sams import a_full_sam, a_tiny_sam
from .conftest import TINY, make_dataset

pytestmark = pytest.mark.slow

SLICES = {"edge": 64, "batch_size": 2}
STACKS = {**SLICES, "slices": 3, "batch_size": 1, "channels": 8, "rank": 4}
VOLUMES = {"edge": 16, "enlarged": 4, "attention": 2, "batch_size": 1}
SETTINGS = {
    "adapt": {"edge": 32},
    "adapt-clicks": {"edge": 32},
    "unet": {"edge": 32, "width": 4},
    "dynunet": {"edge": 32, "width": 4},
    "swin-unetr": {"edge": 64, "width": 12, "batch_size": 1},
    "unetr": {"edge": 32, "width": 4, "batch_size": 1},
    "ux-net": {"edge": 32, "width": 4, "batch_size": 1},
    "mednext": {"edge": 32, "width": 4, "batch_size": 1},
    "simclr": {"edge": 32, "width": 4},
    "autosam": {**SLICES, "versions": 1},
    "ma-sam": STACKS,
    "ma-sam-box": STACKS,
}


PROMPTED = {"3dsam-adapter", "sam-med3d", "fastsam3d", "adapt-clicks", "ma-sam-box"}


@pytest.fixture
def a_sam(tmp_path):
    file = tmp_path / "sam_tiny.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in a_tiny_sam().items()}, file)
    return str(file)


def trained(method, dataset, folder, sam, **more):
    base = SETTINGS.get(method, VOLUMES)
    fold = runs.choose_cases(dataset, 0, 2, 0)
    init = sam if load_methods()[method].init == "sam-mini" else None
    settings = {**TINY, "max_steps": 2, "validate_every": 1.0, **base, **more}
    job = runs.start(method, dataset, folder, settings=settings, fold=fold, init=init)
    before = {name: value.detach().clone() for name, value in job.network.named_parameters()}
    runs.train(job)
    return job, before


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(load_methods()) - {*PROMPTED, "simclr", "checkout"}))
def test_an_automatic_method_is_trained_and_labels_volumes(method, a_dataset, tmp_path, a_sam):
    job, before = trained(method, a_dataset, tmp_path / "run", a_sam)
    for name, value in job.network.named_parameters():
        assert value.requires_grad or torch.equal(value, before[name]), f"{name} is frozen and has changed"
    moved = [name for name, value in job.network.named_parameters() if not torch.equal(value, before[name])]
    assert moved
    model = load_automatic(str(tmp_path / "run"), "cpu")
    volume = read_image(a_dataset.cases[0])
    found = model.segment(volume)
    assert found.grid == volume.grid
    assert found.data.dtype == np.uint8
    assert set(np.unique(found.data)) <= {0, 1, 2}
    assert model.labels == ("background", "ball", "box")
    job.network.eval()
    own = job.method.model(job.network, job.plan, job.config, "own", "cpu")
    fill(job.network, job.folder.learnt(), job.folder.weights, job.method.keeps)
    np.testing.assert_array_equal(own.segment(volume).data, found.data)
    with pytest.raises(Exception, match="automatic"):
        load(str(tmp_path / "run"), "cpu")
    (tmp_path / "alone").mkdir()
    packed.write(pack(tmp_path / "run"), tmp_path / "alone/model.safetensors")
    for other in (tmp_path / "run", tmp_path / "sam_tiny.safetensors"):
        other.rename(tmp_path / f"{other.name}.away")
    again = load_automatic(str(tmp_path / "alone/model.safetensors"), "cpu")
    np.testing.assert_array_equal(again.segment(volume).data, found.data)


@pytest.mark.slow
def test_3dsam_adapter_is_trained_and_takes_clicks(a_dataset, tmp_path, a_sam):
    trained("3dsam-adapter", a_dataset, tmp_path / "run", a_sam, object="box")
    model = load(str(tmp_path / "run"), "cpu")
    assert load_automatic(str(tmp_path / "run"), "cpu") is None
    volume = read_image(a_dataset.cases[0])
    session = Session(model, volume)
    session.add(Click(tuple(volume.grid.to_world((14, 13, 13)))))
    assert session.mask.grid == volume.grid


@pytest.mark.slow
def test_ma_sam_with_a_box_is_trained_and_takes_boxes_alone(a_dataset, tmp_path, a_sam):
    job, before = trained("ma-sam-box", a_dataset, tmp_path / "run", a_sam)
    assert not torch.equal(job.network.prompt_encoder.labels.weight, before["prompt_encoder.labels.weight"])
    foretold = [name for name in before if name.startswith("mask_head.quality.")]
    assert foretold
    now = dict(job.network.named_parameters())
    assert any(not torch.equal(now[name], before[name]) for name in foretold), "quality is learnt, since it is shown"
    model = load(str(tmp_path / "run"), "cpu")
    volume = read_image(a_dataset.cases[0])
    target = read_label(a_dataset.cases[0], volume.grid) == 1
    session = Session(model, volume)
    with pytest.raises(BadInput, match="takes no click; it takes: box, flat box"):
        session.add(Click(tuple(volume.grid.to_world((14, 13, 13)))))
    box = box_around(target, volume.grid)
    session.add(box)
    assert session.mask.grid == volume.grid

    # A slice as the model answers it is the middle of a stack as the network has learnt it.
    looking = SlicePredictor(model, volume)
    middle = int(looking.stack.to_voxels([box.low])[0, 0])
    corners = np.sort(looking.stack.to_voxels([box.low, box.high])[:, 1:], axis=0)
    asked = SlicePrompts(box=corners)
    found = model.decode_slice(looking.encoded(middle), asked, looking.stack.shape[1:])
    pixels = np.stack([looking.pixels(index) for index in (middle - 1, middle, middle + 1)])
    sized = enlarge(torch.from_numpy(pixels)[None, None], (3, 64, 64))
    scaled = ((sized - sized.min()) / (sized.max() - sized.min())).expand(-1, 3, -1, -1, -1)
    scale = 64 / np.array(looking.stack.shape[1:])
    placed = torch.from_numpy(((corners + 0.5) * scale - 0.5).astype(np.float32))[None]
    with torch.no_grad():
        fill(job.network, job.folder.learnt(), job.folder.weights)
        logits = job.network.eval()(scaled, placed)[:, :, 1]
    torch.testing.assert_close(
        torch.from_numpy(found.low_res), (logits[0, 1] - logits[0, 0]).float(), atol=2e-2, rtol=1e-2
    )


@pytest.mark.slow
@pytest.mark.parametrize("tune", ["adapters", "decoder", "all"])
def test_volsam_s_is_adapted_and_still_takes_every_prompt(a_dataset, tmp_path, tune):
    job, before = trained("adapt-clicks", a_dataset, tmp_path / "run", None, tune=tune)
    moved = {name for name, value in job.network.named_parameters() if not torch.equal(value, before[name])}
    frozen = {name for name, value in job.network.named_parameters() if not value.requires_grad}
    assert any(name.startswith("prompts.") for name in moved)
    assert any(name.startswith("quality.") for name in moved)
    assert not moved & frozen
    assert ("stem.weight" in frozen) == (tune != "all")
    assert any(".up." in name for name in moved) == (tune == "adapters")
    model = load(str(tmp_path / "run"), "cpu")
    volume = read_image(a_dataset.cases[0])
    session = Session(model, volume)
    session.add(Click(tuple(volume.grid.to_world((14, 13, 13)))))
    session.add(Click(tuple(volume.grid.to_world((2, 2, 2))), positive=False))
    assert session.mask.grid == volume.grid


def test_a_unet_begins_with_what_simclr_has_learnt(a_dataset, tmp_path):
    settings = {**TINY, "edge": 32, "width": 4, "augment": "full"}
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    before = runs.start("simclr", a_dataset, tmp_path / "before", settings={**settings, "batch_size": 4}, fold=fold)
    runs.train(before)
    assert not (tmp_path / "before/best.safetensors").exists()
    after = runs.start(
        "unet", a_dataset, tmp_path / "after", settings=settings, fold=fold, init=str(tmp_path / "before")
    )
    taught, begun = before.network.state_dict(), after.network.state_dict()
    same = {name for name in begun if torch.equal(begun[name], taught[name])}
    learnt = {name for name, value in before.network.named_parameters() if value.requires_grad}
    assert {name for name in learnt if not name.startswith("project.")} <= same
    runs.train(after)
    both = tmp_path / "both"
    both.mkdir()
    (tmp_path / "before").rename(both / "before")
    (tmp_path / "after").rename(both / "after")
    load_run(both / "after", "cpu")
    (both / "before").rename(tmp_path / "before")
    (both / "after").rename(tmp_path / "alone")
    load_run(tmp_path / "alone", "cpu")
    (tmp_path / "before").rename(both / "elsewhere")
    with pytest.raises(BadFile, match="which is gone: bring it back, or put it beside"):
        load_run(tmp_path / "alone", "cpu")
    (both / "elsewhere").rename(tmp_path / "before")
    other = {**settings, "width": 8}
    with pytest.raises(BadInput, match="the same width"):
        runs.start("unet", a_dataset, tmp_path / "other", settings=other, fold=fold, init=str(tmp_path / "before"))


@pytest.mark.parametrize("empty", [True, False])
def test_simclr_looks_at_no_label(empty, tmp_path):
    dataset = make_dataset(tmp_path / "Dataset008_Scans", cases=6)
    for case in dataset.cases:
        case.label.unlink() if empty or case.name == "case5" else case.label.write_bytes(b"to be drawn")
    table = json.loads((dataset.folder / "dataset.json").read_text())
    table["labels"] = {"background": 0, **({} if empty else {"ball": 1})}
    (dataset.folder / "dataset.json").write_text(json.dumps(table))
    dataset = read_dataset(dataset.folder)
    fold = runs.choose_cases(dataset, 0, None, 0, labelled=False)
    assert "case5" in fold.train
    assert len(fold.train) == (6 if empty else 4)
    settings = {**TINY, **SETTINGS["simclr"], "max_steps": 2}
    assert runs.train(runs.start("simclr", dataset, tmp_path / "run", settings=settings, fold=fold)).done
    with pytest.raises(BadInput, match="has no label to learn from" if not empty else "names no label but"):
        runs.start("unet", dataset, tmp_path / "other", settings=TINY, fold=fold)


def test_what_full_fine_tuning_has_of_sam_may_learn_more_slowly(a_dataset, tmp_path, a_sam):
    job, _ = trained("full", a_dataset, tmp_path / "run", a_sam, pretrained_rate=0.1)
    groups = job.method.groups(job.network, job.config)
    shares = {id(weight): share for weights, share in groups for weight in weights}
    learning = {name: weight for name, weight in job.network.named_parameters() if weight.requires_grad}
    assert set(shares) == {id(weight) for weight in learning.values()}
    slow = {name for name, weight in learning.items() if shares[id(weight)] == 0.1}
    assert {"encoder.blocks.0.attention.qkv.weight", "encoder.blocks.1.norm1.weight"} <= slow
    assert not [name for name in slow if not name.startswith("encoder.")]
    assert [name for name in learning if name.startswith("encoder.") and name not in slow]
    with pytest.raises(BadInput, match="there is no setting 'pretrained_rate'"):
        trained("lora", a_dataset, tmp_path / "lora", a_sam, pretrained_rate=0.1)


@pytest.mark.parametrize(("size", "tuned"), [("B", 30_142_361), ("L", 64_463_769), ("H", 96_811_929)])
def test_by_itself_ma_sam_tunes_what_it_tunes_in_the_paper(size, tuned):
    plan = SimpleNamespace(labels=tuple(map(str, range(13))), patch=(5, 512, 512))
    with torch.device("meta"):
        network = slices.ma_sam(plan, slices.MaSamConfig(), a_full_sam(size))
    assert counts(network)[0] == tuned


def test_views_of_one_place_are_told_from_others():
    views = torch.eye(6).repeat(2, 1)
    assert contrast(views) < 0.01 < contrast(views[torch.randperm(12, generator=torch.Generator().manual_seed(0))])


@pytest.mark.parametrize("parts", [2, 4])
def test_views_are_told_apart_in_a_whole_batch_that_is_encoded_in_parts(parts):
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"encode": torch.nn.Conv3d(1, 4, 3), "project": projection(4, 8)})
    image = torch.randn(4, 2, 1, 6, 6, 6)
    found = []
    for task in (ContrastTask(network, network["encode"]), ContrastTask(network, network["encode"], parts)):
        task.zero_grad()
        told = task({"image": image})
        told["loss"].backward()
        found.append([told["loss"].detach(), *(weight.grad.clone() for weight in network.parameters())])
    for once, apart in zip(*found, strict=True):
        torch.testing.assert_close(once, apart)


@pytest.mark.parametrize("method", ["lora", "med-tuning"])
def test_blocks_can_be_computed_again_where_there_are_blocks(method, a_dataset, tmp_path, a_sam):
    job, _ = trained(method, a_dataset, tmp_path / "run", a_sam, recompute=True)
    assert job.network.encoder.recompute
    with pytest.raises(BadInput, match="unet has no transformer blocks that could be computed again"):
        trained("unet", a_dataset, tmp_path / "unet", None, recompute=True)
    assert not (tmp_path / "unet").exists()


def test_volsam_s_learns_the_shapes_of_a_dataset(a_dataset, tmp_path):
    job, _ = trained("adapt", a_dataset, tmp_path / "run", None, max_steps=40, learning_rate=5e-3)
    model = load_run(tmp_path / "run", "cpu")
    scores = [score(model, case, job.plan) for case in a_dataset.cases]
    assert np.mean(scores) > 0.5


def test_labels_are_written_as_the_dataset_has_them(tmp_path):
    dataset = make_dataset(tmp_path / "Dataset002_Sparse", labels={"background": 0, "ball": 5, "box": 117})
    trained("unet", dataset, tmp_path / "run", None, max_steps=1)
    model = load_automatic(str(tmp_path / "run"), "cpu")
    assert model.values == (0, 5, 117)
    found = model.segment(read_image(dataset.cases[0]))
    assert set(np.unique(found.data)) <= {0, 5, 117}


def test_all_channels_are_looked_at_and_too_few_are_refused(tmp_path):
    dataset = make_dataset(tmp_path / "Dataset003_Two", channels=2)
    trained("unet", dataset, tmp_path / "run", None, max_steps=1)
    model = load_automatic(str(tmp_path / "run"), "cpu")
    volume = read_image(dataset.cases[0])
    model.segment(volume)
    with pytest.raises(BadInput, match="images of 2 channels"):
        model.segment(volume.with_data(volume.data[:1]))


def test_methods_made_of_sam_say_so_where_they_get_none(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    for method in ("autosam", "ma-sam", "3dsam-adapter", "lora"):
        with pytest.raises(BadInput, match="is made of a SAM"):
            runs.start(method, a_dataset, tmp_path / method, settings={}, fold=fold, init="none")
        assert not (tmp_path / method).exists()


def test_weights_that_have_changed_since_the_run_are_refused(a_dataset, tmp_path, a_sam):
    trained("autosam", a_dataset, tmp_path / "run", a_sam, head="linear")
    other = {name: 2 * tensor for name, tensor in a_tiny_sam().items()}
    save_file({name: tensor.contiguous() for name, tensor in other.items()}, a_sam)
    with pytest.raises(Exception, match="have changed since"):
        load_run(tmp_path / "run", "cpu")


@pytest.mark.parametrize("names", [("R", "G", "B"), ("red", "green", "blue")])
def test_methods_of_slices_see_colours_and_others_say_what_they_do_not_see(names, tmp_path, a_sam):
    dataset = make_dataset(tmp_path / "Dataset006_Film", channels=3)
    table = json.loads((dataset.folder / "dataset.json").read_text())
    table["channel_names"] = {str(number): name for number, name in enumerate(names)}
    (dataset.folder / "dataset.json").write_text(json.dumps(table))
    dataset = read_dataset(dataset.folder)
    trained("ma-sam", dataset, tmp_path / "run", a_sam, max_steps=1)
    model = load_automatic(str(tmp_path / "run"), "cpu")
    looked: list[torch.Tensor] = []
    inner = model.predict
    model.predict = lambda stack: looked.append(stack) or inner(stack)
    volume = read_image(dataset.cases[0])
    changed = volume.data.copy()
    changed[1:] = changed[1:, ::-1]
    model.segment(volume.with_data(changed))
    assert not torch.equal(looked[0][:, 0], looked[0][:, 1])
    torch.testing.assert_close(looked[0][:, 1], looked[0][:, 2])
    with pytest.raises(BadInput, match="was trained on red, green and blue"):
        model.segment(volume.with_data(volume.data[:1]))


@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (0.0, 80.0)])
def test_stacks_in_colour_are_scaled_as_the_model_scales_them(tmp_path, percentiles):
    from volsam.data.preparation import Preparation, prepare
    from volsam.inference.automatic import StackStyle, between_percentiles, segment_slices
    from volsam.training.augment import Augment
    from volsam.training.stacks import Stacks, coloured

    dataset = make_dataset(tmp_path / "Dataset007_Film", channels=3)
    case, volume = dataset.cases[0], read_image(dataset.cases[0])
    prepared = prepare([case], Preparation(axes="SPL", percentiles=percentiles), (0, 1, 2), tmp_path / "kept")
    stacks = Stacks(prepared, 3, 32, Augment("none", (), ()), 0, channels=3)
    shown = coloured(stacks.stack(prepared[0], 5)[0])
    looked: list[torch.Tensor] = []

    def look(stack):
        looked.append(stack)
        return torch.zeros(1, 3, 3, 8, 8)

    style = StackStyle(3, between_percentiles(*percentiles), coloured=True)
    segment_slices(look, volume, style, 32, "axial")
    torch.testing.assert_close(looked[5][0], shown, atol=5e-3, rtol=0)


def test_percentiles_are_those_of_training_and_of_the_model(a_dataset, tmp_path, a_sam):
    job, _ = trained("ma-sam", a_dataset, tmp_path / "run", a_sam, max_steps=1, percentiles=(0, 90))
    assert job.plan.preparation.percentiles == (0, 90)
    volume = read_image(a_dataset.cases[0])
    limits = load_run(tmp_path / "run", "cpu").style.limits(volume)
    assert limits == pytest.approx(np.percentile(volume.data[0], (0, 90)))
    with pytest.raises(BadInput, match="the lower one comes first"):
        trained("autosam", a_dataset, tmp_path / "other", a_sam, percentiles=(90, 10))


def test_a_first_step_is_made_in_the_precision_of_the_run(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, 2, 0)
    settings = {**TINY, **SETTINGS.get("unet", {}), "precision": "bf16-mixed"}
    job = runs.start("unet", a_dataset, tmp_path / "run", settings=settings, fold=fold)
    seen = set()
    for part in job.network.modules():
        if isinstance(part, torch.nn.Conv3d):
            part.register_forward_hook(lambda part, given, out: seen.add(out.dtype))
    runs.prospect(job)
    assert seen == {torch.bfloat16}


def test_each_part_of_3dsam_adapter_has_a_longest_gradient(a_dataset, tmp_path, a_sam):
    job, _ = trained("3dsam-adapter", a_dataset, tmp_path / "run", a_sam)
    groups = job.method.groups(job.network, job.config)
    assert len(groups) == len([part for part in job.network.children() if any(True for _ in part.parameters())]) == 3
    learning = sum(weight.requires_grad for weight in job.network.parameters())
    assert sum(len(weights) for weights, _ in groups) == learning


def test_swin_unetr_has_as_many_weights_as_published():
    plan = SimpleNamespace(channels=1, labels=("background", "tumour"), patch=(128, 128, 128))
    network = load_methods()["swin-unetr"].network(plan, SimpleNamespace(width=48), None)
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(62.19, abs=0.01)


def test_the_licence_of_the_data_is_the_run_s_as_well(a_dataset, tmp_path):
    table = json.loads((a_dataset.folder / "dataset.json").read_text())
    (a_dataset.folder / "dataset.json").write_text(json.dumps({**table, "licence": "CC-BY-NC-4.0"}))
    job, _ = trained("unet", read_dataset(a_dataset.folder), tmp_path / "run", None, max_steps=1)
    assert job.folder.record().licence == "trained on the dataset alone; data: CC-BY-NC-4.0"


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("simclr", {"batch_size": 1}, "needs two or more: batch_size=1 is one"),
        ("3dsam-adapter", {"out": 8}, "out must be a multiple of 16"),
    ],
)
def test_settings_that_could_not_learn_are_refused(method, given, said, a_dataset, tmp_path, a_sam):
    with pytest.raises(BadInput, match=said):
        trained(method, a_dataset, tmp_path / "run", a_sam, **given)


# --- datasets that will not do ---------------------------------------------------------------------------------------


def test_one_case_is_learnt_from_without_validation(tmp_path):
    dataset = make_dataset(tmp_path / "Dataset004_One", cases=1)
    fold = runs.choose_cases(dataset, 0, None, 0)
    assert (fold.train, fold.val, fold.test) == (("case0",), (), ())
    job = runs.start("unet", dataset, tmp_path / "run", settings={**TINY, "edge": 32, "width": 4}, fold=fold)
    assert runs.train(job).best is None
    load_run(tmp_path / "run", "cpu")


def test_a_dataset_without_any_object_is_refused(tmp_path):
    dataset = make_dataset(tmp_path / "Dataset005_Empty", cases=3)
    for case in dataset.cases:
        grid = read_image(case).grid
        from volsam.data.io import write_volume
        from volsam.volume import Volume

        write_volume(Volume(np.zeros(grid.shape, np.uint8), grid), case.label)
    fold = runs.choose_cases(dataset, 0, None, 0)
    with pytest.raises(BadInput, match="holds a voxel of ball, box"):
        runs.start("unet", dataset, tmp_path / "run", settings=TINY, fold=fold)


def test_a_label_on_another_grid_is_refused(tmp_path):
    dataset = make_dataset(tmp_path / "Dataset006_Moved", cases=3)
    label = dataset.cases[0].label
    from volsam.data.io import read_volume, write_volume

    volume = read_volume(label)
    write_volume(type(volume)(volume.data[:, 2:], volume.grid.crop((2, 0, 0), volume.grid.shape)), label)
    with pytest.raises(BadInput, match="lies on the grid of its image"):
        read_label(dataset.cases[0], read_image(dataset.cases[0]).grid)
    fold = runs.choose_cases(dataset, 0, None, 0)
    with pytest.raises(BadInput, match="lies on the grid of its image"):
        runs.start(
            "unet", dataset, tmp_path / "run", settings=TINY, fold=runs.Fold((dataset.cases[0].name,), (), fold.test)
        )


def test_cases_are_dealt_out_without_overlap(tmp_path):
    dataset = make_dataset(tmp_path / "Dataset007_Ten", cases=7)
    folds = [runs.choose_cases(dataset, number, None, 0) for number in range(5)]
    for fold in folds:
        parts = [set(fold.train), set(fold.val), set(fold.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 7
    assert sorted(name for fold in folds for name in fold.test) == [case.name for case in dataset.cases]
    few, more = (set(runs.choose_cases(dataset, 0, count, 3).train) for count in (1, 3))
    assert few < more
    with pytest.raises(BadInput, match="--train-cases 9"):
        runs.choose_cases(dataset, 0, 9, 0)


@pytest.mark.parametrize(
    ("augment", "cases", "strength"), [("auto", 3, "strong"), ("auto", 4, "full"), ("light", 1, "light")]
)
def test_few_volumes_are_changed_more(augment: str, cases: int, strength: str) -> None:
    for method in load_methods():
        config = configured(load_methods()[method].config, {"augment": augment})
        assert load_methods()[method].settled(config, cases).augment == strength


def test_of_few_volumes_volsam_s_learns_little_and_sees_them_whole() -> None:
    adapt = load_methods()["adapt"]
    asked = configured(adapt.config, {})
    few, many = adapt.settled(asked, 3), adapt.settled(asked, 4)
    assert (few.tune, many.tune) == ("adapters", "all")
    assert few.voxels < many.voxels
    assert few.edge > many.edge
    mine = configured(adapt.config, {"tune": "decoder", "voxels": 1000, "edge": 32})
    assert {getattr(adapt.settled(mine, 1), name) for name in ("tune", "voxels", "edge")} == {"decoder", 1000, 32}
