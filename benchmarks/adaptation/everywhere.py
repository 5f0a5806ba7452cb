"""Does every method train on every kind of dataset, and can what comes out be scored? One step each.

    python benchmarks/adaptation/everywhere.py --data ../shared/data

Each cell of the table is `volsam train` for one step with small settings, then `volsam evaluate` on one case. Scores
mean nothing here; what is refused is told in the words of the command. What is done already is not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import shutil
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

from volsam.cli import app
from volsam.data.dataset import read_dataset, read_image, read_label
from volsam.errors import BadInput
from volsam.recipes.methods.method import load_methods, methods

HERE = Path(__file__).parent
# Methods that need more than a dataset, or make what others begin with.
LEFT_OUT = {"checkout": "needs a checkout", "simclr": "is a beginning for others, and has no answer to score"}
NO_DATASET = {"permissive_scans": "whose label values mean something else in every case; a line says so"}
# What keeps one step short, where a method has such a setting.
SMALL = {
    "max_steps": 1, "batch_size": 1, "validate_every": 1.0, "voxels": 32**3, "edge": 32, "out": 32, "width": 12,
    "versions": 1, "slices": 3, "channels": 16, "depth": 2, "turns": 2,
}  # fmt: skip
ASKED: dict[str, list[Any]] = {
    **{name: ["--clicks", 2] for name in ("3dsam-adapter", "adapt-clicks", "sam-med3d", "fastsam3d")},
    "ma-sam-box": ["--protocol", "box", "--clicks", 0],
}
"""How models are asked that do not answer by themselves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--sets", help="names, with commas; all that hold images without it")
    parser.add_argument("--methods", help="names, with commas; all without it")
    parser.add_argument("--work", type=Path, default=Path("runs/everywhere"), help="where runs are kept for a while")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    load_methods()
    sets = (
        options.sets.split(",")
        if options.sets
        else sorted({folder.parent.name for folder in options.data.glob("*/imagesTr")} - NO_DATASET.keys())
    )
    chosen = options.methods.split(",") if options.methods else [name for name in methods if name not in LEFT_OUT]
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "everywhere.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    for name in sets:
        for method in chosen:
            if method in found.get(name, {}):
                continue
            began = time.process_time()
            cell = {**tried(options.data / name, method, options.work), "seconds": round(time.process_time() - began)}
            print(name, method, json.dumps(cell), flush=True)
            found.setdefault(name, {})[method] = cell
            path.write_text(json.dumps(found, indent=1) + "\n")
            (options.output / "everywhere.md").write_text(table(found))


def tried(dataset: Path, method: str, work: Path) -> dict[str, Any]:
    """Train for a step and score one case; what came of it."""
    run = work / f"{dataset.name}-{method}"  # the command remembers a model by its name
    shutil.rmtree(run, ignore_errors=True)
    known = methods[method].config.model_fields
    small = {**SMALL, **({"object": largest(dataset)} if "object" in known else {})}
    settings = [word for key, value in small.items() if key in known for word in ("--set", f"{key}={value}")]
    case = next(case.name for case in reversed(read_dataset(dataset).cases) if case.label is not None)
    split = work / "split.txt"
    work.mkdir(parents=True, exist_ok=True)
    split.write_text(case + "\n")
    report = run / "report"
    words = (
        ["train", method, dataset, "-o", run, "--device", "cpu", "--train-cases", 1, *settings],
        ["evaluate", run, dataset, "-o", report, "--split", split, "--pictures", 0, *ASKED.get(method, [])],
    )
    for line in words:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                code = app([str(word) for word in line], standalone_mode=False)
        except BadInput as refused:
            return {"refused": f"{line[0]}: {refused}".replace(str(dataset), dataset.name)}
        except Exception:
            return {"failed": f"{line[0]}: {traceback.format_exc().strip().splitlines()[-1]}"}
        if code:
            last = said.getvalue().strip().splitlines()[-1].removeprefix("error: ")
            return {"refused": f"{line[0]}: {last}".replace(str(dataset), dataset.name).replace(f"{work}/", "")}
    rows = json.loads((report / "results.json").read_text())["rows"]
    shutil.rmtree(run)
    return {"scored": len(rows)}


def largest(folder: Path) -> str:
    """The object with most voxels in the first labelled case: one that is seen however coarse the voxels are."""
    dataset = read_dataset(folder)
    case = next(case for case in dataset.cases if case.label is not None)
    label = read_label(case, read_image(case).grid)
    return max(dataset.objects, key=lambda name: int(np.count_nonzero(label == dataset.objects[name])))


def table(found: dict[str, dict[str, Any]]) -> str:
    """The results file: yes, or the number of a remark."""
    names = list(dict.fromkeys(method for cells in found.values() for method in cells))
    remarks: dict[str, int] = {}

    def cell(tried: dict[str, Any] | None) -> str:
        if tried is None:
            return ""
        if "scored" in tried:
            return "yes"
        kind = "refused" if "refused" in tried else "failed"
        return f"{kind} ({remarks.setdefault(tried[kind], len(remarks) + 1)})"

    import torch

    sets = list(found)
    rows = [f"| {method} | " + " | ".join(cell(found[name].get(method)) for name in sets) + " |" for method in names]
    done = sum("scored" in tried for cells in found.values() for tried in cells.values())
    count = sum(map(len, found.values()))
    return "\n".join(
        [
            "# Every method on every dataset",
            "",
            "Made by `benchmarks/adaptation/everywhere.py`: `volsam train` for one step from one case, then `volsam "
            f"evaluate` on one case, with small settings. {done} of {count} went through to a report. Left out: "
            + "; ".join(f"`{name}`, which {why}" for name, why in LEFT_OUT.items())
            + "; "
            + "; ".join(f"the folder `{name}`, {why}" for name, why in NO_DATASET.items())
            + ".",
            "",
            f"Machine: {platform.machine()}, {platform.system()}, Python {platform.python_version()}, torch "
            f"{torch.__version__}, one thread.",
            "",
            "| method | " + " | ".join(name.replace("_", " ") for name in sets) + " |",
            "| --- " * (len(sets) + 1) + "|",
            *rows,
            "",
            *(f"{number}. {text}" for text, number in remarks.items()),
            "",
        ]
    )


if __name__ == "__main__":
    main()
