"""How much does a method learn from how few volumes? Dice on held-out cases against the number of training cases.

    python benchmarks/adaptation/run.py --data ../shared/data --sets hippocampus --pace
    python benchmarks/adaptation/run.py --data ../shared/data --sets hippocampus --minutes 1 --draws 2

Every method gets the same cases, the same budget of time on one thread, and is scored by `volsam evaluate` on the same
held-out cases. The budget is counted in steps: first each method's pace is measured, all in one go, while nothing else
runs; then it makes the steps of so many minutes at that pace, however busy the machine is by then. What is done already
is not done again; the tables are written after every run, and several of these scripts may work on them.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

from picture import pictures as drawn

from volsam.recipes.methods.method import FEW

HERE = Path(__file__).parent
# A method: what is typed, and settings that fit small volumes on one thread.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "volsam-s, adapted": ("adapt", {}),
    "volsam-s, adapted, no places, milder augmentation": (
        "adapt",
        {"placed": False, "augment": "full", "tune": "all", "edge": 64, "voxels": 80**3},
    ),
    "AutoSAM on sam-mini": ("autosam", {"versions": 4}),
    "MA-SAM on sam-mini": ("ma-sam", {"batch_size": 1, "power": 0.9}),
    "3DSAM-adapter on sam-mini, automatic": ("3dsam-adapter-auto", {"edge": 32, "out": 64, "voxels": 32**3}),
    "UNet from scratch": ("unet", {}),
    "UNet after SimCLR": ("unet", {}),
    "nnU-Net": ("", {}),
}
"""nnU-Net is run by benchmarks/peers/nnunet.py, in an environment of its own."""
SIMCLR = "SimCLR"
MENDED = "2026-11-30"
"""When the training of most methods changed (log.md). Cells with runs of earlier days have a star."""
ONCE = " Cells of nnU-Net marked ° are predicted once, without mirror images, which would take eight times as long."
PACED = 0.5
"""Minutes of the run in which a pace is measured."""
MORE = ", more than three"
"""The settings of `adapt` depend on how many volumes there are; its second pace has this behind the method's name."""
# Of some sets, how names tell patients, and what their volumes need.
PATIENTS = {"acdc_cardiac": r"patient\d+"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser, work=Path("runs/adaptation"))
    parser.add_argument("--methods", help="names of the table, with semicolons; all without it")
    options = parser.parse_args()
    ours = [name for name, (recipe, _) in METHODS.items() if recipe]
    chosen = options.methods.split(";") if options.methods else ours
    if strange := [name for name in chosen if name not in ours]:
        parser.error(f"--methods {strange[0]}: there are {'; '.join(ours)}, and nnU-Net in benchmarks/peers/nnunet.py")
    carry_out(options, [*chosen, SIMCLR] if options.pace else chosen, pace, run)


def arguments(parser: argparse.ArgumentParser, work: Path) -> None:
    """What is compared, for every script that adds to the table."""
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--sets", default="hippocampus", help="names, with commas")
    parser.add_argument("--sizes", default="1,2,5,10,all", help="numbers of training cases, with commas")
    parser.add_argument("--pace", action="store_true", help="measure how many steps each method makes in a minute")
    parser.add_argument("--minutes", type=float, default=1.0, help="of one thread, at the pace that was measured")
    parser.add_argument("--draws", type=int, default=2, help="random choices of the training cases")
    parser.add_argument("--work", type=Path, default=work, help="where runs are kept")
    parser.add_argument("--output", type=Path, default=HERE)


def carry_out(
    options: argparse.Namespace, methods: list[str], pace: Callable[..., int], run: Callable[..., dict[str, Any]]
) -> None:
    """Every run that the table lacks, or the paces of the methods, from which budgets follow."""
    options.output.mkdir(parents=True, exist_ok=True)
    if options.pace:
        for name in options.sets.split(","):
            for method in [*methods, *(method + MORE for method in methods if _two_paces(method))]:
                found = pace(options, name, method)
                print(f"{name}: {method} makes {found} steps in a minute", flush=True)
                paces = _paces(options.output)
                paces.setdefault(name, {})[method] = found
                (options.output / "paces.json").write_text(json.dumps(paces, indent=1) + "\n")
        return
    for size in options.sizes.split(","):
        for name in options.sets.split(","):
            for draw in range(options.draws if size != "all" else 1):
                for method in methods:
                    key = {"set": name, "method": method, "size": size, "draw": draw, "minutes": options.minutes}
                    if any(all(row[part] == value for part, value in key.items()) for row in _read(options.output)):
                        continue
                    found = run(options, **key)
                    print(json.dumps({**key, **found}), flush=True)
                    _keep(options.output, {**key, **found, "day": date.today().isoformat()})


def pace(options: argparse.Namespace, set: str, method: str) -> int:
    """Steps in a minute of processor time, from a short run."""
    recipe, settings = ("simclr", {}) if method == SIMCLR else METHODS[method.removesuffix(MORE)]
    folder = options.work / f"{set}-pace"
    shutil.rmtree(folder, ignore_errors=True)
    given = {**settings, "minutes": PACED, "clock": "cpu", "validate_every": 1.0}
    words = ["train", recipe, options.data / set, "-o", folder, "--device", "cpu", "--train-cases"]
    words += ["5" if method.endswith(MORE) else "2"]
    done = volsam([*words, *(word for key, value in given.items() for word in ("--set", f"{key}={value}"))])
    if done.returncode:
        raise SystemExit(done.stderr)
    return round(json.loads((folder / "run.json").read_text())["steps"] / PACED)


def run(options: argparse.Namespace, set: str, method: str, size: str, draw: int, minutes: float) -> dict[str, Any]:
    """Train once and score; how it went."""
    recipe, settings = METHODS[method]
    folder = options.work / f"{set}-{method.replace(' ', '_')}-{size}-{draw}-{minutes:g}"
    shutil.rmtree(folder, ignore_errors=True)
    given = {**settings, "max_steps": budget(options, set, method, size), "seed": draw, "validate_every": 1.0}
    common = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    common += ["--device", "cpu", *(["--patient", PATIENTS[set]] if set in PATIENTS else [])]
    words = ["train", recipe, options.data / set, "-o", folder, *common]
    words += ["--train-cases", size] if size != "all" else []
    if method == "UNet after SimCLR":  # which learns before, once for all sizes, from all training images
        before = options.work / f"{set}-simclr-{draw}-{minutes:g}"
        if not (before / "run.json").exists():
            longer = ["--set", f"max_steps={budget(options, set, SIMCLR, size)}"]
            done = volsam(["train", "simclr", options.data / set, "-o", before, *common, *longer])
            if done.returncode:
                return {"failed": done.stderr.strip().splitlines()[-1]}
        words += ["--init", before]
    done = volsam(words)
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    record = json.loads((folder / "run.json").read_text())
    found = scored(folder, options.data / set, folder / "splits.json", folder / "report")
    if "failed" in found:
        return found
    return {**found, "steps": record["steps"], "trained": record["trained"], "cases": record["training"]}


def _two_paces(method: str) -> bool:
    return METHODS.get(method, ("",))[0] == "adapt"


def budget(options: argparse.Namespace, set: str, method: str, size: str) -> int:
    """Steps in the minutes of a run."""
    if _two_paces(method) and (size == "all" or int(size) > FEW):
        method += MORE
    found = _paces(options.output).get(set, {})
    if method not in found:
        raise SystemExit(
            f"the pace of {method} on {set} is not in {options.output / 'paces.json'}: run with --pace first"
        )
    return max(1, round(options.minutes * found[method]))


def scored(model: Path, dataset: Path, split: Path, report: Path) -> dict[str, Any]:
    """Mean scores of a model, or of a folder of labels, over the objects of the held-out cases."""
    done = volsam(["evaluate", model, dataset, "-o", report, "--split", split])
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    rows = json.loads((report / "results.json").read_text())["rows"]
    dice, nsd = ([row["scores"][measure][-1] for row in rows] for measure in ("dice", "nsd"))
    return {"dice": round(mean(dice), 4), "nsd": round(mean(nsd), 4), "objects": len(dice)}


def volsam(words: list[Any]) -> subprocess.CompletedProcess[str]:
    """The command, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", "from volsam.cli import main; main()", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=environment)


def table(rows: list[dict[str, Any]], pictures: Sequence[Path] = ()) -> str:
    """The results file, with pictures that lie beside it."""
    sizes = sorted({row["size"] for row in rows}, key=lambda size: (size == "all", int(size) if size != "all" else 0))
    lines = [
        "# Dice against the number of training volumes",
        "",
        "Made by `benchmarks/adaptation/run.py`. Every run had the steps that its method makes in the same time on one "
        "thread of this machine (paces.json), and the same training cases; no weights were chosen by held-out cases, "
        "but scores of them were in view when the settings of adapt for few volumes were settled (log.md). "
        "SimCLR has that budget once more, before, on all training images without their labels; sam-mini and volsam-s "
        "bring what they learnt before. Planning and preparing data do not count. Mean Dice over the objects of the "
        "held-out cases and over draws; in brackets the lowest and the highest draw. Empty cells were not run; those "
        "with a star hold runs of the training before it was mended in several places (log.md)."
        + ONCE
        * any(row.get("mirrors") is False for row in rows),
        "",
        machine(),
    ]
    for path in pictures:
        lines += ["", f"![{path.stem}: Dice against the number of training volumes]({path.name})"]
    for name in dict.fromkeys(row["set"] for row in rows):
        for minutes in sorted({row["minutes"] for row in rows if row["set"] == name}):
            lines += ["", f"## {name}, {minutes:g} minute{'s' * (minutes != 1)} each", ""]
            lines += ["| method | weights that learn | " + " | ".join(sizes) + " |", "| --- " * (len(sizes) + 2) + "|"]
            for method in dict.fromkeys(row["method"] for row in rows):
                some = [r for r in rows if (r["set"], r["minutes"], r["method"]) == (name, minutes, method)]
                if not some:
                    continue
                cells = [_cell([row for row in some if row["size"] == size]) for size in sizes]
                trained = " or ".join(sorted({f"{row['trained'] / 1e6:.2f} M" for row in some if "trained" in row}))
                lines.append(f"| {method} | {trained} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """On what figures were taken, as a line of a results file."""
    import torch

    return (
        f"Machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}."
    )


def _cell(rows: list[dict[str, Any]]) -> str:
    dice = [row["dice"] for row in rows if "dice" in row]
    if not dice:
        return "failed" if rows else ""
    spread = f" ({min(dice):.3f} to {max(dice):.3f})" if len(dice) > 1 else ""
    old = any(METHODS[row["method"]][0] and row.get("day", "") < MENDED for row in rows)
    once = any(row.get("mirrors") is False for row in rows)
    return f"{mean(dice):.3f}{spread}{'*' * old}{'°' * once}"


def _read(output: Path) -> list[dict[str, Any]]:
    path = output / "results.json"
    return json.loads(path.read_text()) if path.exists() else []


def _paces(output: Path) -> dict[str, dict[str, int]]:
    path = output / "paces.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _keep(output: Path, row: dict[str, Any]) -> None:
    """One run more, also where several of these scripts work on one table."""
    with (output / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = sorted([*_read(output), row], key=lambda row: (row["set"], list(METHODS).index(row["method"])))
        (output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
        (output / "results.md").write_text(table(rows, drawn(rows, output)))


if __name__ == "__main__":
    main()
