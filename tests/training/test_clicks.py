import pytest
import torch
from torch import nn

from volsam.data.dataset import read_image
from volsam.errors import BadInput
from volsam.inference.session import Session
from volsam.models.prompt_encoder import NEGATIVE, NOT_A_POINT, POSITIVE
from volsam.models.segmenter import Segmenter
from volsam.prompts import Click
from volsam.recipes import runs
from volsam.recipes.click_methods import ClicksConfig, StudentConfig, segmenter_config, teacher_of
from volsam.recipes.importing import load
from volsam.training.clicks import ClickTask, clicks_on_errors
from volsam.training.distill import EMBEDDING, DistillTask, pairs_of

from .conftest import TINY

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
    (tmp_path / "teacher").rename(tmp_path / "gone")  # a student stands alone
    model = load(str(tmp_path / "student"), "cpu")
    assert model.network.config.encoder.depth == 3
    assert StudentConfig(**dict(runs.RunFolder(tmp_path / "student").record().config)).turns == 2


def test_a_teacher_that_is_none_is_refused(a_dataset, tmp_path):
    fold = runs.choose_cases(a_dataset, 0, None, 0)
    with pytest.raises(BadInput, match="learns from SAM-Med3D or a network like it"):
        runs.start("fastsam3d", a_dataset, tmp_path / "student", settings={"teacher": "volsam-s"}, fold=fold)
