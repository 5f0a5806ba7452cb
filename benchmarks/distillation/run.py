"""Does a student learn more from a teacher than from clicks alone? Trains all three, and scores them click by click.

    python benchmarks/distillation/run.py --data ../shared/data --teacher-minutes 25 --student-minutes 12

The teacher is a small SAM-Med3D, the student FastSAM3D's: half the blocks, the first two without attention. They learn
from labelled scans whose licence permits it and from invented volumes, all in one dataset that this script puts
together, and are scored on its held-out cases. Both students get the same budget of processor time on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from time import perf_counter, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volsam.data.dataset import read_dataset, read_image, read_label
from volsam.data.io import write_volume
from volsam.data.splits import NAME, Fold, make_folds, write_splits

HERE = Path(__file__).parent
SHOWN = (1, 3, 5, 10)
PERMITTED = ("hippocampus", "sarcoma_ct_tumour")
INVENTED, HELD_OUT = "invented", "unseen"
"""Sets of invented volumes: dealt out as the scans are, and only to be scored on."""
SIZES = {"edge": 64, "patch": 8, "width": 192, "heads": 6, "out": 96}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--invented", type=int, default=24, help="invented volumes beside the scans")
    parser.add_argument("--held-out", type=int, default=24, help="invented volumes more, to be scored on alone")
    parser.add_argument("--teacher-minutes", type=float, default=60, help="of processor time")
    parser.add_argument("--student-minutes", type=float, default=15, help="of processor time")
    parser.add_argument("--views", type=int, default=0, help="of one student more, whose teacher tells of them once")
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"), help="where runs are kept")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    dataset = options.work / "Dataset900_Permitted"
    if not (dataset / "dataset.json").exists():
        assemble(dataset, options.data, {INVENTED: options.invented, HELD_OUT: options.held_out}, options.work)
    teacher = options.work / "teacher"
    minutes = {
        "teacher": options.teacher_minutes,
        "distilled": options.student_minutes,
        "alone": options.student_minutes,
        "kept": options.student_minutes,
    }
    commands: dict[str, list[Any]] = {
        "teacher": ["train", "sam-med3d", dataset, "-o", teacher],
        "distilled": ["distill", "fastsam3d", dataset, "--teacher", teacher, "-o", options.work / "distilled"],
        "alone": ["train", "fastsam3d", dataset, "-o", options.work / "alone"],
        "kept": ["distill", "fastsam3d", dataset, "--teacher", teacher, "-o", options.work / "kept"],
    }
    if not options.views:
        del commands["kept"]
    more: dict[str, dict[str, Any]] = {
        "teacher": {**SIZES, "depth": 12},
        "distilled": {},
        "alone": {**SIZES, "heads": 3},
        "kept": {"views": options.views},
    }
    rows = []
    for name, words in commands.items():
        run = options.work / name
        settings = {**more[name], "minutes": minutes[name], "clock": "cpu", "validate_every": 0.5}
        volsam([*words, "--device", "cpu", *(w for k, v in settings.items() for w in ("--set", f"{k}={v}"))])
        report = options.work / f"{name}-report"
        splits = dataset / NAME
        volsam(["evaluate", run, dataset, "-o", report, "--split", splits, "--clicks", str(max(SHOWN))])
        steps = json.loads((run / "run.json").read_text())["steps"]
        found = {"name": name, **scores(report), **seconds(run, dataset), "minutes": minutes[name], "steps": steps}
        rows.append(found)
        print(json.dumps(rows[-1]), flush=True)
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / "results.md").write_text(table(rows))
    reports = [options.work / f"{name}-report" / "results.json" for name in ("distilled", "alone", "teacher")]
    volsam(["evaluate", "--compare", *reports, "-o", options.work / "compared"])
    tested = paired(options.work / "compared" / "comparison.json")
    parts = [table(rows), tested, by_clicks(reports[0], reports[1]), by_origin(list(commands), options.work)]
    (options.output / "results.md").write_text("".join(parts))


def assemble(folder: Path, data: Path, invented: dict[str, int], work: Path) -> None:
    """One dataset of several: every object of every set is a label of its own.

    A fifth of all cases is held out, as `volsam train` does, and all invented volumes that are there for it.
    """
    for seed, (name, count) in enumerate(invented.items()):
        words = ["data", "synth", "-o", work / name, "--cases", str(count), "--seed", str(seed)]
        volsam([*words, "--shape", "80,72,64"])
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    labels, names = {"background": 0}, []
    for source in (*(data / name for name in PERMITTED), *(work / name for name in invented)):
        dataset = read_dataset(source)
        values = {}
        for name, value in dataset.objects.items():
            origin = INVENTED if source.name == HELD_OUT else source.name
            values[value] = labels.setdefault(f"{origin}: {name}", len(labels))
        for case in dataset.cases:
            if case.label is None:
                continue
            image = read_image(case)
            image = image.with_data(image.data[:1])
            label = read_label(case, image.grid)
            moved = np.zeros(label.shape, np.uint8)
            for before, after in values.items():
                moved[label == before] = after
            name = f"{source.name}_{case.name}"
            write_volume(image, folder / "imagesTr" / f"{name}_0000.nii.gz")
            write_volume(image.with_data(moved[None]), folder / "labelsTr" / f"{name}.nii.gz")
            names.append(name)
    table = {"channel_names": {"0": "any"}, "labels": labels, "numTraining": len(names), "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(table, indent=1) + "\n")
    unseen = {name for name in names if name.startswith(HELD_OUT)}
    test, val = (set(fold.val) for fold in make_folds([name for name in names if name not in unseen], 5)[:2])
    train = sorted(set(names) - unseen - test - val)
    write_splits([Fold(tuple(train), tuple(sorted(val)), tuple(sorted(test | unseen)))], folder / NAME)


def paired(comparison: Path) -> str:
    """What paired tests say of the last click, in a sentence for each network that the student is compared with."""
    told = {"alone": "the student that learnt from clicks alone", "teacher": "its teacher"}
    tests = json.loads(comparison.read_text())["tests"]
    whole = [row for row in tests if (row["measure"], row["object"]) == ("dice", "all objects")]
    lines = [
        "",
        "Mean Dice over objects after the last click, the distilled student against others (p by the means of cases):",
        "",
    ]
    for name, row in zip(told, whole, strict=True):
        lines.append(
            f"- {-row['difference']:+.3f} against {told[name]} ({-row['high']:+.3f} to {-row['low']:+.3f}, "
            f"p {row['p']:.2g}), better in {row['losses']} of {row['cases']} cases"
        )
    return "\n".join(lines) + "\n"


def by_clicks(ours: Path, other: Path) -> str:
    """How the mean Dice of a case differs after so many clicks from that of the student without a teacher."""
    one, two = _of_cases(ours), _of_cases(other)
    lines = ["", "Means of cases against the student that learnt from clicks alone, after so many clicks:", ""]
    lines += ["| | " + " | ".join(map(str, SHOWN)) + " |", "| --- " * (len(SHOWN) + 1) + "|"]
    apart = np.array([one[case] - two[case] for case in sorted(one)])
    lines.append("| mean difference | " + " | ".join(f"{value:+.3f}" for value in apart.mean(axis=0)) + " |")
    lines.append(f"| better, of {len(apart)} cases | " + " | ".join(map(str, (apart > 0).sum(axis=0))) + " |")
    return "\n".join(lines) + "\n"


def by_origin(names: list[str], work: Path) -> str:
    """Mean Dice after the first and the last click, by where the objects come from."""
    found = {name: json.loads((work / f"{name}-report" / "results.json").read_text())["rows"] for name in names}
    origins = list(dict.fromkeys(row["object"].split(":")[0] for row in found[names[0]]))
    lines = ["", f"By origin, after one click and after {max(SHOWN)}:", ""]
    lines += ["| | objects | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for origin in origins:
        cells = []
        for name in names:
            dice = [row["scores"]["dice"] for row in found[name] if row["object"].startswith(f"{origin}:")]
            cells.append(f"{mean(values[0] for values in dice):.3f}, {mean(values[-1] for values in dice):.3f}")
        lines.append(f"| {origin} | {len(dice)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _of_cases(report: Path) -> dict[str, NDArray[np.float64]]:
    found: dict[str, list[list[float]]] = {}
    for row in json.loads(report.read_text())["rows"]:
        dice = row["scores"]["dice"]
        found.setdefault(row["case"], []).append([dice[min(count, len(dice)) - 1] for count in SHOWN])
    return {case: np.mean(values, axis=0) for case, values in found.items()}


def scores(report: Path) -> dict[str, Any]:
    """Mean Dice after some clicks, over objects."""
    rows = json.loads((report / "results.json").read_text())["rows"]
    found = {}
    for clicks in SHOWN:
        found[f"dice {clicks}"] = round(
            mean(row["scores"]["dice"][min(clicks, len(row["scores"]["dice"])) - 1] for row in rows), 4
        )
    return {**found, "objects": len(rows)}


def seconds(run: Path, dataset: Path) -> dict[str, float]:
    """Median processor time of one encoding, and the weights of the encoder."""
    import torch

    from volsam.recipes.recipe import load_model

    torch.set_num_threads(1)
    model = load_model(run, device="cpu", engine="torch")
    volume = read_image(read_dataset(dataset).cases[0])
    middle = volume.grid.to_world((np.array(volume.grid.shape) - 1) / 2)
    roi = volume.grid.around(middle, (model.edge,) * 3, model.spacing)  # type: ignore[union-attr]
    taken, wall = [], []
    for _ in range(9):
        began, cpu = perf_counter(), process_time()
        model.encode(volume, roi)  # type: ignore[union-attr]
        wall.append(perf_counter() - began)
        taken.append(process_time() - cpu)
    weights = sum(weight.numel() for weight in model.network.encoder.parameters())  # type: ignore[union-attr]
    return {"encode": round(median(taken[2:]), 4), "encoder": weights}


def volsam(words: list[Any]) -> None:
    """The command, on one thread; ends the script where it fails."""
    line = [sys.executable, "-c", "from volsam.cli import main; main()", *map(str, words)]
    done = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"volsam {' '.join(map(str, words))} failed")


def table(rows: list[dict[str, Any]]) -> str:
    """The results file."""
    import torch

    told = {
        "teacher": "teacher, SAM-Med3D with 12 blocks",
        "distilled": "student, distilled",
        "kept": "student, distilled from answers that were kept",
        "alone": "student, clicks alone",
    }
    lines = [
        "# A student with and without its teacher",
        "",
        "Made by `benchmarks/distillation/run.py`, on labelled scans whose licence permits it and invented volumes. "
        "Mean Dice over the objects of held-out cases after so many clicks on the deepest point of the error. "
        "Minutes are of processor time on one thread; encoding is the median of seven, in processor seconds.",
        "",
        f"Machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}.",
        "",
        "| model | encoder | trained | steps | encode, s | "
        + " | ".join(f"{n} click{'s' * (n > 1)}" for n in SHOWN)
        + " | objects |",
        "| --- " * (6 + len(SHOWN)) + "|",
    ]
    for row in rows:
        cells = [f"{row[f'dice {clicks}']:.3f}" for clicks in SHOWN]
        lines.append(
            f"| {told[row['name']]} | {row['encoder'] / 1e6:.1f} M | {row['minutes']:g} min | {row['steps']} | "
            f"{row['encode']:.3f} | " + " | ".join(cells) + f" | {row['objects']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
