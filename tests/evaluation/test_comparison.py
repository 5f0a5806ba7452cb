"""Several reports side by side."""

import csv
import json
from dataclasses import replace
from math import inf

import pytest

from volsam.errors import BadInput
from volsam.evaluation import comparison, comparison_page, report
from volsam.evaluation.study import Row

from .test_report import a_report


def test_methods_are_compared_with_the_first(tmp_path):
    reports = comparison.named([a_report(), a_report(0.1, name="better"), a_report(-0.05, name="worse")])
    found = comparison_page.write(reports, tmp_path)
    overall = {test.method: test for test in found if (test.measure, test.object) == ("dice", comparison.EVERYTHING)}
    assert overall["better"].result.difference == pytest.approx(0.1)
    assert overall["worse"].result.difference == pytest.approx(-0.05)
    assert overall["better"].holm == pytest.approx(2 * overall["better"].result.p)
    assert {test.object for test in found} == {comparison.EVERYTHING, "liver", "spleen"}
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".html", ".json", ".md"]
    text = (tmp_path / "comparison.md").read_text()
    assert "| better | all objects | 0.675 | 0.775 | +0.100 [+0.100, +0.100] |" in text
    assert "## Answer by answer" in text
    assert "better 0.775, volsam-s 0.675: +0.100" in comparison_page.line_of(overall["better"], "volsam-s")


def test_scores_of_two_rules_or_of_other_cases_are_not_compared(tmp_path):
    with pytest.raises(BadInput, match="rule 'standard' and 'autosam'"):
        comparison_page.write(comparison.named([a_report(), a_report(name="b", rule="autosam")]), tmp_path)
    other = a_report(name="b")
    rows = [Row(f"another {row.case}", row.object, row.voxels, row.scores, row.seconds) for row in other.rows]
    with pytest.raises(BadInput, match="no case in common"):
        comparison_page.write(
            comparison.named([a_report(), report.Report(other.settings, other.steps, rows)]), tmp_path
        )
    with pytest.raises(BadInput, match="two or more"):
        comparison_page.write(comparison.named([a_report()]), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ({"objects": {"liver": 1, "spleen": 2}}, {"objects": {"liver": 1, "spleen": [2, 3]}}, r"spleen 2 and \[2, 3\]"),
        ({"ignore": None}, {"ignore": 3}, "ignore None and 3"),
    ],
)
def test_scores_of_other_labels_under_one_name_are_refused(tmp_path, one, two, said):
    with pytest.raises(BadInput, match=rf"were scored with .*{said}: such scores cannot be compared"):
        written(tmp_path, a_report(**one), a_report(name="other", **two))
    written(tmp_path, a_report(**one), a_report(name="same", **one))
    written(tmp_path, a_report(**one), a_report(name="from an older version"))


def test_objects_that_one_report_lacks_may_have_any_value(tmp_path):
    some, others = {"liver": 1, "spleen": 2}, {"liver": 1, "kidney": 2}
    written(tmp_path, a_report(objects=some), a_report(name="other", objects=others))


def test_scores_by_number_of_labels_make_a_curve(tmp_path):
    made = [
        a_report(add, name=name, trained_on=count)
        for name, count, add in (("unet", 1, -0.2), ("unet", 5, 0.0), ("autosam", 1, -0.1), ("autosam", 5, 0.02))
    ]
    comparison_page.write(comparison.named(made), tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "## By number of labelled volumes" in text
    assert "| method | 1 | 5 |" in text
    assert "unet, 1 volume" in text


def test_names_of_methods_are_told_apart():
    same = [a_report(), a_report(), a_report()]
    assert len(comparison.named(same)) == 3


def test_methods_that_were_asked_differently_have_no_common_curve(tmp_path):
    comparison_page.write(comparison.named([a_report(), a_report(steps=("automatic",), name="auto")]), tmp_path)
    assert "Answer by answer" not in (tmp_path / "comparison.md").read_text()


def section(text, title):
    """The part of a page under a heading."""
    return text.split(f"## {title}")[1].split("\n## ")[0]


def written(folder, *reports):
    """The page, the tests by what they are of, and the same lines of the CSV."""
    comparison_page.write(comparison.named(list(reports)), folder)
    data = json.loads((folder / "comparison.json").read_text())
    lines = csv.DictReader((folder / "comparison.csv").read_text().splitlines())
    found = {(test["method"], test["measure"], test["object"]): test for test in data["tests"]}
    return (folder / "comparison.md").read_text(), found, list(lines)


def test_wins_mean_the_same_in_page_and_data_where_less_is_better(tmp_path):
    closer = a_report(name="closer")
    for row in closer.rows:
        row.scores["hd95"][1] = 1.0 if row.case != "case 3" else 9.0
    text, found, lines = written(tmp_path, a_report(), closer)
    test = found["closer", "hd95", comparison.EVERYTHING]
    assert (test["wins"], test["losses"]) == (5, 1)
    (line,) = (each for each in lines if (each["measure"], each["object"]) == ("hd95", comparison.EVERYTHING))
    assert (line["wins"], line["losses"]) == ("5", "1")
    cells = [cell.strip() for cell in section(text, "HD95").splitlines()[4].split("|")]
    assert cells[-2] == "5, 1"


def test_what_stands_beside_p_is_told_by_case(tmp_path):
    first, other = a_report(), a_report(name="other")
    for made, gain in ((first, 0.0), (other, 0.02)):
        made.rows[:] = [row for row in made.rows if row.object == "liver" or row.case == "case 2"]
        for row in made.rows:
            # Worse at the object that every case has, and much better at the one of a single case.
            row.scores["dice"][1] -= gain if row.object == "liver" else -10 * gain
    text, found, lines = written(tmp_path, first, other)
    test = found["other", "dice", comparison.EVERYTHING]
    assert test["difference"] == pytest.approx(0.09)
    assert test["difference_by_case"] == pytest.approx((5 * -0.02 + 0.09) / 6)
    assert (test["wins"], test["losses"]) == (1, 5)
    assert float(lines[0]["difference_by_case"]) == pytest.approx(test["difference_by_case"])
    dice = section(text, "Dice")
    assert "| by case | p | better, worse |" in dice
    assert "| +0.090 [" in dice
    assert "| -0.002 | 0." in dice
    assert "| 1, 5 |" in dice
    assert "Fewer than 5 cases have spleen (1):" in text
    (whole,) = (
        test
        for test in comparison.tests(comparison.named([first, other]))
        if (test.measure, test.object) == ("dice", comparison.EVERYTHING)
    )
    said = comparison_page.line_of(whole, "volsam-s")
    assert "+0.090 (" in said
    assert "; by case -0.002, p 0." in said
    assert "better in 1 and worse in 5 of 6 cases" in said


def test_what_is_infinite_is_counted_and_means_are_over_what_all_have(tmp_path):
    first, missing, third = a_report(), a_report(name="missing"), a_report(name="third")
    for row in missing.rows:
        row.scores["hd95"][1] = inf if row.case in ("case 1", "case 2") else 2.0
    for row in first.rows:
        row.scores["hd95"][1] = 30.0 if row.case in ("case 1", "case 2") else 4.0
    third.rows[:] = [row for row in third.rows if row.case != "case 5"]
    text, found, _ = written(tmp_path, first, missing, third)
    test = found["missing", "hd95", comparison.EVERYTHING]
    assert (test["first"], test["second"], test["cases"], test["left_out"]) == (4.0, 2.0, 4, 4)
    # Of the third the first object of case 0 is infinite.
    methods = section(text, "Methods")
    assert methods.count("4.000 [4.000, 4.000]; 5 infinite, left out") == 2
    assert methods.count("2.000 [2.000, 2.000]; 5 infinite, left out") == 1
    assert "| volsam-s | clicks | 5 |" in methods, "case 5 is not in all"
    assert "| method | object | first | method's | difference [95 %] | cases | left out |" in text
    assert "| missing | all objects | 4.000 | 2.000 | -2.000 [-2.000, -2.000] | 4 | 4 |" in text


def test_a_measure_that_is_nowhere_finite_is_told(tmp_path):
    first, other = a_report(), a_report(name="other")
    for row in other.rows:
        row.scores["hd95"][1] = inf
    text, found, _ = written(tmp_path, first, other)
    assert found["other", "hd95", comparison.EVERYTHING]["left_out"] == 12
    assert "| other | all objects | - | - | - | 0 | 12 |" in section(text, "HD95")
    said = [comparison_page.line_of(test, "volsam-s") for test in comparison.tests(comparison.named([first, other]))]
    assert "HD95 other, volsam-s: nothing finite in both; 12 infinite, left out" in said


def test_reports_of_one_case_are_compared_without_an_interval(tmp_path):
    made = [a_report(), a_report(0.1, name="b")]
    for each in made:
        each.rows[:] = each.rows[:2]
    text, _, _ = written(tmp_path, *made)
    said = [comparison_page.line_of(test, "volsam-s") for test in comparison.tests(comparison.named(made))]
    assert said[0].startswith("Dice b 0.650, volsam-s 0.550: +0.100, no interval; by case +0.100")
    assert "nan" not in text + " ".join(said)
    assert "nan" not in (tmp_path / "comparison.csv").read_text()


def test_several_reports_of_one_number_of_labels_are_all_in_the_curve(tmp_path):
    made = [a_report(add, name="unet", trained_on=count) for count, add in ((1, -0.2), (1, -0.1), (5, 0.0))]
    text, _, _ = written(tmp_path, *made)
    line = section(text, "By number of labelled volumes")
    assert "| unet | 0.525 [0.475, 0.575], 2 reports | 0.675 [" in line
    assert line.count("reports |") == 1


def test_ways_of_asking_have_a_line_each_by_number_of_labels(tmp_path):
    asked = [
        {"protocol": "clicks", "steps": ("1 click", "2 clicks")},
        {"protocol": "clicks", "where": "random", "steps": ("1 click", "2 clicks")},
        {"protocol": "automatic", "steps": ("automatic",)},
    ]
    made = [a_report(name="unet", trained_on=count, **words) for count in (1, 5) for words in asked]
    made += [a_report(name="other", trained_on=count) for count in (1, 5)]
    text, _, _ = written(tmp_path, *made)
    lines = section(text, "By number of labelled volumes")
    names = [line.split(" | ")[0] for line in lines.splitlines() if line.startswith("| ")][2:]
    assert names == ["| unet, clicks, 2 clicks", "| unet, clicks, random, 2 clicks", "| unet, automatic", "| other"]
    assert "reports" not in lines.split("Dice, with")[0]


def test_other_files_under_one_name_are_refused_and_unknown_ones_told(tmp_path):
    known = {f"case {number}": {"image": "a", "label": f"b{number}"} for number in range(6)}
    first, same = (replace(a_report(name=name), digests=known) for name in ("first", "same"))
    text, _, _ = written(tmp_path, first, same)
    assert "is not known" not in text
    others = {case: digests | {"label": "c"} for case, digests in known.items() if case > "case 3"}
    with pytest.raises(
        BadInput, match=r"first and other were scored on different files of case 4 \(label\) and 1 more"
    ):
        written(tmp_path, first, replace(a_report(name="other"), digests=others))
    text, _, _ = written(tmp_path, first, a_report(name="older"))
    assert "Whether older had the same images and labels is not known: cases go by their names" in text


def test_digests_come_back_from_the_file(tmp_path):
    from volsam.evaluation import report_page

    report_page.write(replace(a_report(), digests={"case 0": {"label": "b"}}), tmp_path)
    assert report.read(tmp_path).digests == {"case 0": {"label": "b"}}
    data = json.loads((tmp_path / "results.json").read_text())
    del data["digests"]
    (tmp_path / "results.json").write_text(json.dumps(data))
    assert report.read(tmp_path).digests == {}


def test_many_reports_of_one_name_are_numbered():
    names = list(comparison.named([a_report() for _ in range(4)]))
    assert names == ["volsam-s", "volsam-s, clicks", "volsam-s, clicks (2)", "volsam-s, clicks (3)"]
