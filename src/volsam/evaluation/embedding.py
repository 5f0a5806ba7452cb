"""Where a model's features of several datasets lie beside one another, brought to the plane by t-SNE.

Cases of one dataset that lie together, far from others, show that the model sees what they come from (scanner,
modality, organ); a mixture shows that it does not. The picture is for the eye; the silhouette is its number, taken in
the features themselves: 1 where datasets lie apart, 0 where they are mixed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from volsam.data.files import replacing
from volsam.errors import BadInput, MissingExtra
from volsam.evaluation import figures, page
from volsam.evaluation.page import Block, Drawing, Heading, Points, Table

# Features are first brought to so many principal directions, as is usual before t-SNE.
DIRECTIONS = 50
FEWEST = 4


@dataclass(frozen=True)
class Point:
    """A region or slice of a case: its features (n,)."""

    dataset: str
    case: str
    features: NDArray[np.float32]


def placed(points: Sequence[Point], seed: int = 0) -> NDArray[np.float64]:
    """Places (n, 2) in the plane; near means alike, distances between groups mean little."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError:
        raise MissingExtra("t-SNE", "train") from None
    if len(points) < FEWEST:
        raise BadInput(f"t-SNE needs {FEWEST} cases or slices, got {len(points)}: give more datasets, or more of each")
    table = _table(points)
    directions = min(DIRECTIONS, *table.shape)
    reduced = PCA(directions, random_state=seed).fit_transform(table)
    perplexity = min(30.0, (len(points) - 1) / 3)
    return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced))


def silhouette(points: Sequence[Point]) -> float:
    """How far datasets lie apart in the features, -1 to 1; nan where there is one, or one of a single point."""
    from sklearn.metrics import silhouette_score

    names = [point.dataset for point in points]
    if len(set(names)) < 2 or len(set(names)) >= len(names):
        return nan
    return float(silhouette_score(_table(points), names))


def in_words(silhouette: float) -> str:
    """The number, or that there is none."""
    return "none, it takes two datasets of several points" if isnan(silhouette) else f"{silhouette:.3f}"


def write(points: Sequence[Point], model: str, folder: Path) -> float:
    """Write embeddings.csv and embeddings.html; gives the silhouette."""
    places = placed(points)
    apart = silhouette(points)
    folder.mkdir(parents=True, exist_ok=True)
    groups = _by_dataset(points, places)
    blocks: list[Block] = [
        Heading(f"Features of {model}", level=1),
        Points(
            [
                "Features are the mean over each region or slice of what the encoder gives, each of unit spread",
                "t-SNE after principal components, with a fixed seed: near means alike, far means little",
                f"Silhouette of the datasets: {in_words(apart)} (1: apart, 0: mixed)",
            ]
        ),
        Table(["dataset", "points"], [[name, str(len(found))] for name, found in groups.items()]),
        Drawing(figures.points(groups, f"{model}, by dataset"), "Each point is a region or a slice of a case."),
    ]
    for name, text in (("embeddings.csv", _csv(points, places)), ("embeddings.html", page.as_html(blocks))):
        with replacing(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return apart


def _table(points: Sequence[Point]) -> NDArray[np.float64]:
    """Features (n, m), each of mean 0 and spread 1 over all points."""
    table = np.stack([point.features for point in points]).astype(np.float64)
    spread = table.std(axis=0)
    return np.asarray((table - table.mean(axis=0)) / np.where(spread > 0, spread, 1))


def _by_dataset(points: Sequence[Point], places: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
    names = dict.fromkeys(point.dataset for point in points)
    return {name: places[[point.dataset == name for point in points]] for name in names}


def _csv(points: Sequence[Point], places: NDArray[np.float64]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "case", "x", "y"])
    for point, (x, y) in zip(points, places, strict=True):
        writer.writerow([point.dataset, point.case, f"{x:.5g}", f"{y:.5g}"])
    return text.getvalue()
