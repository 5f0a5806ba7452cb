"""How long from typing a command to a mask file, in units of importing torch. Prints the answer and writes results.md.

    python benchmarks/start/run.py ../shared/data/left_atrium/imagesTr/CASE_0000.nii.gz --click 120,80,40

Each round starts every command once, in a fresh order, each in a process of its own; ratios are taken within a round.
Without an image the first case of the left atrium set is taken, with a click on the deepest point of its label.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from measure import ROOT, VOLSAM, Run, busy, machine, ratios, run, spread, table  # noqa: E402

DATASET = ROOT.parent / "shared" / "data" / "left_atrium"
BASE = "import torch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path, help="a volume (first case of the left atrium set)")
    parser.add_argument("--click", help="I,J,K in voxels; needed with an image of your own")
    parser.add_argument("--rounds", type=int, default=9, help="how often everything is run (9)")
    parser.add_argument("--device", default="cpu", help="where the network runs (cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of the order within a round (0)")
    parser.add_argument("--output", type=Path, default=HERE / "results.md", help="where the table goes")
    parser.add_argument("--json", type=Path, help="every single measurement, if wanted")
    options = parser.parse_args()
    image, click = options.image, options.click
    if image is None:
        if not DATASET.is_dir():
            parser.error("there is no left atrium set beside the checkout: name an image and give --click I,J,K")
        image = min((DATASET / "imagesTr").glob("*.nii.gz"))
    if click is None:
        label = image.parent.parent / "labelsTr" / image.name.replace("_0000.", ".")
        if not label.is_file():
            parser.error(f"{image.name} has no label beside it: give --click I,J,K")
        click = run([sys.executable, __file__, "--deepest", str(label)]).output.strip()
    print(machine(), flush=True)
    notice = busy()
    with tempfile.TemporaryDirectory(prefix="volsam-start-") as folder:
        samples = measure(commands(image, click, options.device, Path(folder) / "mask.nii.gz"), options)
    shape = run([sys.executable, __file__, "--shape", str(image)]).output.strip()
    report = describe(samples, f"{image.name}, {shape} voxels, one click at {click}", notice, options.rounds)
    print(report)
    options.output.write_text(report, encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps({name: [vars(one) for one in some] for name, some in samples.items()}))


def commands(image: Path, click: str, device: str, mask: Path) -> dict[str, tuple[str, ...]]:
    """What is compared, by name."""
    segment = (*VOLSAM, "segment", str(image), "-p", click, "--device", device, "-o", str(mask))
    return {
        BASE: (sys.executable, "-c", "import torch"),
        "import volsam": (sys.executable, "-c", "import volsam"),
        "volsam --help": (*VOLSAM, "--help"),
        "volsam segment, one click": segment,
    }


def measure(some: dict[str, tuple[str, ...]], options: argparse.Namespace) -> dict[str, list[Run]]:
    """Every command, `rounds` times, in a fresh order each time; the first start, from a cold disk, does not count."""
    order = random.Random(options.seed)
    samples: dict[str, list[Run]] = {name: [] for name in some}
    for command in some.values():
        run(command)
    for number in range(1, options.rounds + 1):
        for name in order.sample(sorted(some), len(some)):
            samples[name].append(run(some[name]))
        print(f"round {number} of {options.rounds} done", file=sys.stderr, flush=True)
    return samples


def describe(samples: dict[str, list[Run]], what: str, notice: str, rounds: int) -> str:
    """The results file."""
    base = {"wall": [one.wall for one in samples[BASE]], "cpu": [one.cpu for one in samples[BASE]]}
    rows = []
    for name, some in samples.items():
        wall, cpu = [one.wall for one in some], [one.cpu for one in some]
        rows.append(
            [
                f"`{name}`",
                spread(wall),
                spread(ratios(wall, base["wall"])),
                spread(cpu),
                spread(ratios(cpu, base["cpu"])),
                f"{median(one.peak for one in some):.0f}",
            ]
        )
    head = ["process", "seconds", "times `import torch`", "CPU seconds", "times `import torch`", "peak MiB"]
    parts = [
        "# From the command to the mask",
        f"Machine: {machine()}.",
        *([notice] if notice else []),
        f"{what}. {rounds} round{'s' if rounds > 1 else ''}; medians with quartiles. Ratios are taken within a round.",
        table(head, rows),
    ]
    return "\n\n".join(parts) + "\n"


# --- In processes of their own, so that this one stays small ----------------------------------------------------------


def deepest(label: str) -> None:
    """Print the voxel of a label that is farthest from its border."""
    from volsam.data.io import read_volume
    from volsam.data.simulate import first_click

    volume = read_volume(label)
    place = volume.grid.to_voxels(first_click(volume.data[0] > 0, volume.grid).position)
    print(",".join(str(round(value)) for value in place))


def shape_of(image: str) -> None:
    """Print the size of a volume."""
    from volsam.data.io import read_grid

    print(" × ".join(map(str, read_grid(image).shape)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--deepest"]:
        deepest(sys.argv[2])
    elif sys.argv[1:2] == ["--shape"]:
        shape_of(sys.argv[2])
    else:
        main()
