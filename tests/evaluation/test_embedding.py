"""Features of several datasets in the plane."""

import csv
from math import isnan

import numpy as np
import pytest

from volsam.errors import BadInput
from volsam.evaluation.embedding import Point, placed, silhouette, write

pytest.importorskip("sklearn")

# scikit-learn's t-SNE looks for threads in ways that warn on some systems; that is not a finding about ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def points(apart: float, count: int = 8) -> list[Point]:
    """Two datasets whose features differ by so much."""
    rng = np.random.default_rng(0)
    return [
        Point(name, f"{name}{number}", (rng.normal(0, 1, 12) + shift).astype(np.float32))
        for name, shift in (("ct", 0.0), ("mr", apart))
        for number in range(count)
    ]


def test_datasets_that_differ_lie_apart():
    places = placed(points(20.0))
    first, second = places[:8], places[8:]
    within = max(np.linalg.norm(group - group.mean(axis=0), axis=1).max() for group in (first, second))
    assert np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)) > within
    assert silhouette(points(20.0)) > 0.8
    assert silhouette(points(0.0)) < 0.2


def test_the_same_features_lie_in_the_same_places():
    assert np.array_equal(placed(points(5.0)), placed(points(5.0)))


def test_one_dataset_has_no_silhouette():
    assert isnan(silhouette(points(1.0)[:8]))


def test_too_few_points_are_refused():
    with pytest.raises(BadInput, match="needs 4 cases or slices, got 3"):
        placed(points(1.0)[:3])


def test_places_are_written_with_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    write(points(5.0), "a model", tmp_path)
    rows = list(csv.DictReader((tmp_path / "embeddings.csv").read_text().splitlines()))
    assert [row["dataset"] for row in rows] == ["ct"] * 8 + ["mr"] * 8
    page = (tmp_path / "embeddings.html").read_text()
    assert page.count("<svg") == 1
    assert "Silhouette" in page
