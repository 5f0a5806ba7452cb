"""Cases scored one by one, in a folder that a run can go on in."""

import json
from math import inf, isnan, nan

import numpy as np
import pytest
from PIL import Image

from volsam.errors import BadFile, BadInput
from volsam.evaluation.pictures import draw
from volsam.evaluation.protocol import Objects, automatic, corrected, positive_only, together
from volsam.evaluation.rules import STANDARD, rules
from volsam.evaluation.study import Folder, Gallery, Row, Scene, as_record, from_record, score_case
from volsam.geometry import Grid
from volsam.prompts import Box, Click, PromptSet
from volsam.volume import Volume

GRID = Grid.at((16, 14, 12), (1, 1, 2))
SETTINGS = {"model": "a", "rule": "standard"}


@pytest.fixture
def a_scene():
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:10, 3:10, 2:8] = 1
    values = {"liver": 1, "spleen": 2}
    return Scene("one", Volume(labels * 50.0, GRID), Objects(labels, values))


def score(mask, target, far):
    return STANDARD.score(mask, target, GRID.spacing, far=far)


def a_row(case="one", dice=0.5, name="liver", voxels=10):
    scores = {measure: [dice] for measure in ("dice", "iou", "nsd")} | {"hd": [inf], "hd95": [2.5], "assd": [nan]}
    return Row(case, name, voxels, scores, [0.25], [[{"type": "point", "position": [1, 2, 3], "positive": True}]])


def test_an_automatic_model_is_scored_on_every_object_also_on_one_that_is_not_there(a_scene):
    rows = score_case(
        a_scene,
        lambda scene: automatic(lambda volume: scene.objects.labels, scene.volume, scene.objects, score),
        STANDARD,
    )
    assert [(row.object, row.scores["dice"], row.voxels > 0) for row in rows] == [
        ("liver", [1.0], True),
        ("spleen", [1.0], False),
    ]


def test_labels_of_another_shape_are_refused(a_scene):
    with pytest.raises(BadInput, match="do not lie on the grid"):
        list(automatic(lambda volume: a_scene.objects.labels[1:], a_scene.volume, a_scene.objects, score))


def test_a_box_comes_first_and_distances_are_measured_at_the_end_only(a_scene):
    target, asked = a_scene.objects["liver"], []

    def begin(volume):
        def ask(prompts):
            asked.extend(prompts)
            mask = target.copy()
            mask[: 5 - len(asked)] = False
            mask[3, 3, 2] = False  # never quite right
            return mask

        return ask

    box = Box((0, 0, 0), (9, 9, 9))
    played = corrected(begin, a_scene.volume, target, score, 2, box=box)
    assert asked[0] is box
    assert [type(prompt) for prompt in asked] == [Box, Click, Click]
    assert [isnan(step.scores.hd) for step in played.steps] == [True, True, False]


def test_an_answer_that_stays_has_distances_at_the_end_only(a_scene):
    """Means of the answers before would be over the objects alone that were right by then."""
    target = a_scene.objects["liver"]
    played = corrected(lambda volume: lambda prompts: target, a_scene.volume, target, score, 4)
    assert [step.scores.dice for step in played.steps] == [1] * 4
    for measure in ("hd", "hd95", "assd"):
        assert [isnan(getattr(step.scores, measure)) for step in played.steps] == [True, True, True, False]
    best = corrected(
        lambda volume: lambda prompts: target,
        a_scene.volume,
        target,
        lambda mask, target, far: score(mask, target, True),  # as where the best answer counts
        4,
    )
    assert [step.scores.hd for step in best.steps] == [0] * 4


def test_a_model_of_positive_clicks_is_corrected_where_it_missed(a_scene):
    target = a_scene.objects["liver"]
    everything = np.ones_like(target)
    assert positive_only(target, everything, GRID) is None
    some = target.copy()
    some[3:6] = False
    some[12:] = True
    assert positive_only(target, some, GRID).positive
    played = corrected(lambda volume: lambda prompts: everything, a_scene.volume, target, score, 3, place=positive_only)
    assert len(played.steps) == 3
    assert played.steps[0].scores.dice == played.steps[2].scores.dice < 1
    assert not isnan(played.steps[2].scores.hd)


def test_sets_of_prompts_have_a_conversation_each(a_scene):
    begun = []

    def begin(volume):
        begun.append(volume)
        return lambda prompts: a_scene.objects["liver"]

    sets = [PromptSet([Click((3, 3, 3))] * count) for count in (1, 3)]
    played = together(begin, a_scene.volume, a_scene.objects["liver"], score, sets)
    assert len(begun) == 2
    assert [len(step.prompts) for step in played.steps] == [1, 3]


def test_the_mask_of_the_answer_that_counts_is_kept(a_scene):
    target = a_scene.objects["liver"]
    better, worse = target.copy(), target.copy()
    better[3] = worse[3:6] = False
    answers = [better, worse, worse]

    def begin(volume):
        return lambda prompts: answers[len(prompts) - 1]

    def added(volume):
        masks = iter(answers)
        return lambda prompts: next(masks)

    sets = [PromptSet([Click((3, 3, 3))] * count) for count in (1, 2, 3)]
    for counted, kept in ((rules["fastsam3d"].counted, better), (STANDARD.counted, worse)):
        assert together(begin, a_scene.volume, target, score, sets, counted).mask is kept
        assert corrected(added, a_scene.volume, target, score, 3, counted=counted).mask is kept


def test_what_is_to_be_ignored_is_cut_from_answers():
    labels = np.array([[[0, 1, 2, 9]]])
    objects = Objects(labels, {"liver": 1, "spleen": 2}, ignore=9)
    assert objects.known(np.array([[[3, 3, 3, 3]]])).tolist() == [[[3, 3, 3, 0]]]
    mask = np.ones((1, 1, 4), bool)
    assert objects.judge(lambda volume: lambda prompts: mask)(None)(PromptSet()).tolist() == [
        [[True, True, True, False]]
    ]
    assert mask.all()
    assert Objects(labels, {"liver": 1}).known(mask) is mask
    only = Objects(labels, {"liver": 1, "heart": 5}, ignore=9).present()
    assert (list(only), only.ignore) == (["liver"], 9)
    assert objects.unknown.tolist() == only.unknown.tolist() == [[[False, False, False, True]]]
    assert Objects(labels, {"liver": 1}).unknown is None
    assert Objects(labels, {"liver": 1}, ignore=7).unknown is None


# --- the folder ------------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_with_infinity_and_nan(tmp_path):
    folder = Folder(tmp_path / "report")
    folder.open(SETTINGS)
    assert not folder.has("one")
    folder.keep("one", [a_row()])
    assert folder.has("one")
    (row,) = folder.rows(["zero", "one"])
    assert row.scores["hd"] == [inf]
    assert isnan(row.scores["assd"][0])
    assert row.prompts == a_row().prompts
    text = (tmp_path / "report" / "cases" / "one.json").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    assert from_record(as_record(row)).scores["hd95"] == [2.5]


def test_what_is_forgotten_takes_its_pictures_with_it(tmp_path):
    folder = Folder(tmp_path / "report")
    folder.open(SETTINGS)
    folder.pictures.mkdir()
    for case in ("one", "one more"):
        folder.keep(case, [a_row(case)], {"label": "abc"})
        (folder.pictures / f"0500 {case} liver.png").write_bytes(b"png")
    assert folder.digests(["one", "two"]) == {"one": {"label": "abc"}}
    folder.forget("one")
    assert not folder.has("one")
    assert [file.stem for file in folder.pictures.iterdir()] == ["0500 one more liver"]


def test_a_folder_goes_on_with_the_same_question_only(tmp_path):
    folder = Folder(tmp_path / "report")
    folder.open(SETTINGS)
    folder.keep("one", [a_row()])
    Folder(tmp_path / "report").open(SETTINGS)
    with pytest.raises(BadInput, match="another evaluation, with rule 'standard' and not 'autosam'"):
        folder.open({**SETTINGS, "rule": "autosam"})
    folder.open({**SETTINGS, "rule": "autosam"}, anew=True)
    assert not folder.has("one")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="no report of ours"):
        Folder(tmp_path).open(SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]


def test_a_damaged_case_is_named(tmp_path):
    folder = Folder(tmp_path / "report")
    folder.open(SETTINGS)
    folder.keep("one", [a_row()])
    (folder.cases / "one.json").write_text("{")
    with pytest.raises(BadFile, match=r"one\.json cannot be read"):
        folder.rows(["one"])


def test_the_gallery_keeps_the_worst(tmp_path, a_scene):
    drawn = []

    def write(scene, name, played, path):
        drawn.append(name)
        path.write_bytes(b"png")

    gallery = Gallery(tmp_path / "pictures", write, most=2)
    for case, dice in (("a", 0.9), ("b", 0.4), ("c", 0.95), ("d", 0.1), ("e", nan)):
        gallery.show(a_scene, a_row(case, dice), None)
    gallery.show(a_scene, a_row("f", 0.0, voxels=0), None)
    assert [path.stem for path in sorted((tmp_path / "pictures").iterdir())] == ["0100 d liver", "0400 b liver"]
    assert len(drawn) == 3
    several = a_row("g")
    several.scores["dice"] = [0.3, 0.8, 0.6]
    for rule, name in ((STANDARD, "0600 g liver"), (rules["fastsam3d"], "0800 g liver")):
        Gallery(tmp_path / rule.name, write, most=1, rule=rule).show(a_scene, several, None)
        assert [path.stem for path in (tmp_path / rule.name).iterdir()] == [name]
    Gallery(tmp_path / "none", write, most=0).show(a_scene, a_row(), None)
    assert not (tmp_path / "none").exists()


def test_a_picture_shows_what_is_right_missed_and_wrong(tmp_path, a_scene):
    target = a_scene.objects["liver"]
    draw(a_scene.volume, target, np.roll(target, 2, axis=0), tmp_path / "picture.png")
    pixels = np.asarray(Image.open(tmp_path / "picture.png")).reshape(-1, 3).astype(int)
    red, green, blue = pixels.T
    assert ((red > green + 40) & (red > blue + 40)).any()
    assert ((green > red + 30) & (green > blue + 30)).any()
    assert ((blue > red + 40) & (blue > green + 20)).any()


def test_planes_of_a_turned_scan_are_hung_the_same_way(tmp_path, a_scene):
    """The file's axes may run anyhow: the picture is that of the patient."""
    rng = np.random.default_rng(0)
    data = rng.normal(0, 1, GRID.shape).astype(np.float32)
    target = a_scene.objects["liver"]
    turned = GRID.reoriented("PSL")
    axes = (1, 2, 0)
    other = np.transpose(data, axes)[::-1, :, ::-1], np.transpose(target, axes)[::-1, :, ::-1]
    draw(Volume(data, GRID), target, target, tmp_path / "one.png")
    draw(Volume(np.ascontiguousarray(other[0]), turned), other[1], other[1], tmp_path / "two.png")
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "two"))
    assert np.array_equal(one, two)


def test_settings_are_readable(tmp_path):
    Folder(tmp_path / "report").open(SETTINGS)
    assert json.loads((tmp_path / "report" / "settings.json").read_text()) == SETTINGS
