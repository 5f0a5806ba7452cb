"""The protocol of the CVPR 2025 challenge, and its files."""

from math import isnan, nan

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from volsam.errors import BadFile, BadInput
from volsam.evaluation import cvpr2025
from volsam.evaluation.cvpr2025 import answer, area, correction, middle_boxes, play, read_task, write_answer, write_task
from volsam.evaluation.protocol import Objects
from volsam.evaluation.rules import Scores, rules
from volsam.geometry import Grid
from volsam.prompts import Box, Click, PromptSet
from volsam.volume import Volume

GRID = Grid.at((20, 18, 10), (1, 1, 3))


@pytest.fixture
def objects():
    """Two organs with the values 2 and 5."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:9, 3:9, 2:8] = 2
    labels[11:18, 8:16, 1:7] = 5
    return Objects(labels, {"liver": 2, "spleen": 5})


@pytest.fixture
def a_volume(objects):
    return Volume(objects.labels * 40, GRID, "case")


def score(mask, target, far):
    return rules["cvpr2025"].score(mask, target, GRID.spacing, far=far)


class APupil:
    """Paints the slice of a box, then one more slice of the object for every click."""

    def __init__(self, objects):
        self.objects, self.asked = objects, []

    def __call__(self, volume, values):
        self.shown = {name: set() for name in values}
        return self.ask

    def ask(self, new):
        self.asked.append(new)
        labels = np.zeros(GRID.shape, np.uint8)
        for name, value in self.objects.values_of.items():
            for prompt in new.get(name, PromptSet()):
                place = prompt.low if isinstance(prompt, Box) else prompt.position
                self.shown[name].add(round(GRID.to_voxels(place)[2]))
            for k in self.shown[name]:
                labels[..., k][self.objects[name][..., k]] = value
        return labels


def test_a_box_and_then_five_clicks_for_all_objects_together(objects, a_volume):
    pupil = APupil(objects)
    played = play(pupil, a_volume, objects, score, middle_boxes(objects, GRID))
    assert [sorted(new) for new in pupil.asked] == [["liver", "spleen"]] * 6
    assert all(isinstance(next(iter(prompts)), Box) for prompts in pupil.asked[0].values())
    assert all(isinstance(next(iter(prompts)), Click) for prompts in pupil.asked[1].values())
    for name in objects:
        dices = [step.scores.dice for step in played[name].steps]
        assert len(dices) == 6
        assert dices == sorted(dices)
        assert dices[0] > 0
    assert np.array_equal(played["liver"].mask, pupil.ask({}) == 2)


def test_without_boxes_the_first_round_is_not_asked_and_scores_nothing(objects, a_volume):
    pupil = APupil(objects)
    played = play(pupil, a_volume, objects, score, None)
    assert len(pupil.asked) == 5
    assert played["liver"].steps[0].scores.dice == 0
    assert played["liver"].steps[0].prompts == ()
    first = played["liver"].steps[1].prompts[0]
    assert first.positive


def test_a_perfect_answer_gets_no_further_clicks(objects, a_volume):
    asked = []

    def begin(volume, values):
        return lambda new: asked.append(new) or objects.labels

    played = play(begin, a_volume, objects, score, middle_boxes(objects, GRID))
    assert all(len(prompts) == 0 for new in asked[1:] for prompts in new.values())
    assert [step.scores.dice for step in played["spleen"].steps] == [1] * 6


def test_the_area_under_five_perfect_answers_is_four():
    assert area([0, 1, 1, 1, 1, 1]) == 4
    assert area([0.9, 0.0, 0.2, 0.4, 0.6, 0.8]) == pytest.approx(0.1 + 0.3 + 0.5 + 0.7)


def test_a_click_falls_in_the_largest_piece_of_the_error_counting_corners_as_contact():
    target = np.zeros(GRID.shape, bool)
    target[2:5, 2:5, 2:5] = True
    target[5, 5, 5] = True  # touches the cube by a corner: one piece of 28 voxels
    mask = np.zeros(GRID.shape, bool)
    mask[10:13, 10:13, 2:5] = True  # a wrong piece of 27 voxels
    click = correction(target, mask, GRID)
    assert click.positive
    assert np.rint(GRID.to_voxels(click.position)).tolist() == [3, 3, 3]
    mask[13, 11, 3] = mask[14, 11, 3] = True
    wrong = correction(target, mask, GRID)
    assert not wrong.positive
    assert correction(target, target, GRID) is None


def test_ties_are_broken_as_in_the_challenge():
    """The scorer draws from a list of places in the order z, y, x with numpy's seed 42."""
    target = np.zeros(GRID.shape, bool)
    target[4:8, 5:9, 3:5] = True
    depth = distance_transform_edt(np.pad(np.transpose(target, (2, 1, 0)), 1))[1:-1, 1:-1, 1:-1]
    places = np.argwhere(depth == depth.max())
    np.random.seed(42)
    z, y, x = places[np.random.choice(len(places))]
    assert len(places) > 1
    click = correction(target, np.zeros_like(target), GRID)
    assert np.rint(GRID.to_voxels(click.position)).tolist() == [x, y, z]


def test_distances_are_in_voxels_and_end_at_the_border_of_the_error():
    target = np.zeros((30, 9, 9), bool)
    target[0:30, 0:9, 0:9] = True  # touches every side of the volume
    click = correction(target, np.zeros_like(target), Grid.at(target.shape, (9, 1, 1)))
    i, j, k = np.rint(Grid.at(target.shape, (9, 1, 1)).to_voxels(click.position)).astype(int)
    assert (j, k) == (4, 4)
    assert 4 <= i <= 25


def test_a_large_error_is_halved_and_still_clicked_inside(monkeypatch):
    monkeypatch.setattr(cvpr2025, "MOST_VOXELS", 200)
    target = np.zeros((34, 20, 18), bool)
    target[2:30, 2:18, 1:17] = True
    grid = Grid.at(target.shape, (1, 1, 1))
    click = correction(target, np.zeros_like(target), grid)
    voxel = np.rint(grid.to_voxels(click.position)).astype(int)
    assert target[tuple(voxel)]
    assert (np.abs(voxel - [15.5, 9.5, 8.5]) <= [7, 1.5, 1.5]).all()


def test_surface_scores_count_only_where_a_case_is_not_lost(objects, a_volume):
    from volsam.evaluation.study import row_of, settled

    low = Scores(0.1, 0.05, 0.6, 1, 1, 1)
    high = Scores(0.25, 0.2, 0.6, 1, 1, 1)
    rows = [row_of("a", name, objects[name], Steps(found)) for name, found in (("liver", low), ("spleen", high))]
    assert [row.scores["nsd"] for row in settled(rows, rules["cvpr2025"])] == [[0.0], [0.0]]  # 0.175 on average
    assert [row.scores["nsd"] for row in settled(rows, rules["standard"])] == [[0.6], [0.6]]
    better = [row_of("a", "liver", objects["liver"], Steps(high))]
    assert settled(better, rules["cvpr2025"])[0].scores["nsd"] == [0.6]


def test_a_class_that_does_not_count_neither_saves_nor_loses_a_case(objects):
    from volsam.evaluation.study import row_of, settled

    nothing, low = Scores(nan, nan, nan), Scores(0.15, 0.05, 0.6, 1, 1, 1)
    rows = [row_of("a", name, objects[name], Steps(found)) for name, found in (("liver", nothing), ("spleen", low))]
    found = settled(rows, rules["cvpr2025"])
    assert isnan(found[0].scores["nsd"][0])
    assert found[1].scores["nsd"] == [0.0]
    assert settled([rows[0]], rules["cvpr2025"]) == [rows[0]]


class Steps:
    """One answer with given scores."""

    def __init__(self, scores):
        from volsam.evaluation.protocol import Step

        self.steps = (Step(scores, (), 0.1),)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_task_comes_back_as_it_was_written(tmp_path, objects, a_volume):
    boxes = middle_boxes(objects, GRID)
    clicks = [Click(tuple(GRID.to_world([4, 5, 3]))), Click(tuple(GRID.to_world([12, 9, 2])), positive=False)]
    prompts = [(boxes["liver"], *clicks), (boxes["spleen"],)]
    write_task(tmp_path / "case.npz", a_volume, prompts, previous=objects.labels, labels=objects.labels)
    task = read_task(tmp_path / "case.npz")
    assert np.array_equal(task.volume.data, a_volume.data)
    assert np.allclose(task.volume.grid.spacing, GRID.spacing)
    assert np.array_equal(task.labels, objects.labels)
    assert np.array_equal(task.previous, objects.labels)
    read = [
        [task.volume.grid.to_voxels(p.low if isinstance(p, Box) else p.position) for p in of] for of in task.prompts
    ]
    written = [[GRID.to_voxels(p.low if isinstance(p, Box) else p.position) for p in of] for of in prompts]
    for ours, theirs in zip(read, written, strict=True):
        assert np.allclose(ours, theirs)
    assert [p.positive for p in task.prompts[0][1:]] == [True, False]


def test_the_order_in_the_file_is_z_y_x(tmp_path, a_volume, objects):
    write_task(tmp_path / "case.npz", a_volume, [(Click(tuple(GRID.to_world([4, 5, 3]))),)])
    with np.load(tmp_path / "case.npz", allow_pickle=True) as content:
        assert content["imgs"].shape == (10, 18, 20)
        assert content["imgs"].dtype == np.uint8
        assert content["spacing"].tolist() == [1, 1, 3]  # as SimpleITK gives it beside such an array
        assert content["clicks"][0] == {"fg": [[3, 5, 4]], "bg": []}
        assert list(content["clicks_order"][0]) == ["fg"]
        assert "boxes" not in content
    write_answer(objects.labels, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as content:
        assert content["segs"].dtype == np.uint8
        assert np.array_equal(content["segs"], np.transpose(objects.labels, (2, 1, 0)))


def test_a_file_made_by_the_scorer_is_read(tmp_path):
    """Lists of tables with numpy numbers in them, as the challenge's script saves them."""
    box = {"z_min": 1, "z_max": 6, "z_mid": np.int64(3), "z_mid_x_min": 2, "z_mid_y_min": 4}
    box |= {"z_mid_x_max": np.int64(9), "z_mid_y_max": 8}
    clicks = [{"fg": [[np.int64(3), np.int64(5), np.int64(4)]], "bg": [[1, 1, 1]]}]
    np.savez_compressed(
        tmp_path / "case.npz",
        imgs=np.zeros((10, 18, 20), np.uint8),
        spacing=(0.7, 0.8, 3.0),
        boxes=[box],
        clicks=clicks,
        clicks_order=[["bg", "fg"]],
    )
    task = read_task(tmp_path / "case.npz")
    first, *clicked = task.prompts[0]
    grid = task.volume.grid
    assert grid.shape == (20, 18, 10)
    assert np.allclose(grid.spacing, (0.7, 0.8, 3.0))
    assert np.allclose(grid.to_voxels([first.low, first.high]), [[2, 4, 3], [9, 8, 3]])
    assert [click.positive for click in clicked] == [False, True]
    assert np.allclose(grid.to_voxels(clicked[1].position), [4, 5, 3])


def test_rounds_without_an_error_have_no_click(tmp_path):
    """The script writes None for them, so that all classes have orders of one length."""
    np.savez_compressed(
        tmp_path / "case.npz",
        imgs=np.zeros((10, 18, 20), np.uint8),
        clicks=[{"fg": [[3, 5, 4]], "bg": [[1, 1, 1]]}, {"fg": [[2, 2, 2]], "bg": []}],
        clicks_order=[["bg", "fg"], ["fg", None]],
    )
    first, second = read_task(tmp_path / "case.npz").prompts
    assert [click.positive for click in first] == [False, True]
    assert [click.positive for click in second] == [True]


def test_boxes_are_written_for_every_class_or_for_none(tmp_path, objects, a_volume):
    """A file has boxes without names, so that one of a few classes would be taken for that of another."""
    click, boxes = Click(tuple(GRID.to_world([4, 5, 3]))), middle_boxes(objects, GRID)
    for prompts, said in (
        ([(click,), (boxes["spleen"],)], "class 1 has 0 boxes"),
        ([(boxes["liver"],), (boxes["spleen"], boxes["spleen"])], "class 2 has 2 boxes"),
    ):
        with pytest.raises(BadInput, match=f"{said}: in a file of the challenge every class has one box, or none has"):
            write_task(tmp_path / "case.npz", a_volume, prompts)
    assert list(tmp_path.iterdir()) == []


class Trap:
    def __reduce__(self):
        return (print, ("opened",))


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    trap = np.empty(1, object)
    trap[0] = Trap()
    np.savez(tmp_path / "case.npz", imgs=np.zeros((2, 2, 2), np.uint8), boxes=trap)
    with pytest.raises(BadFile, match=r"builtins\.print"):
        read_task(tmp_path / "case.npz")
    assert capsys.readouterr().out == ""


def test_what_is_no_case_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    with pytest.raises(BadFile, match="no imgs"):
        read_task(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(BadFile):
        read_task(tmp_path / "text.npz")
    with pytest.raises(BadFile, match="does not exist"):
        read_task(tmp_path / "nowhere.npz")


def test_a_task_is_answered_class_by_class(tmp_path, objects, a_volume):
    boxes = middle_boxes(objects, GRID)
    write_task(tmp_path / "case.npz", a_volume, [(boxes["liver"],), (boxes["spleen"],)])
    task = read_task(tmp_path / "case.npz")

    def begin(volume, values):
        assert values == {"class 1": 1, "class 2": 2}

        def ask(new):
            labels = np.zeros(volume.grid.shape, np.uint8)
            for name, prompts in new.items():
                i, j, k = np.rint(volume.grid.to_voxels(next(iter(prompts)).low)).astype(int)
                labels[i, j, k] = values[name]
            return labels

        return ask

    labels = answer(begin, task)
    assert sorted(np.unique(labels)) == [0, 1, 2]
    write_task(tmp_path / "bare.npz", a_volume, [])
    with pytest.raises(BadInput, match="neither boxes nor clicks"):
        answer(begin, read_task(tmp_path / "bare.npz"))
