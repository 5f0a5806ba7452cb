"""Reports and comparisons as files."""

import csv
import json
from html.parser import HTMLParser
from math import inf, nan

import pytest

from volsam.errors import BadFile, BadInput
from volsam.evaluation import comparison, figures, report, report_page
from volsam.evaluation.page import Heading, Picture, Points, Table, Text, as_html, as_markdown
from volsam.evaluation.study import Row

SETTINGS = {
    "model": "volsam-s",
    "weights": "0123456789abcdef",
    "dataset": "Liver",
    "split": "test",
    "protocol": "clicks",
    "described": "clicks on errors",
    "rule": "standard",
    "tolerance_mm": 2.0,
    "name": None,
    "trained_on": None,
}


def a_report(add=0.0, steps=("1 click", "2 clicks"), **changes):
    rows = []
    for case in range(6):
        for number, name in enumerate(("liver", "spleen")):
            first = 0.5 + 0.05 * case - 0.1 * number + add
            dice = [first, first + 0.1][: len(steps)]
            scores = {"dice": dice, "iou": [value / 2 for value in dice], "nsd": [value - 0.2 for value in dice]}
            scores |= {"hd": [nan, 9.0], "hd95": [nan, inf if (case, number) == (0, 0) else 4.0], "assd": [nan, 1.5]}
            scores = {measure: values[: len(steps)] for measure, values in scores.items()}
            rows.append(Row(f"case {case}", name, 100 + case, scores, [0.5, 0.1][: len(steps)], [[{}], [{}]]))
    return report.Report({**SETTINGS, **changes}, list(steps), rows, {"case 9": "no label"}, "a machine")


class Tags(HTMLParser):
    """What a page links to or loads, and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.sources, self.open, self.counts = [], [], {}

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_a_report_is_four_files_that_say_the_same(tmp_path):
    written = a_report()
    report_page.write(written, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.html",
        "report.md",
        "results.json",
        "scores.csv",
    ]
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["summary"]["dice"]["mean"]["value"] == pytest.approx(0.675)
    assert data["summary"]["dice"]["by_step"][0]["value"] == pytest.approx(0.575)
    assert data["summary"]["dice"]["by_object"]["liver"]["value"] == pytest.approx(0.725)
    assert data["summary"]["hd95"]["mean"]["left_out"] == 1
    lines = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert len(lines) == 6 * 2 * 2
    assert lines[1]["dice"] == "0.6"
    assert lines[1]["hd95"] == "inf"
    assert lines[0]["hd95"] == ""
    text = (tmp_path / "report.md").read_text()
    assert "0.675" in text
    assert "case 9: no label" in text
    assert "| 2 clicks |" in text
    assert "| small | 100 to 101 | 4 |" in text


def test_a_page_needs_nothing_beside_it(tmp_path):
    report_page.write(a_report(), tmp_path)
    tags = Tags()
    tags.feed((tmp_path / "report.html").read_text())
    assert tags.open == []
    assert tags.counts["table"] >= 4
    assert tags.counts.get("script") is None
    assert all(source.startswith(("data:", "#")) for source in tags.sources)


def test_plots_are_in_the_page_and_their_absence_is_said(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    report_page.write(a_report(), tmp_path)
    first = (tmp_path / "report.html").read_text()
    assert first.count("<svg") == 3
    report_page.write(a_report(), tmp_path)
    assert (tmp_path / "report.html").read_text() == first  # the same data make the same bytes
    monkeypatch.setattr(figures, "available", lambda: False)
    report_page.write(a_report(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<svg" not in page
    assert "extra &quot;train&quot;" in page


def test_a_report_comes_back_from_its_file(tmp_path):
    report_page.write(a_report(), tmp_path)
    for place in (tmp_path, tmp_path / "results.json"):
        again = report.read(place)
        assert again.mean("dice") == a_report().mean("dice")
        assert again.rows[0].scores["hd95"][1] == inf
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(BadFile, match="is not a results"):
        report.read(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(BadFile, match="not JSON"):
        report.read(tmp_path)
    with pytest.raises(BadFile, match="cannot be read"):
        report.read(tmp_path / "nowhere.json")
    (tmp_path / "results.json").write_text(json.dumps({"format": "volsam-evaluation", "version": 99}))
    with pytest.raises(BadFile, match="newer volsam"):
        report.read(tmp_path)


def test_a_report_without_any_case_says_so(tmp_path):
    empty = report.Report(SETTINGS, ["1 click"], [], {"a": "broken"}, "")
    report_page.write(empty, tmp_path)
    assert "No case was scored." in (tmp_path / "report.md").read_text()


def test_the_challenges_figures_are_means_over_classes_then_cases():
    steps = ("box", *(f"{count} clicks" for count in range(1, 6)))
    rows = []
    for case, name, value in (("a", "x", 1.0), ("a", "y", 0.0), ("b", "x", 1.0)):
        scores = {measure: [0.0, *[value] * 5] for measure in ("dice", "iou", "nsd", "hd", "hd95", "assd")}
        rows.append(Row(case, name, 10, scores, [100.0] * 6))
    made = report.Report({**SETTINGS, "protocol": "cvpr2025", "rule": "cvpr2025"}, steps, rows)
    assert report.challenge(made) == {
        "DSC_AUC": 3.0,
        "NSD_AUC": 3.0,
        "DSC_Final": 0.75,
        "NSD_Final": 0.75,
        "over_time": 2,
    }


def test_text_of_a_page_is_escaped(tmp_path):
    blocks = [Heading("<b> & co", 1), Text("a < b"), Points(["<i>"]), Table(["x|y"], [["<td>"]])]
    page = as_html(blocks)
    assert "<title>&lt;b&gt; &amp; co</title>" in page
    assert "<td>&lt;td&gt;</td>" in page
    assert "| x/y |" in as_markdown(blocks, tmp_path)


def test_pictures_are_taken_into_the_page(tmp_path):
    (tmp_path / "pictures").mkdir()
    file = tmp_path / "pictures" / "0100 a b.png"
    file.write_bytes(b"\x89PNG")
    assert "data:image/png;base64,iVBORw==" in as_html([Picture(file, "worst")])
    assert as_markdown([Picture(file, "worst")], tmp_path) == "![worst](<pictures/0100 a b.png>)\n"


# --- comparisons -----------------------------------------------------------------------------------------------------


def test_methods_are_compared_with_the_first(tmp_path):
    reports = comparison.named([a_report(), a_report(0.1, name="better"), a_report(-0.05, name="worse")])
    found = comparison.write(reports, tmp_path)
    overall = {test.method: test for test in found if (test.measure, test.object) == ("dice", comparison.EVERYTHING)}
    assert overall["better"].result.difference == pytest.approx(0.1)
    assert overall["worse"].result.difference == pytest.approx(-0.05)
    assert overall["better"].holm == pytest.approx(2 * overall["better"].result.p)
    assert {test.object for test in found} == {comparison.EVERYTHING, "liver", "spleen"}
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".html", ".json", ".md"]
    text = (tmp_path / "comparison.md").read_text()
    assert "| better | all objects | 0.675 | 0.775 | +0.100 |" in text
    assert "## Answer by answer" in text
    assert "better 0.775, volsam-s 0.675: +0.100" in comparison.in_words(overall["better"], "volsam-s")


def test_scores_of_two_rules_or_of_other_cases_are_not_compared(tmp_path):
    with pytest.raises(BadInput, match="rule 'standard' and 'autosam'"):
        comparison.write(comparison.named([a_report(), a_report(name="b", rule="autosam")]), tmp_path)
    other = a_report(name="b")
    rows = [Row(f"another {row.case}", row.object, row.voxels, row.scores, row.seconds) for row in other.rows]
    with pytest.raises(BadInput, match="no case in common"):
        comparison.write(comparison.named([a_report(), report.Report(other.settings, other.steps, rows)]), tmp_path)
    with pytest.raises(BadInput, match="two or more"):
        comparison.write(comparison.named([a_report()]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_scores_by_number_of_labels_make_a_curve(tmp_path):
    made = [
        a_report(add, name=name, trained_on=count)
        for name, count, add in (("unet", 1, -0.2), ("unet", 5, 0.0), ("autosam", 1, -0.1), ("autosam", 5, 0.02))
    ]
    comparison.write(comparison.named(made), tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "## By number of labelled volumes" in text
    assert "| method | 1 | 5 |" in text
    assert "unet, 1 volume" in text


def test_names_of_methods_are_told_apart():
    same = [a_report(), a_report(), a_report()]
    assert len(comparison.named(same)) == 3


def test_methods_that_were_asked_differently_have_no_common_curve(tmp_path):
    comparison.write(comparison.named([a_report(), a_report(steps=("automatic",), name="auto")]), tmp_path)
    assert "Answer by answer" not in (tmp_path / "comparison.md").read_text()
