"""From a point placed in 3D Slicer to the segment, beside the bare predictor. Prints the answer and writes results.md.

    python benchmarks/slicer/run.py ../shared/data/left_atrium/imagesTr/CASE_0000.nii.gz

Two processes answer the same clicks by turns: the module in a scene of Slicer's own libraries, at a `volsam serve` on
this machine, and a `volsam.Session` alone. Every round takes places of its own, so nothing has been encoded before.
Models whose official weights are not at hand have random ones, at full size: as fast, and of no use otherwise.
Without an image the first case of the left atrium set is taken. Needs `make slicer-env`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from measure import ROOT, VOLSAM, busy, machine, spread, table  # noqa: E402

DATASET = ROOT.parent / "shared" / "data" / "left_atrium"
SLICER = ROOT / ".venv-slicer" / "bin" / "python"
PUBLISHED = 1.09  # seconds a volume on a CPU, of FastSAM-3DSlicer with FastSAM-3D
GOAL = 1.3
# Name, how its weights are built and imported, whether it wants a box, rounds.
MODELS: tuple[tuple[str, str, tuple[str, ...], bool], ...] = (
    ("fastsam3d", "fast_sam_3d", (), False),
    ("sam-med3d", "sam_med3d", (), False),
    ("sam-med2d", "sam_med2d", (), False),
    ("medsam", "sam_b", ("--family", "medsam"), True),
)
OF_SLICES = ("sam-med2d", "medsam")
BUILD = """
import sys, torch
from volsam.evaluation.published import sam
torch.manual_seed(0)
torch.save(getattr(sam, sys.argv[1])().state_dict(), sys.argv[2])
"""


class Side:
    """A process that answers clicks."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **task: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(task), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a process has ended at {task}")
        answer: dict[str, Any] = json.loads(line)
        if answer["problems"]:
            sys.exit(f"{task}: {' '.join(answer['problems'])}")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path, help="a volume with a label beside it (left atrium, first case)")
    parser.add_argument("--rounds", type=int, default=9, help="of the default model (9)")
    parser.add_argument("--other-rounds", type=int, default=3, help="of the other models (3)")
    parser.add_argument("--models", default=",".join(name for name, *_ in MODELS), help="others to time; '' for none")
    parser.add_argument("--home", type=Path, help="where networks with random weights are kept for the next time")
    parser.add_argument("--seed", type=int, default=0, help="of the places (0)")
    parser.add_argument("--output", type=Path, default=HERE / "results.md", help="where the tables go")
    options = parser.parse_args()
    if not SLICER.is_file():
        parser.error("there is no environment with Slicer's libraries: make slicer-env")
    image = options.image
    if image is None:
        if not DATASET.is_dir():
            parser.error("there is no left atrium set beside the checkout: name an image")
        image = min((DATASET / "imagesTr").glob("*.nii.gz"))
    chosen = [model for model in MODELS if model[0] in options.models.split(",")]
    print(machine(), flush=True)
    notice = busy()
    with tempfile.TemporaryDirectory(prefix="volsam-slicer-") as folder:
        environment = {**os.environ, "VOLSAM_HOME": str(options.home or folder), "PYTHONPATH": str(ROOT / "src")}
        prepare(chosen, environment)
        with served(["volsam-s", *(name for name, *_ in chosen)], environment) as address:
            scene = Side([str(SLICER), str(HERE / "scene.py")], environment)
            bare = Side([sys.executable, str(HERE / "bare.py")], environment)
            opened = scene.ask(open=str(image), address=address)["seconds"]
            bare.ask(open=str(image))
            places, flat = places_in(image, options.seed), None
            rows: list[dict[str, Any]] = []
            for name, _, _, box in (("volsam-s", "", (), False), *chosen):
                if name in OF_SLICES and flat is None:
                    flat, places = one_slice(image, Path(folder), options.seed)
                    scene.ask(open=str(flat), address=address)
                    bare.ask(open=str(flat))
                scene.ask(model=name)
                bare.ask(model=name)
                rounds = options.other_rounds if rows else options.rounds
                rows.append(measured(name, scene, bare, places, rounds, box=box))
                report = described(rows, image.name, opened, notice)
                options.output.write_text(report, encoding="utf-8")
            scene.close()
            bare.close()
    print(report)


def prepare(models: Sequence[tuple[str, str, tuple[str, ...], bool]], environment: dict[str, str]) -> None:
    """Networks with random weights, imported under their names, unless they are there."""
    kept = json.loads(subprocess.check_output([*VOLSAM, "models", "list", "--json"], env=environment))
    with tempfile.TemporaryDirectory(prefix="volsam-slicer-") as folder:
        for name, build, more, _ in models:
            if name not in {model["name"] for model in kept}:
                file = str(Path(folder) / f"{name}.pth")
                subprocess.run([sys.executable, "-c", BUILD, build, file], env=environment, check=True)
                words = [*VOLSAM, "models", "import", file, "--name", name, *more]
                subprocess.run(words, env=environment, check=True, capture_output=True)
                Path(file).unlink()


@contextmanager
def served(models: Sequence[str], environment: dict[str, str]) -> Iterator[str]:
    """A server on this machine; gives its address."""
    process = subprocess.Popen(
        [*VOLSAM, "serve", "--port", "0", "--models", ",".join(models)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        found = next(found for line in process.stdout if (found := re.search(r"serves at (http://\S+)", line)))
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def places_in(image: Path, seed: int) -> Iterator[list[int]]:
    """Voxels of the object beside the image, without end."""
    import volsam

    label = image.parent.parent / "labelsTr" / image.name.replace("_0000.", ".")
    inside = np.argwhere(volsam.read_volume(label).data[0] > 0)
    draw = random.Random(seed)
    while True:
        yield inside[draw.randrange(len(inside))].tolist()


def one_slice(image: Path, folder: Path, seed: int) -> tuple[Path, Iterator[list[int]]]:
    """The slice in which the object is largest, as a volume of its own, and voxels of the object in it."""
    import volsam

    volume = volsam.read_volume(image)
    inside = volsam.read_volume(image.parent.parent / "labelsTr" / image.name.replace("_0000.", ".")).data[0] > 0
    here = int(inside.sum(axis=(0, 1)).argmax())
    size = inside.shape
    grid = volume.grid.crop((0, 0, here), (size[0], size[1], here + 1))
    volsam.write_volume(volsam.Volume(volume.data[..., here : here + 1], grid, "slice"), folder / "slice.nii.gz")
    places = np.argwhere(inside[..., here])
    draw = random.Random(seed)
    return folder / "slice.nii.gz", iter(lambda: [*places[draw.randrange(len(places))].tolist(), 0], None)


def measured(
    name: str, scene: Side, bare: Side, places: Iterator[list[int]], rounds: int, *, box: bool
) -> dict[str, Any]:
    """First and second clicks of new objects, on both sides by turns."""
    found: dict[str, Any] = {"name": name, "first": ([], []), "second": ([], []), "same": True}
    for number in range(rounds + 1):
        for which in ("first",) if box else ("first", "second"):
            place = next(places)
            task: dict[str, Any] = {"new": which == "first"}
            task |= {"box": boxed(place)} if box else {"click": place}
            sides = [scene, bare] if number % 2 else [bare, scene]
            answers = {side: side.ask(**task) for side in sides}
            found["same"] &= answers[scene]["voxels"] == answers[bare]["voxels"]
            if number:  # the first round warms up
                found[which][0].append(answers[scene]["seconds"])
                found[which][1].append(answers[bare]["seconds"])
        print(name, number, flush=True)
    return found


def boxed(place: Sequence[int]) -> list[list[float]]:
    """A flat box of 24 × 24 voxels around a place, on its slice."""
    i, j, k = place
    return [[i - 12.0, j - 12.0, float(k)], [i + 12.0, j + 12.0, float(k)]]


def described(rows: Sequence[dict[str, Any]], image: str, opened: float, notice: str) -> str:
    """The report."""
    own = rows[0]

    def ratio(row: dict[str, Any], which: str) -> str:
        pairs = [a / b for a, b in zip(*row[which], strict=True)]
        return spread(pairs) if pairs else "-"

    overhead = {which: median(a / b for a, b in zip(*own[which], strict=True)) for which in ("first", "second")}
    met = all(value <= GOAL for value in overhead.values())
    cells = [
        (
            row["name"],
            "own" if row["name"] == "volsam-s" else "random, full size",
            spread(row["first"][0], unit=" s"),
            ratio(row, "first"),
            spread(row["second"][0], unit=" s"),
            ratio(row, "second"),
            "yes" if row["same"] else "no",
        )
        for row in rows
    ]
    heads = ("model", "weights", "first click", "to bare", "second click", "to bare", "same voxels")
    first, second = (median(own[which][0]) for which in ("first", "second"))
    return f"""# From a point in 3D Slicer to the segment

{machine()}. Volume {image}. {notice}

Seconds from a point placed in the scene to the segment changed, with quartiles, and the ratio to the same click in a
`volsam.Session` alone, taken by turns in the same run. The scene is one of Slicer's own libraries, without a window;
the module's timer fires every 10 ms. Models of slices got one slice, since they would follow an
object from slice to slice, and how far depends on the weights; MedSAM knows boxes only, so it got a box. That
slice is encoded in a first round, which is left out: theirs are times of decoding, and most of the ratio is the scene.

{table(heads, cells)}

Goal: at most {GOAL} times the bare predictor with the default model. First click {overhead["first"]:.2f},
second {overhead["second"]:.2f}: {"met" if met else "not met"}. Choosing the volume, until the server has it:
{opened:.2f} s, once.

The module that came before, FastSAM-3DSlicer, publishes {PUBLISHED} s a volume with FastSAM-3D, on a CPU that it does
not name, and encodes anew at every click. Here a first click takes {first:.2f} s with the default model, and a second
one {second:.2f} s. Machines differ, so that is an order of magnitude and no ratio.

Networks with random weights are as fast as with their own, but what they find means nothing.
"""


if __name__ == "__main__":
    main()
