"""Reports and comparisons as files."""

import csv
import json
from html.parser import HTMLParser
from math import inf, nan

import pytest

from volsam.errors import BadFile
from volsam.evaluation import figures, report, report_page
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


def test_a_case_that_took_too_long_is_named(tmp_path):
    steps = ("box", *(f"{count} clicks" for count in range(1, 6)))
    scores = {measure: [0.5] * 6 for measure in ("dice", "iou", "nsd", "hd", "hd95", "assd")}
    rows = [Row(case, "x", 10, scores, [seconds] * 6) for case, seconds in (("quick", 14.9), ("slow", 15.1))]
    settings = {**SETTINGS, "protocol": "cvpr2025", "rule": "cvpr2025"}
    report_page.write(report.Report(settings, steps, rows), tmp_path)
    assert "Longer than 90 s for each class took slow;" in (tmp_path / "report.md").read_text()
    challenge = json.loads((tmp_path / "results.json").read_text())["challenge"]
    assert (challenge["over_time"], challenge["slow"]) == (1, ["slow"])
    report_page.write(report.Report(settings, steps, rows[:1]), tmp_path)
    assert "Longer than" not in (tmp_path / "report.md").read_text()


def an_up_and_down(rule="fastsam3d"):
    """Ten cases with three answers each, of which the second is the best; distances are known of each."""
    rows = []
    for case in range(10):
        dice = [0.5, 0.9 - 0.01 * case, 0.7]
        scores = {"dice": dice, "iou": [value - 0.1 for value in dice], "nsd": [0.4, 0.6, 0.8]}
        scores |= {"hd": [9.0, 5.0, 7.0], "hd95": [8.0, 4.0, 6.0], "assd": [3.0, 1.0, 2.0]}
        rows.append(Row(f"case {case}", "liver", 100 + case, scores, [0.5, 0.1, 0.1]))
    return report.Report({**SETTINGS, "rule": rule}, ["1 click", "2 clicks", "3 clicks"], rows)


def test_where_the_best_answer_counts_all_that_is_shown_is_of_it(tmp_path):
    made = an_up_and_down()
    report_page.write(made, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Scores are those of the best of 3 answers, by Dice" in text
    together = {line.split(" | ")[0]: line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ")}
    assert together["| Dice"] == "0.855"
    # Of the same answer, also where another has a larger NSD.
    assert (together["| NSD"], together["| HD, mm"], together["| HD95, mm"], together["| ASSD, mm"]) == (
        "0.600",
        "5.000",
        "4.000",
        "1.000",
    )
    assert "| case 9 | liver | 109 | 0.810 | 0.600 | 4.00 |" in text  # the worst object
    lines = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [line["counts"] for line in lines[:3]] == ["0", "1", "0"]


def test_answer_by_answer_page_and_data_say_the_same_and_of_which_answers(tmp_path):
    for rule, curve, words in (
        ("fastsam3d", [0.5, 0.855, 0.855], "the best answer so far, by Dice"),
        ("standard", [0.5, 0.855, 0.7], "each answer"),
    ):
        report_page.write(an_up_and_down(rule), tmp_path)
        data = json.loads((tmp_path / "results.json").read_text())
        by_step = data["summary"]["dice"]["by_step"]
        assert [mean["value"] for mean in by_step] == pytest.approx(curve)
        assert data["by_step_is_of"] == words
        text = (tmp_path / "report.md").read_text()
        assert f"Scores are those of {words}." in text
        for name, value in zip(("1 click", "2 clicks", "3 clicks"), curve, strict=True):
            assert f"| {name} | {value:.3f}" in text


def test_infinite_distances_are_counted_wherever_they_are_left_out(tmp_path):
    made = a_report()
    report_page.write(made, tmp_path)
    text = (tmp_path / "report.md").read_text()
    by_object, by_size = (text.split(f"## {title}")[1].split("##")[0] for title in ("By object", "By size"))
    assert "| liver | 6 |" in by_object
    assert by_object.count("4.000 [4.000, 4.000]; 1 infinite, left out") == 1
    assert by_size.count("; 1 infinite, left out") == 1
    for row in made.rows:
        row.scores["hd95"][-1] = inf
    report_page.write(made, tmp_path)
    by_object = (tmp_path / "report.md").read_text().split("## By object")[1].split("##")[0]
    assert by_object.count("| -; 6 infinite, left out |") == 2


def test_objects_that_few_cases_have_are_named_beside_the_intervals(tmp_path):
    made = a_report()
    report_page.write(made, tmp_path)
    assert "Fewer than" not in (tmp_path / "report.md").read_text()
    kept = [row for row in made.rows if row.object == "liver" or row.case in ("case 0", "case 4")]
    report_page.write(report.Report(SETTINGS, made.steps, kept), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Fewer than 5 cases have spleen (2):" in text.split("## Together")[1].split("##")[0]


def test_one_case_has_no_interval_and_no_nan(tmp_path):
    made = a_report()
    report_page.write(report.Report(SETTINGS, made.steps, made.rows[:2]), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "One case, no interval." in text
    assert "nan" not in text
    assert "NaN" not in (tmp_path / "results.json").read_text()


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
