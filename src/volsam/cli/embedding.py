"""`volsam evaluate --embeddings`: what an encoder makes of the cases of several datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from numpy.typing import NDArray

from volsam.cli.console import explained, say, track
from volsam.data.dataset import Case, Dataset, read_dataset, read_image, read_label
from volsam.data.simulate import bounding_box
from volsam.errors import BadInput
from volsam.evaluation import embedding
from volsam.evaluation.embedding import Point
from volsam.volume import Volume

if TYPE_CHECKING:
    from volsam.inference.session import Model

# Slices of a volume that a model of slices is shown.
SLICES = 8


def show_embeddings(name: str, folders: Sequence[Path], output: Path, device: str, plane: str) -> None:
    """Encode the training cases of every dataset and write where they lie."""
    from volsam.recipes.recipe import load_model

    model = load_model(name, device=device)
    datasets = _named([read_dataset(folder) for folder in folders])
    cases = [
        (called, case, list(dataset.objects.values())) for called, dataset in datasets.items() for case in dataset.cases
    ]
    points: list[Point] = []
    for dataset, case, values in track(cases, "cases"):
        try:
            points += [Point(dataset, case.name, vector) for vector in _vectors(model, case, values, plane)]
        except Exception as error:  # one case that cannot be read must not end the work on the others
            say(f"{dataset} {case.name} error: {' '.join(explained(error).split())}")
    apart = embedding.write(points, name, output)
    many = "s" * (len(folders) != 1)
    typer.echo(f"{len(points)} points of {len(folders)} dataset{many}, silhouette {embedding.in_words(apart)}")
    typer.echo(f"{output / 'embeddings.html'}, embeddings.csv")


def _named(datasets: Sequence[Dataset]) -> dict[str, Dataset]:
    """Datasets by their names; those that share one by name and folder."""
    names = [dataset.name for dataset in datasets]
    found: dict[str, Dataset] = {}
    for dataset in datasets:
        name = dataset.name if names.count(dataset.name) == 1 else f"{dataset.name} ({dataset.folder})"
        if name in found:
            raise BadInput(f"the dataset {dataset.folder} is given twice: give it once")
        found[name] = dataset
    return found


def _vectors(model: Model, case: Case, values: Sequence[int], plane: str) -> Iterator[NDArray[np.float32]]:
    """Features of the region around what is labelled, or of slices through it; of all, where nothing is."""
    from volsam.inference.predictor import Predictor
    from volsam.inference.slice_predictor import SlicePredictor
    from volsam.inference.slices import SliceModel

    volume = read_image(case)
    low, high = _span(case, volume, values)
    if isinstance(model, SliceModel):
        predictor = SlicePredictor(model, volume, plane)
        ends = np.rint(predictor.stack.to_voxels(volume.grid.to_world([low, high]))[:, 0]).astype(int)
        for index in np.unique(np.linspace(ends.min(), ends.max(), SLICES).round().astype(int)):
            yield _mean(predictor.encoded(int(index)), model.name)
        return
    extent = (high - low + 1) * volume.grid.spacing
    spacing = float(extent.max()) / model.edge if model.spacing is None else model.spacing
    middle = volume.grid.to_world((low + high) / 2)
    roi = volume.grid.around(middle, (model.edge,) * 3, spacing, model.axes)
    yield _mean(Predictor(model, volume).encoded(roi), model.name)


def _span(case: Case, volume: Volume, values: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last voxel (3,) of what is labelled, else of the volume."""
    box = None if case.label is None else bounding_box(np.isin(read_label(case, volume.grid), values))
    if box is None:
        return np.zeros(3), np.array(volume.grid.shape, float) - 1
    return np.array([side.start for side in box], float), np.array([side.stop - 1 for side in box], float)


def _mean(features: Any, name: str) -> NDArray[np.float32]:
    """The mean over the region of the deepest features."""
    found = getattr(features, "embedding", None)
    if found is None:
        raise BadInput(f"{name} does not show its features: choose another model")
    mean: NDArray[np.float32] = found[0].flatten(1).mean(dim=1).float().cpu().numpy()
    return mean
