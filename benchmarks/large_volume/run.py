"""Does a click cost more in a large volume than in a small one? Prints the answer and writes results.md.

    python benchmarks/large_volume/run.py --rounds 7

Two int16 volumes are made and deleted again: 512 × 512 × 600 voxels, and the 128³ voxels in the middle of it, so that
what lies around the click is the same in both. Every repeat is a process of its own; each round runs every process
once, in a fresh order, and ratios are taken within a round. Numbers mean something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from measure import VOLSAM, Run, busy, machine, ratios, run, spread, table  # noqa: E402

LARGE, SMALL = (512, 512, 600), (128, 128, 128)
SPACING = 0.75  # mm
RADIUS = 24  # voxels, of the object in the middle
# Where the clicks after the first one go, in voxels from the middle; the second number is the sign.
LATER = (((10, 0, 0), 1), ((0, 36, 0), 0), ((0, -12, 6), 1), ((-34, 0, 8), 0), ((4, 8, -14), 1))
MOST_MEMORY = 1536.0  # MiB beyond the volume
MOST_COLD, MOST_WARM = 1.3, 1.1

Sample = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often everything is run (7)")
    parser.add_argument("--ending", default=".nii.gz", choices=(".nii", ".nii.gz"), help="of image and mask (.nii.gz)")
    parser.add_argument("--device", default="cpu", help="where the network runs (cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of the order within a round (0)")
    parser.add_argument("--output", type=Path, default=HERE / "results.md", help="where the tables go")
    parser.add_argument("--json", type=Path, help="every single measurement, if wanted")
    options = parser.parse_args()
    print(machine(), flush=True)
    notice = busy()
    with tempfile.TemporaryDirectory(prefix="volsam-large-") as folder:
        images = {name: Path(folder) / f"{name}{options.ending}" for name in ("large", "small")}
        run([sys.executable, __file__, "--make", str(images["large"]), str(images["small"])])
        samples = measure(images, options)
    report = "\n".join(describe(samples, options, notice))
    print(report)
    options.output.write_text(report, encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(samples, indent=1))


def measure(images: dict[str, Path], options: argparse.Namespace) -> dict[str, list[Sample]]:
    """Every process, `rounds` times, in a fresh order each time."""
    order = random.Random(options.seed)
    kinds = ("steps", "command", "everything")
    samples: dict[str, list[Sample]] = {f"{kind} {name}": [] for kind in kinds for name in images}
    for number in range(1, options.rounds + 1):
        for what in order.sample(sorted(samples), len(samples)):
            kind, name = what.split()
            mask = images[name].with_name(f"mask{options.ending}")
            if kind == "steps":
                done = run([sys.executable, __file__, "--steps", str(images[name]), str(mask), options.device])
                samples[what].append({**json.loads(done.output), "process": done.wall, "peak": done.peak})
            else:
                samples[what].append(_command(images[name], mask, options.device, everything=kind == "everything"))
        print(f"round {number} of {options.rounds} done", file=sys.stderr, flush=True)
    return samples


def _command(image: Path, mask: Path, device: str, everything: bool) -> Sample:
    """`volsam segment` itself, as a user runs it, with all that it can write or with the mask alone."""
    shape = LARGE if image.name.startswith("large") else SMALL
    click = ",".join(str(size // 2) for size in shape)
    more = ["--uncertainty", str(mask.with_name("chance.nii.gz")), "--preview", str(mask.with_name("mask.png"))]
    words = ["segment", str(image), "-p", click, "--device", device, "-o", str(mask), *(more if everything else [])]
    done: Run = run([*VOLSAM, *words])
    return {"process": done.wall, "cpu": done.cpu, "beyond": done.peak - _mebibytes(shape)}


def describe(samples: dict[str, list[Sample]], options: argparse.Namespace, notice: str) -> list[str]:
    """The results file, line by line."""
    large, small = samples["steps large"], samples["steps small"]

    def row(label: str, key: str, goal: float | None = None) -> list[str]:
        a, b = ([sample[key] for sample in side] for side in (large, small))
        ratio = ratios(a, b)
        return [label, spread(a), spread(b), spread(ratio), _verdict(median(ratio), goal)]

    def whole(kind: str, key: str) -> list[list[float]]:
        return [[sample[key] for sample in samples[f"{kind} {name}"]] for name in ("large", "small")]

    def process(label: str, kind: str, key: str) -> list[str]:
        both = whole(kind, key)
        return [label, *map(spread, both), spread(ratios(*both)), ""]

    head = ["seconds", "512 × 512 × 600", "128³", "ratio", "goal"]
    times = [
        row("start-up: import and weights", "start"),
        row("read the image", "read"),
        row("first click", "first", MOST_COLD),
        row("first click, CPU seconds", "first_cpu", MOST_COLD),
        row("later click", "later", MOST_WARM),
        row("later click, CPU seconds", "later_cpu", MOST_WARM),
        row("later click, the mask before it still in use", "held", MOST_WARM),
        row("the same, CPU seconds", "held_cpu", MOST_WARM),
        row("write the mask", "write"),
        row("all but reading and writing, one click", "rest", MOST_COLD),
        process("`volsam segment`, whole process", "command", "process"),
        process("`volsam segment`, CPU seconds", "command", "cpu"),
        process("with `--uncertainty` and `--preview`", "everything", "process"),
        process("the same, CPU seconds", "everything", "cpu"),
    ]
    memory = [
        [
            label,
            *(spread([s[f"{key}_peak"] - s["volume"] for s in side], 0) for side in (large, small)),
            _verdict(max(s[f"{key}_peak"] - s["volume"] for s in large), MOST_MEMORY),
        ]
        for label, key in (
            ("image read (nearly all of it torch)", "read"),
            ("first click", "first"),
            ("later clicks", "later"),
            ("later clicks, a mask kept by the caller", "held"),
            ("mask written", "write"),
        )
    ]
    for label, kind in (("`volsam segment`", "command"), ("with `--uncertainty` and `--preview`", "everything")):
        beyond = whole(kind, "beyond")
        memory.append([label, *(spread(side, 0) for side in beyond), _verdict(max(beyond[0]), MOST_MEMORY)])
    same = all(a["zooms"] == b["zooms"] for a, b in zip(large, small, strict=True))
    return [
        "# Large volumes",
        "",
        f"Machine: {machine()}.",
        *([notice] if notice else []),
        "",
        f"{options.rounds} round{'s' if options.rounds > 1 else ''}, medians with quartiles; image and mask are "
        f"{options.ending} files. Ratios are taken within a round. Both volumes look alike around the click: the small "
        "one is the middle of the large one.",
        "",
        table(head, times),
        "",
        f"Regions encoded at the first click: {large[0]['zooms']} in the large volume, {small[0]['zooms']} in the "
        f"small one{'' if same else '; a larger volume has more zooms to try'}.",
        "",
        "Highest memory so far, in MiB beyond what the volume itself takes "
        f"({_mebibytes(LARGE):.0f} and {_mebibytes(SMALL):.0f} MiB):",
        "",
        table(["by the end of", "512 × 512 × 600", "128³", "goal (worst of all rounds)"], memory),
        "",
    ]


def _verdict(value: float, goal: float | None) -> str:
    if goal is None:
        return ""
    limit = f"{goal:.0f}" if goal > 100 else f"{goal:g}"
    return f"at most {limit}: {'met' if value <= goal else 'NOT met'}"


def _mebibytes(shape: tuple[int, int, int]) -> float:
    return 2 * shape[0] * shape[1] * shape[2] / 2**20


# --- In the processes that are measured -------------------------------------------------------------------------------


def make(large: str, small: str) -> None:
    """A body in air with a round object in its middle, int16; the small file is cut from the large one."""
    import numpy as np

    from volsam.data.io import write_volume
    from volsam.geometry import Grid
    from volsam.volume import Volume

    rng = np.random.default_rng(0)
    grid = Grid.at(LARGE, SPACING)
    middle = np.array(LARGE) // 2
    i, j = np.ogrid[: LARGE[0], : LARGE[1]]
    body = ((i - middle[0]) / 230) ** 2 + ((j - middle[1]) / 180) ** 2 < 1
    data = np.empty(LARGE, np.int16, order="F")
    for k in range(LARGE[2]):
        noise = rng.integers(-15, 16, LARGE[:2], np.int16)
        inside = np.hypot(np.hypot(i - middle[0], j - middle[1]), k - middle[2]) < RADIUS
        data[..., k] = np.where(body, np.where(inside, 140, 40), -1000) + noise
    write_volume(Volume(data, grid, "large"), large)
    low = middle - np.array(SMALL) // 2
    part = data[tuple(slice(a, a + size) for a, size in zip(low, SMALL, strict=True))]
    write_volume(Volume(part, grid.crop(tuple(low), tuple(low + SMALL)), "small"), small)


def steps(image: str, mask: str, device: str) -> None:
    """What `volsam segment` does and a session after it, step by step; prints one JSON object."""
    import time

    began = time.perf_counter()
    found: Sample = {}

    import volsam

    model = volsam.load_model(device=device)
    found["start"] = time.perf_counter() - began

    then = time.perf_counter()
    volume = volsam.read_volume(image)
    found["read"] = time.perf_counter() - then
    found["volume"] = volume.megabytes
    found["read_peak"] = _peak()

    middle = [size // 2 for size in volume.grid.shape]
    then, cpu = time.perf_counter(), time.process_time()
    session = volsam.Session(model, volume)
    session.add(volsam.Click(volume.grid.to_world(middle)))
    found["first"], found["first_cpu"] = time.perf_counter() - then, time.process_time() - cpu
    found["first_peak"] = _peak()
    found["zooms"] = len(session.predictor._encoded)

    def later(keep: list[volsam.Volume] | None) -> tuple[list[float], list[float]]:
        walls, cpus = [], []
        for step, sign in LATER:
            place = volume.grid.to_world([a + b for a, b in zip(middle, step, strict=True)])
            then, cpu = time.perf_counter(), time.process_time()
            session.add(volsam.Click(place, positive=bool(sign)))
            walls.append(time.perf_counter() - then)
            cpus.append(time.process_time() - cpu)
            if keep is not None:
                keep[:] = [session.mask]
        return walls, cpus

    found["rest"] = found["start"] + found["first"]

    walls, cpus = later(None)
    found["later"], found["later_cpu"] = median(walls), median(cpus)
    found["later_peak"] = _peak()

    for _ in LATER:
        session.undo()
    # Prompts added anew have new numbers, so nothing here is remembered from the first time.
    walls, cpus = later([session.mask])
    found["held"], found["held_cpu"] = median(walls), median(cpus)
    found["held_peak"] = _peak()

    then = time.perf_counter()
    volsam.write_volume(session.mask, mask)
    found["write"] = time.perf_counter() - then
    found["write_peak"] = _peak()
    print(json.dumps(found))


def _peak() -> float:
    """Highest memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        row = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(row.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(*sys.argv[2:])
    elif sys.argv[1:2] == ["--steps"]:
        steps(*sys.argv[2:])
    else:
        main()
