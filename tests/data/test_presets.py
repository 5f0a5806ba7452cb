"""Published datasets as the papers used them."""

import pytest

from volsam.data.presets import presets
from volsam.errors import BadInput


@pytest.mark.parametrize("name", list(presets))
def test_a_preset_is_whole(name):
    preset = presets[name]
    assert preset.name == name
    assert preset.labels and min(preset.labels.values()) == 0  # noqa: PT018
    values = [value for joined in preset.scored.values() for value in joined]
    assert len(values) == len(set(values))
    assert set(values) <= set(preset.labels.values()) - {0}
    names, mapped = preset.relabelled()
    assert list(names.values()) == list(range(len(names)))
    assert set(mapped) == set(preset.labels.values())
    assert mapped[0] == 0
    assert (preset.mean is None) == (preset.spread is None)
    if preset.window is not None:
        assert preset.window[0] < preset.window[1]


def test_the_papers_datasets_are_there():
    assert set(presets) == {
        "acdc",
        "amos22",
        "btcv",
        "endovis18",
        "kits21",
        "lits17",
        "msd-colon",
        "msd-pancreas",
        "prostate-6",
    }


@pytest.mark.parametrize(
    ("name", "case", "tests"),
    [
        ("btcv", "img0035", True),
        ("btcv", "0040", True),
        ("btcv", "img0034", False),
        ("btcv", "img0135", False),
        ("prostate-6", "A_0003", True),
        ("prostate-6", "E0000", True),
        ("prostate-6", "E_0003", False),
        ("prostate-6", "F_0046", True),
        ("prostate-6", "D_0321", False),
        ("acdc", "patient001_frame01", False),
    ],
)
def test_published_test_cases_are_told_by_their_names(name, case, tests):
    assert presets[name].tests(case) == tests


def test_cases_of_a_patient_stay_together():
    names = [f"patient{number:03d}_frame{frame:02d}" for number in range(1, 9) for frame in (1, 12)]
    for fold in presets["acdc"].folds(names, 4):
        assert len(fold.val) == 2
        assert not {name[:10] for name in fold.train} & {name[:10] for name in fold.val}


def test_names_that_are_not_those_of_the_dataset_are_refused():
    with pytest.raises(BadInput, match=r"has the name of a test case of btcv.*the first is called a"):
        presets["btcv"].folds(["b", "a", "c"])


def test_cases_without_a_published_list_are_dealt_out_in_its_shares():
    names = [f"case_{number:05d}" for number in range(300)]
    first, second, *others = presets["kits21"].folds(names)
    assert len(others) == 3
    assert (len(first.train), len(first.val), len(first.test)) == (210, 30, 60)
    assert sorted((*first.train, *first.val, *first.test)) == names
    assert first.test != second.test
    assert presets["kits21"].folds(names)[0] == first
    frames = [f"patient{number:03d}_frame{frame}" for number in range(20) for frame in ("01", "12")]
    heart = presets["acdc"].folds(frames)[0]
    assert (len(heart.train), len(heart.val), len(heart.test)) == (28, 6, 6)
    whose = [{name[:10] for name in part} for part in (heart.train, heart.val, heart.test)]
    assert not whose[0] & whose[1] | whose[0] & whose[2] | whose[1] & whose[2]


def test_patients_that_cannot_be_dealt_out_are_refused():
    with pytest.raises(BadInput, match="2 patients cannot be dealt out"):
        presets["lits17"].folds(["a", "b"])


def test_a_preset_tells_a_training_what_it_can_be_told():
    known = ("window", "mean", "spread", "spacing", "object", "edge")
    assert presets["kits21"].settings(known) == {
        "window": (-54.0, 247.0),
        "mean": 59.53867,
        "spread": 55.457336,
        "spacing": 1.0,
        "object": "tumour",
    }
    assert presets["btcv"].settings(("window",)) == {"window": (-200.0, 250.0)}
    assert presets["prostate-6"].settings(("window", "percentiles")) == {"percentiles": (0.0, 99.0)}
    assert presets["prostate-6"].settings(("window", "spacing")) == {}
