from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import default_collate

from volsam.data.dataset import read_image
from volsam.errors import BadInput
from volsam.inference.session import Session
from volsam.inference.volumes import region_above_zero
from volsam.models.features import Features
from volsam.models.prompt_encoder import NEGATIVE, NOT_A_POINT, POSITIVE
from volsam.models.segmenter import Segmenter
from volsam.prompts import Click
from volsam.recipes.families.fixture import read_fixture
from volsam.recipes.importing import load
from volsam.recipes.methods import runs
from volsam.recipes.methods.clicks import ClicksConfig, segmenter_config
from volsam.recipes.methods.distillation import StudentConfig, stages_of, teacher_of
from volsam.recipes.store import checksum
from volsam.training.clicks import ClickTask, clicks_on_errors
from volsam.training.distill import EMBEDDING, DistillTask, Onlooker, Taught, alikeness, pairs_of
from volsam.training.items import Items

from .conftest import TINY

REFERENCE = Path(__file__).parents[1] / "reference"
SMALL = {"edge": 32, "patch": 8, "width": 24, "heads": 2, "out": 32, "turns": 3}


def a_network(depth=4, taps=(), **more):
    torch.manual_seed(0)
    config = segmenter_config(ClicksConfig(**SMALL, depth=depth, **more))
    return Segmenter(config.model_copy(update={"encoder": config.encoder.model_copy(update={"taps": taps})}))


# --- clicks ----------------------------------------------------------------------------------------------------------


def test_clicks_fall_where_something_is_wrong_and_carry_its_sign():
    target = torch.zeros(3, 1, 8, 8, 8)
    target[0, 0, 2:4] = 1
    logits = torch.full_like(target, -1.0)
    logits[1, 0, 5, 5, 5] = 1.0
    for _ in range(5):
        points, labels = clicks_on_errors(target, logits)
        assert labels[:, 0].tolist() == [POSITIVE, NEGATIVE, NOT_A_POINT]
        assert points[0, 0, 0] in (2, 3)
        assert points[1, 0].tolist() == [5, 5, 5]
    first, labels = clicks_on_errors(target[:1], None)
    assert target[(0, 0, *first[0, 0].long())] == 1
    assert labels.tolist() == [[POSITIVE]]


def test_a_conversation_teaches_all_parts_of_the_network():
    network = a_network()
    label = torch.zeros(2, 32, 32, 32, dtype=torch.long)
    label[:, 8:20, 8:20, 8:20] = 1
    torch.manual_seed(1)
    losses = ClickTask(network, turns=4)({"image": torch.randn(2, 1, 32, 32, 32), "label": label})
    losses["loss"].backward()
    still = {name for name, value in network.named_parameters() if value.grad is None or not value.grad.abs().sum()}
    # Masks for ambiguous prompts are not asked for.
    assert all(name.startswith(("mask_head.weights.", "mask_head.quality.")) for name in still), still
    assert 0 <= losses["dice"] <= 1


def test_clicks_teach_to_segment(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    settings = {**TINY, **SMALL, "depth": 2, "max_steps": 2, "validate_every": 1.0}
    job = runs.start("sam-med3d", a_dataset, tmp_path / "run", settings=settings, fold=fold)
    runs.train(job)
    model = load(str(tmp_path / "run"), "cpu")
    volume = read_image(a_dataset.cases[0])
    session = Session(model, volume)
    session.add(Click(tuple(volume.grid.to_world((8, 8, 8)))))
    session.add(Click(tuple(volume.grid.to_world((20, 15, 2))), positive=False))
    assert session.mask.grid == volume.grid
    assert model.spacing == 1.5


# --- a teacher -------------------------------------------------------------------------------------------------------


def test_blocks_are_paired_as_in_the_paper():
    assert pairs_of(6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12), EMBEDDING]
    assert pairs_of(4, 2) == [(1, 1), (2, 1), (3, 2), (4, 2), EMBEDDING], "no block has none beside it"


def the_task(**more):
    student, teacher = a_network(depth=2, taps=(1, 2)), a_network(depth=4, taps=(2, 4))
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.1)
    given = {"imitation": 0.6, "keep": 0.0, "clicks": ClickTask(student, 2), **more}
    return student, teacher, DistillTask(student, teacher, pairs_of(2, 4), **given)


def batch():
    torch.manual_seed(2)
    label = torch.zeros(1, 32, 32, 32, dtype=torch.long)
    label[:, 8:20, 8:20, 8:20] = 1
    return {"image": torch.randn(1, 1, 32, 32, 32), "label": label}


@pytest.mark.parametrize(
    ("part", "stage"), [(0, 0), (0.19, 0), (0.21, 1), (0.45, 2), (0.59, 2), (0.6, None), (0.99, None)]
)
def test_stages_follow_one_another(part, stage):
    _, _, task = the_task()
    task.at(part)
    assert task.stage == stage


def test_each_stage_teaches_the_blocks_up_to_its_own():
    student, teacher, task = the_task()
    before = [value.clone() for value in teacher.parameters()]
    task.at(0.0)
    task(batch())["loss"].backward()
    moved = {
        name for name, value in student.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0
    }
    assert any(name.startswith("encoder.blocks.0.") for name in moved)
    assert not any(name.startswith(("encoder.blocks.1.", "encoder.neck", "mask_head", "prompt")) for name in moved)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert not any(value.grad is not None for value in teacher.parameters())


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    teacher = a_network(depth=2, taps=(1, 2))
    student = a_network(depth=2, taps=(1, 2))
    student.load_state_dict(teacher.state_dict())
    task = DistillTask(student, teacher, pairs_of(2, 2), 1.0, 1.0, ClickTask(student, 2))
    for part in (0.0, 0.5, 0.9):
        task.at(part)
        assert float(task(batch())["loss"].detach()) < 1e-10


def test_while_clicks_are_learnt_from_the_encoder_rests_and_then_learns():
    for part, rests in ((0.7, True), (0.95, False)):
        student, _, task = the_task(unfreeze=0.5)
        task.at(part)
        task(batch())["loss"].backward()
        of_encoder = [value.grad for name, value in student.named_parameters() if name.startswith("encoder.patches")]
        assert all(grad is None for grad in of_encoder) == rests


def test_a_teacher_without_the_wanted_taps_is_refused():
    student = a_network(depth=2, taps=(1, 2))
    with pytest.raises(BadInput, match="the teacher keeps no tokens after block 4"):
        DistillTask(student, a_network(depth=4, taps=(2,)), pairs_of(2, 4), 1.0, 0.0, ClickTask(student, 2))


def test_the_chain_from_teacher_to_student_runs(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    short = {**TINY, "max_steps": 3, "validate_every": 1.0}
    teacher = runs.start(
        "sam-med3d", a_dataset, tmp_path / "teacher", settings={**short, **SMALL, "depth": 4}, fold=fold
    )
    runs.train(teacher)
    settings = {**short, "depth": 3, "still": 1, "turns": 2, "teacher": str(tmp_path / "teacher")}
    job = runs.start("fastsam3d", a_dataset, tmp_path / "student", settings=settings, fold=fold)
    taught = teacher_of(str(tmp_path / "teacher")).state_dict()
    own = job.network.state_dict()
    assert all(torch.equal(own[name], taught[name]) for name in own if not name.startswith("encoder."))
    assert job.network.config.encoder.blocks_without_attention == 1
    runs.train(job)
    record = runs.RunFolder(tmp_path / "student").record()
    assert record.teacher.sha256 == checksum(tmp_path / "teacher/best.safetensors")
    assert record.licence == "as of its teacher: trained on the dataset alone"
    assert record.config["depth"] == 3
    assert record.config["width"] == SMALL["width"], "what is recorded is what was built"
    (tmp_path / "teacher").rename(tmp_path / "gone")  # a student stands alone
    model = load(str(tmp_path / "student"), "cpu")
    assert model.network.config.encoder.depth == 3
    assert StudentConfig(**dict(runs.RunFolder(tmp_path / "student").record().config)).turns == 2


def test_a_student_does_not_go_on_with_another_teacher(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    short = {**TINY, "max_steps": 4, "validate_every": 1.0}
    teacher = {**short, **SMALL, "max_steps": 1, "depth": 2}
    runs.train(runs.start("sam-med3d", a_dataset, tmp_path / "teacher", settings=teacher, fold=fold))
    settings = {**short, "depth": 2, "still": 1, "turns": 2, "teacher": str(tmp_path / "teacher")}

    def start():
        return runs.start("fastsam3d", a_dataset, tmp_path / "student", settings=settings, fold=fold)

    def stop(now):
        if now.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train(start(), stop)
    file = tmp_path / "teacher/best.safetensors"
    save_file({name: value + 0.1 for name, value in load_file(file).items()}, file)
    with pytest.raises(BadInput, match="holds a run with other weights of its teacher"):
        start()


@pytest.fixture
def a_release(tmp_path):
    """A file in the form of SAM-Med3D's."""
    torch.save(read_fixture(REFERENCE / "sam_med3d.json").weights(), tmp_path / "turbo.pth")
    return str(tmp_path / "turbo.pth")


@pytest.mark.parametrize("method", ["sam-med3d", "fastsam3d"])
def test_released_weights_see_what_they_were_made_for(a_dataset, a_release, tmp_path, method):
    """In training and in use alike: voxels of 1.5 mm, a cube scaled over what is above zero."""
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    short = {**TINY, "max_steps": 1, "validate_every": 1.0, "turns": 2, "augment": "none"}
    given = {**short, "teacher": a_release} if method == "fastsam3d" else short
    begun = a_release if method == "sam-med3d" else None
    job = runs.start(method, a_dataset, tmp_path / "run", settings=given, fold=fold, init=begun)
    assert (job.config.spacing, job.config.scaling) == (1.5, "above zero")
    shown = job.items[0]["image"]
    inside = shown > shown.min() + 1e-3  # what is not inside lies beyond the scan, where 0 stands
    assert 0 < inside.sum() < inside.numel()
    assert shown[inside].mean().item() == pytest.approx(0, abs=1e-3)
    assert shown[inside].std().item() == pytest.approx(1, abs=1e-2)
    runs.train(job)
    model = load(str(tmp_path / "run"), "cpu")
    volume = read_image(a_dataset.cases[0])
    roi = volume.grid.around(volume.grid.to_world((10, 10, 9)), (model.edge,) * 3, 1.5, model.axes)
    seen = torch.from_numpy(region_above_zero(volume, roi))[None]
    with torch.no_grad():
        torch.testing.assert_close(model.encode(volume, roi).embedding, model.network.encode(seen).embedding)


def test_a_run_to_begin_with_says_sizes_and_voxels(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    short = {**TINY, "max_steps": 1, "validate_every": 1.0}
    first = {**short, **SMALL, "depth": 2, "spacing": 2.0}
    runs.train(runs.start("sam-med3d", a_dataset, tmp_path / "first", settings=first, fold=fold))
    begun = str(tmp_path / "first")
    job = runs.start("sam-med3d", a_dataset, tmp_path / "next", settings=short, fold=fold, init=begun)
    assert (job.config.spacing, job.config.scaling, job.config.depth) == (2.0, "volume", 2)
    for method, given, told in (
        ("sam-med3d", {"depth": 4, "edge": 32}, f"--init {begun} says how large the network is: leave edge and depth"),
        ("fastsam3d", {"width": 8, "teacher": begun}, f"--teacher {begun} says how large the network is: leave width"),
    ):
        init = begun if method == "sam-med3d" else None
        with pytest.raises(BadInput, match=told):
            runs.start(method, a_dataset, tmp_path / "no", settings={**short, **given}, fold=fold, init=init)


class Noise(Items):
    """Numbered images without any sense."""

    def make(self, random):
        label = torch.zeros(32, 32, 32, dtype=torch.long)
        label[4:12, 4:12, 4:12] = 1
        return {"image": torch.from_numpy(random.normal(size=(1, 32, 32, 32)).astype("f4")), "label": label}


def test_what_a_teacher_has_told_teaches_as_it_does_itself(tmp_path):
    student, teacher, asked = the_task()
    items = Taught(Noise(0), teacher, [2, 4, 0], 3, tmp_path / "told")
    told = DistillTask(student, None, pairs_of(2, 4), 0.6, 0.0, ClickTask(student, 2))
    kept = default_collate([items[number] for number in range(2)])
    for part in (0.0, 0.3, 0.5):
        asked.at(part)
        told.at(part)
        expected = asked({"image": kept["seen"].float(), "label": kept["label"]})["loss"].item()
        assert told(kept)["loss"].item() == pytest.approx(expected, rel=2e-3)
    told.at(0.7)  # clicks are asked about what is drawn anew
    torch.manual_seed(0)
    found = told(kept)
    torch.manual_seed(0)
    assert torch.equal(found["loss"], ClickTask(student, 2)(default_collate([Noise(0)[n] for n in range(2)]))["loss"])


def test_a_teacher_is_asked_about_every_view_once_and_never_again(tmp_path, monkeypatch):
    _, teacher, _ = the_task()
    first = Taught(Noise(0), teacher, [4, 0], 4, tmp_path / "told")
    monkeypatch.setattr(teacher, "encode", lambda image: pytest.fail("the teacher is asked again"))
    again = Taught(Noise(0), teacher, [4, 0], 4, tmp_path / "told")
    views = [float(again[number]["seen"].sum()) for number in range(8)]
    assert len(set(views[:4])) == 4
    assert sorted(views[:4]) == sorted(views[4:])
    assert all(torch.equal(first[n][name], again[n][name]) for n in range(4) for name in first[n])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_teacher_that_stops_halfway_leaves_nothing_behind(tmp_path):
    _, teacher, _ = the_task()

    def until_the_second(numbers):
        yield numbers[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Taught(Noise(0), teacher, [4, 0], 4, tmp_path / "told", until_the_second)
    assert not list(tmp_path.iterdir())


def test_stages_may_last_unlike_long_and_compare_by_size():
    student, _, task = the_task(lengths=[0.5, 0.25, 0.25], loss="l1")
    stages = []
    for part in (0.29, 0.31, 0.44, 0.46):
        task.at(part)
        stages.append(task.stage)
    assert stages == [0, 1, 1, 2]
    task.at(0.0)
    teacher = task._teacher[0]
    given = batch()
    expected = (student.encode(given["image"]).taps[0] - teacher.encode(given["image"]).taps[0]).abs().mean()
    assert task(given)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_with_kept_answers_that_was_killed_ends_with_the_same_weights(a_dataset, a_home, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    short = {**TINY, "max_steps": 4, "validate_every": 1.0}
    runs.train(
        runs.start("sam-med3d", a_dataset, tmp_path / "teacher", settings={**short, **SMALL, "depth": 2}, fold=fold)
    )
    given = {"depth": 2, "still": 1, "turns": 2, "views": 3, "pairs": [[1, 1], [0, 0]], "stages": [1, 2]}
    settings = {**short, **given, "teacher": str(tmp_path / "teacher")}

    def start(name):
        return runs.start("fastsam3d", a_dataset, tmp_path / name, settings=settings, fold=fold)

    runs.train(start("whole"))
    kept = sorted(path.name for path in (a_home / "prepared").glob("taught-*"))
    assert [name.split("-", 2)[2] for name in kept] == ["block-0.npy", "block-1.npy", "seen.npy"]

    def stop(now):
        if now.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.train(start("broken"), stop)
    runs.train(start("broken"))
    assert sorted(path.name for path in (a_home / "prepared").glob("taught-*")) == kept
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pairs": [[4, 1]]}, r"\[4, 1\] is no pair of blocks: the student has 2, the teacher 2"),
        ({"pairs": [[1, 2], [0, 0]], "stages": [1]}, "2 lengths above 0 are needed"),
        ({"stages": [1, 0, 1]}, "3 lengths above 0 are needed"),
    ],
)
def test_stages_that_will_not_do_are_refused(given, told):
    with pytest.raises(BadInput, match=told):
        stages_of(StudentConfig(**given), 2, 2)


def test_stages_are_refused_before_anything_is_written(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    short = {**TINY, "max_steps": 1, "validate_every": 1.0}
    runs.train(
        runs.start("sam-med3d", a_dataset, tmp_path / "teacher", settings={**short, **SMALL, "depth": 2}, fold=fold)
    )
    settings = {**short, "depth": 2, "still": 1, "teacher": str(tmp_path / "teacher"), "pairs": [[3, 1]]}
    with pytest.raises(BadInput, match="is no pair of blocks"):
        runs.start("fastsam3d", a_dataset, tmp_path / "student", settings=settings, fold=fold)
    assert not (tmp_path / "student").exists()


def test_weights_to_begin_with_that_are_none_are_refused_by_their_option(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    with pytest.raises(BadInput, match="--init volsam-s: such training begins with SAM-Med3D"):
        runs.start("sam-med3d", a_dataset, tmp_path / "run", settings={}, fold=fold, init="volsam-s")


def test_a_teacher_that_is_none_is_refused(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    with pytest.raises(BadInput, match="--teacher sam-mini: a student of FastSAM3D learns from SAM-Med3D and its like"):
        runs.start("fastsam3d", a_dataset, tmp_path / "student", settings={"teacher": "sam-mini"}, fold=fold)


# --- a teacher of another kind ---------------------------------------------------------------------------------------


def test_likenesses_do_not_depend_on_the_space_they_are_in():
    torch.manual_seed(0)
    embedding = torch.randn(2, 6, 4, 4, 4)
    turned, _ = torch.linalg.qr(torch.randn(9, 9))
    other = 3 * torch.einsum("bcdhw,ec->bedhw", torch.cat([embedding, torch.zeros(2, 3, 4, 4, 4)], dim=1), turned) + 1
    assert alikeness(embedding, other, nn.functional.mse_loss) < 1e-10
    assert alikeness(embedding, torch.randn(2, 9, 4, 4, 4), nn.functional.mse_loss) > 0.1
    finer = nn.functional.interpolate(other, scale_factor=2, mode="nearest")
    assert alikeness(embedding, finer, nn.functional.mse_loss) < 1e-10


def test_a_teacher_with_other_axes_tells_in_the_student_s():
    class Corner(nn.Module):
        """Marks in two channels the first half of its first axis and of its last."""

        def encode(self, image):
            first, last = torch.zeros_like(image), torch.zeros_like(image)
            first[:, :, :2], last[..., :2] = 1, 1
            return Features(torch.cat([first, last, image], dim=1), (), image)

    image = torch.randn(1, 1, 4, 4, 4)
    told = Onlooker(Corner(), lambda seen: seen, (2, 1, 0)).encode(image).embedding[0]
    assert (told[0, ..., :2] == 1).all()
    assert (told[1, :2] == 1).all()
    assert told[0].sum() == told[1].sum() == 32
    assert torch.equal(told[2], image[0, 0]), "what lies in one place stays in one place"


@pytest.mark.parametrize("views", [0, 3])
@pytest.mark.parametrize("kind", ["volsam-s", "adapt-clicks", "3dsam-adapter"])
def test_any_promptable_3d_model_may_teach(a_dataset, tmp_path, kind, views):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    short = {**TINY, "max_steps": 2, "validate_every": 1.0, "batch_size": 1}
    name = kind
    if kind != "volsam-s":
        own = {"edge": 32} if kind == "adapt-clicks" else {"edge": 16, "enlarged": 4, "attention": 2, "out": 16}
        name = str(tmp_path / "teacher")
        runs.train(runs.start(kind, a_dataset, tmp_path / "teacher", settings={**short, **own}, fold=fold))
    given = {**SMALL, "depth": 2, "still": 1, "turns": 2, "views": views, "teacher": name, "imitation": 0.5}
    job = runs.start("fastsam3d", a_dataset, tmp_path / "student", settings={**short, **given}, fold=fold)
    assert job.task.pairs == [EMBEDDING]
    batch = default_collate([job.items[0]])
    before = {name: value.clone() for name, value in job.network.named_parameters()}
    job.task.at(0.0)
    lost = job.task(batch)["loss"]
    lost.backward()
    assert 0 < lost.item() < 4, "a difference of cosines"
    learns = {name.split(".")[0] for name, value in job.network.named_parameters() if value.grad is not None}
    assert learns == {"encoder"}
    job.network.zero_grad()
    runs.train(job)
    assert any(not torch.equal(before[name], value) for name, value in job.network.named_parameters())
    record = runs.RunFolder(tmp_path / "student").record()
    assert record.teacher.sha256
    assert load(str(tmp_path / "student"), "cpu").network.config.encoder.width == SMALL["width"]


@pytest.mark.parametrize(("edge", "patch"), [(40, 10), (16, 4)])
def test_cubes_that_the_teacher_cannot_look_at_are_refused(a_dataset, tmp_path, edge, patch):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    settings = {**SMALL, "edge": edge, "patch": patch, "teacher": "volsam-s"}
    with pytest.raises(BadInput, match=f"looks at cubes of 32, 48, 64 ... voxels, got edge={edge}"):
        runs.start("fastsam3d", a_dataset, tmp_path / "student", settings=settings, fold=fold)
    assert not (tmp_path / "student").exists()
