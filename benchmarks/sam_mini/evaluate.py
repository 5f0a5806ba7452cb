"""Scores sam-mini slice by slice on scans it has not learnt from, and writes results.md.

    python benchmarks/sam_mini/evaluate.py --data ../shared/data

Three slices of every object, in the plane of the scan: its largest, and those a quarter and three quarters of the way
through it. On each: one click on the deepest pixel; two more clicks, each on the deepest pixel of the larger error,
with the last mask; and the tight box alone. Beside them stand simple rules: growing from the click over pixels
of nearly the same grey, with the tolerance that is best on these very slices, and the ellipse that fills the box.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from volsam.data.dataset import read_dataset, read_image, read_label
from volsam.evaluation.metrics import dice
from volsam.geometry import resample
from volsam.inference.slice_predictor import SlicePredictor
from volsam.inference.slices import SliceModel, SlicePrompts
from volsam.recipes.sam_mini import WEIGHTS, build
from volsam.volume import Volume

HERE = Path(__file__).parent
SPLIT = HERE.parent / "default_model" / "split.json"
NEVER_SEEN = ("left_atrium", "acdc_cardiac", "chaos_t2_abdomen", "headneck_ct", "prostate_t2", "brain_tumour")
HELD_OUT = ("hippocampus", "sarcoma_ct_tumour", "sarcoma_mr_t1_tumour", "sarcoma_pet_tumour")
EXCLUDED = {("headneck_ct", 8)}  # a planning volume with margins; its border is not visible
WHOLE = {"hippocampus": "whole hippocampus", "brain_tumour": "whole tumour"}  # all labels as one object
ONLY_WHOLE = {"brain_tumour"}
FEWEST_PIXELS = 16
TOLERANCES = (0.1, 0.2, 0.3, 0.4, 0.6)  # of growing, in standard deviations of the slice
METHODS = ("1 click", "3 clicks", "box")
RULES = (*(f"grow {part:g} SD" for part in TOLERANCES), "ellipse")


@dataclass(frozen=True)
class Asked:
    """One object in one slice."""

    set: str
    object: str
    predictor: SlicePredictor
    index: int
    target: np.ndarray


def main(arguments: list[str] | None = None) -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    words.add_argument("--weights", type=Path, default=WEIGHTS, help="under SAM's names; without it those that ship")
    words.add_argument("--cases", type=int, help="the first so many cases of each set")
    words.add_argument("--output", type=Path, default=HERE / "results.md")
    given = words.parse_args(arguments)
    torch.set_num_threads(1)
    model, began = build(given.weights), time.perf_counter()
    rows: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for name in (*NEVER_SEEN, *HELD_OUT):
        if not (given.data / name / "dataset.json").is_file():
            continue
        for asked in slices_of(given.data / name, model, given.cases):
            rows[asked.set, asked.object].append(scores(asked))
        print(f"{name}: {sum(len(found) for (of, _), found in rows.items() if of == name)} slices", flush=True)
    text = page(rows, given.weights, time.perf_counter() - began)
    given.output.write_text(text, encoding="utf-8")
    print(text)


def slices_of(folder: Path, model: SliceModel, most: int | None) -> Iterator[Asked]:
    """Every object of a set in up to three slices; cases that took part in training are left out."""
    dataset = read_dataset(folder)
    trained = json.loads(SPLIT.read_text())["training"].get(folder.name, [])
    cases = [case for case in dataset.cases if case.label is not None and case.name not in trained]
    objects = {name: (value,) for name, value in dataset.objects.items() if (folder.name, value) not in EXCLUDED}
    if folder.name in WHOLE:
        every = tuple(value for values in objects.values() for value in values)
        objects = ({} if folder.name in ONLY_WHOLE else objects) | {WHOLE[folder.name]: every}
    for case in cases[:most]:
        image = read_image(case)
        volume = Volume(image.data[:1], image.grid)
        predictor = SlicePredictor(model, volume, follow=False)
        flat = resample(read_label(case, volume.grid).astype(np.int16), volume.grid, predictor.stack, mode="nearest")
        labels = np.asarray(flat)
        for name, values in objects.items():
            target = np.isin(labels, values)
            areas = target.sum(axis=(1, 2))
            there = np.flatnonzero(areas >= FEWEST_PIXELS)
            if there.size == 0:
                continue
            chosen = {int(areas.argmax()), int(there[there.size // 4]), int(there[3 * there.size // 4])}
            for index in sorted(chosen):
                yield Asked(folder.name, name, predictor, index, target[index])


# --- one slice -------------------------------------------------------------------------------------------------------


def scores(asked: Asked) -> dict[str, float]:
    """Dice of every method and rule."""
    model, target = asked.predictor.model, asked.target
    encoded = asked.predictor.encoded(asked.index)
    points, labels = [deepest(target)], [True]
    found: dict[str, float] = {}
    previous = None
    for turn in (1, 2, 3):
        prompts = SlicePrompts(np.array(points, dtype=float), np.array(labels))
        answer = model.decode_slice(encoded, prompts, target.shape, previous)
        if turn != 2:
            found["1 click" if turn == 1 else "3 clicks"] = dice(answer.mask, target)
        previous = answer.low_res
        missed, added = target & ~answer.mask, answer.mask & ~target
        if not (missed.any() or added.any()):
            found["3 clicks"] = 1.0
            break
        positive = depth_of(missed) >= depth_of(added)
        points.append(deepest(missed if positive else added))
        labels.append(bool(positive))
    places = np.argwhere(target)
    box = np.array([places.min(axis=0) - 0.5, places.max(axis=0) + 0.5])
    found["box"] = dice(model.decode_slice(encoded, SlicePrompts(box=box), target.shape).mask, target)
    pixels = asked.predictor.pixels(asked.index)
    found |= {f"grow {part:g} SD": dice(grown(pixels, points[0], part), target) for part in TOLERANCES}
    found["ellipse"] = dice(ellipse(box, target.shape), target)
    return found


def depth_of(mask: np.ndarray) -> float:
    return float(ndimage.distance_transform_edt(np.pad(mask, 1)).max())


def deepest(mask: np.ndarray) -> tuple[int, int]:
    """Row and column of the pixel farthest from the border."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), mask.shape)
    return int(row), int(column)


def grown(pixels: np.ndarray, place: tuple[int, int], part: float) -> np.ndarray:
    """The connected pixels around a place that differ from it by less than a part of the SD, thin bridges cut."""
    smooth = ndimage.gaussian_filter(pixels, 1.0)
    alike = np.abs(smooth - smooth[place]) <= part * smooth.std()
    opened = ndimage.binary_opening(alike)
    parts, _ = ndimage.label(opened if opened[place] else alike)
    return parts == parts[place]


def ellipse(box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    middle, half = box.mean(axis=0), (box[1] - box[0]) / 2
    offsets = (np.stack(np.indices(shape), axis=-1) - middle) / half
    return (offsets**2).sum(axis=-1) <= 1


# --- the page --------------------------------------------------------------------------------------------------------


def page(rows: dict[tuple[str, str], list[dict[str, float]]], weights: Path, seconds: float) -> str:
    """Tables by set and by object; every object of a set weighs the same, and every set in the mean of sets."""
    every = [row for found in rows.values() for row in found]
    best = max(RULES[:-1], key=lambda rule: mean_of([mean(found, rule) for found in rows.values()]))
    heading = [*METHODS, f"simple, 1 click ({best})", "simple, box (ellipse)"]
    columns = [*METHODS, best, "ellipse"]
    total = len(every)
    lines = [
        "# What sam-mini reaches, slice by slice",
        "",
        f"Made by `benchmarks/sam_mini/evaluate.py`: {total} slices, {seconds:.0f} s with one thread. Weights: "
        f"{weights.name}, SHA-256 {hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}.",
        "",
        "Dice in the slice, on the scan's own pixels. Three slices of each object in the plane of the scan, at least "
        f"{FEWEST_PIXELS} pixels each; clicks on the deepest pixel of the object, then of the larger error; the box is "
        "tight. No scan here took part in training. Of the rules of growing the best on these very slices is shown.",
        "",
        "## By set",
        "",
        *table(("set", "slices", *heading), by_set(rows, columns)),
        "",
        "## By object",
        "",
        *table(
            ("set", "object", "slices", *heading),
            [
                [of, name, str(len(found)), *(f"{mean(found, column):.3f}" for column in columns)]
                for (of, name), found in rows.items()
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def by_set(rows: dict[tuple[str, str], list[dict[str, float]]], columns: Sequence[str]) -> list[list[str]]:
    lines = []
    for title, names in (("never seen", NEVER_SEEN), ("held out", HELD_OUT)):
        sets = []
        for name in names:
            objects = [found for (of, _), found in rows.items() if of == name]
            if not objects:
                continue
            sets.append([mean_of([mean(found, column) for found in objects]) for column in columns])
            lines.append([name, str(sum(map(len, objects))), *(f"{value:.3f}" for value in sets[-1])])
        if sets:
            means = [mean_of([values[index] for values in sets]) for index in range(len(columns))]
            lines.append([f"**{title}, mean of {len(sets)} sets**", "", *(f"**{value:.3f}**" for value in means)])
    return lines


def mean(found: list[dict[str, float]], column: str) -> float:
    return mean_of([row[column] for row in found])


def mean_of(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]


if __name__ == "__main__":
    main()
