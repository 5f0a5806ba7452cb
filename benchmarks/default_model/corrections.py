"""Do clicks mend a ready mask, and leave the rest of it alone? Dice of damaged labels after each click.

    python benchmarks/default_model/corrections.py --data ../shared/data

Labels of real scans are damaged in three ways: a piece of the border is missing, a piece is too much, or the whole
border wanders. Each is given to a session as a ready mask and corrected by clicks on the error, with the default
model; for comparison the same number of clicks without the ready mask. A click lies deepest in the error, or, since
nobody hits that, anywhere in the error that holds the deepest point.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import volsam
from volsam.data.dataset import read_dataset, read_image, read_label
from volsam.data.simulate import bounding_box, next_click
from volsam.geometry import Grid
from volsam.inference.model import InteractiveModel
from volsam.prompts import Click, MaskHint
from volsam.volume import Volume

HERE = Path(__file__).parent
SETS = ("hippocampus", "left_atrium", "chaos_t2_abdomen", "acdc_cardiac")
DAMAGES = {"missing": "a piece is missing", "extra": "a piece is too much", "bent": "the border wanders"}
FEWEST = 200
"""Voxels of an object that is worth damaging."""
Mask = NDArray[np.bool_]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--sets", default=",".join(SETS), help="names, with commas")
    parser.add_argument("--cases", type=int, default=2, help="of each set, the first ones")
    parser.add_argument("--objects", type=int, default=2, help="of each case, the first ones")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    model = volsam.load_model("volsam-s")
    rows: list[dict[str, Any]] = []
    for name in options.sets.split(","):
        found = list(tried(model, options.data / name, options.cases, options.objects, options.clicks))
        for damage in DAMAGES:
            each = [row for kind, row in found if kind == damage]
            dice = {
                key: [round(mean(values), 4) for values in zip(*(row[key] for row in each), strict=True)]
                for key in each[0]
            }
            rows.append({"set": name, "damage": damage, "objects": len(each), **dice})
            print(json.dumps(rows[-1]), flush=True)
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "corrections.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / "corrections.md").write_text(table(rows))


def tried(
    model: InteractiveModel, dataset: Path, cases: int, objects: int, clicks: int
) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Every damage of every object, with the Dice before and after each click, corrected and without the mask."""
    known = read_dataset(dataset)
    for case in known.cases[:cases]:
        image = read_image(case)
        image = image.with_data(image.data[:1])
        labels = read_label(case, image.grid)
        for value in list(known.objects.values())[:objects]:
            target = labels == value
            if target.sum() < FEWEST:
                continue
            for kind, damaged in damages(target, image.grid):
                yield (
                    kind,
                    {
                        "deepest": corrected(model, image, target, damaged, clicks),
                        "anywhere": corrected(model, image, target, damaged, clicks, np.random.default_rng(1)),
                        "alone": corrected(model, image, target, None, clicks),
                    },
                )


def damages(target: Mask, grid: Grid) -> Iterator[tuple[str, Mask]]:
    """The object with errors; a piece is a ball, half as wide as a ball of the object's volume."""
    random = np.random.default_rng(0)
    radius = float((3 / (4 * np.pi) * target.sum() * np.prod(grid.spacing)) ** (1 / 3))
    border = np.argwhere(target & ~ndimage.binary_erosion(target))
    yield "missing", target & ~ball(grid, border[random.integers(len(border))], radius / 2)
    yield "extra", target | ball(grid, border[random.integers(len(border))], radius / 2)
    depth = ndimage.distance_transform_edt(target, sampling=grid.spacing)
    depth -= ndimage.distance_transform_edt(~target, sampling=grid.spacing)
    wave = ndimage.gaussian_filter(random.normal(size=target.shape), 0.4 * radius / grid.spacing)
    yield "bent", depth + 0.2 * radius * wave / wave[np.abs(depth) <= grid.spacing.max()].std() > 0


def ball(grid: Grid, middle: NDArray[np.int64], radius: float) -> Mask:
    """Voxels within `radius` mm of one."""
    steps = np.ogrid[tuple(slice(0, size) for size in grid.shape)]
    squares = [((step - at) * size) ** 2 for step, at, size in zip(steps, middle, grid.spacing, strict=True)]
    return squares[0] + squares[1] + squares[2] <= radius**2


def corrected(
    model: InteractiveModel,
    image: Volume,
    target: Mask,
    damaged: Mask | None,
    clicks: int,
    random: np.random.Generator | None = None,
) -> list[float]:
    """Dice before and after each click; `random` draws the click's place within the error."""
    session = volsam.Session(model, image)
    if damaged is not None:
        box = bounding_box(damaged)
        assert box is not None
        low, high = tuple(side.start for side in box), tuple(side.stop for side in box)
        session.add(MaskHint(damaged[box], image.grid.crop(low, high)))
    mask = session.mask.data[0] > 0
    found = [dice(mask, target)]
    for _ in range(clicks):
        click = next_click(target, mask, image.grid)
        if click is not None:
            session.add(click if random is None else near(click, target != mask, image.grid, random))
            mask = session.mask.data[0] > 0
        found.append(dice(mask, target))
    return found


def near(click: Click, wrong: Mask, grid: Grid, random: np.random.Generator) -> Click:
    """A click of the same sign in the error of that sign, not farther than the error is deep."""
    voxel = np.round(grid.to_voxels(click.position)).astype(int)
    depth = float(ndimage.distance_transform_edt(wrong, sampling=grid.spacing)[tuple(voxel)])
    places = np.argwhere(wrong & ball(grid, voxel, depth))
    return Click(tuple(grid.to_world(places[random.integers(len(places))])), click.positive)


def dice(mask: Mask, target: Mask) -> float:
    """Dice of two masks."""
    return float(2 * (mask & target).sum() / max(1, mask.sum() + target.sum()))


def table(rows: list[dict[str, Any]]) -> str:
    """The results file."""
    shown = [count for count in (1, 3, 5) if count < len(rows[0]["deepest"])]
    heads = [f"{count} click{'s' * (count > 1)}" for count in shown]
    lines = [
        "# Clicks on ready masks",
        "",
        "Made by `benchmarks/default_model/corrections.py`: mean Dice of damaged labels of real scans before and after "
        "clicks, with volsam-s. In each cell: clicks deepest in the error / clicks anywhere near there / the same "
        "number of clicks deepest in the error without the ready mask. The hippocampus is among the sets that the "
        "model learnt from.",
        "",
        f"Machine: {platform.machine()}, {platform.system()}, Python {platform.python_version()}.",
        "",
        f"| set | damage | objects | before | {' | '.join(heads)} |",
        "| --- " * (4 + len(shown)) + "|",
    ]
    for row in rows:
        cells = [" / ".join(f"{row[way][count]:.3f}" for way in ("deepest", "anywhere", "alone")) for count in shown]
        before = f"{row['deepest'][0]:.3f}"
        lines.append(f"| {row['set']} | {DAMAGES[row['damage']]} | {row['objects']} | {before} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
