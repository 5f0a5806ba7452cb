"""What are labels worth where only some slices are drawn? Dice on held-out cases, whose labels are whole.

    python benchmarks/adaptation/sparse.py --data ../shared/data --set hippocampus --every 4

Of the cases to learn from and to choose by one slice in so many keeps its label. The rest is labelled "ignore", or, for
comparison, taken for background; and once all slices are labelled. Steps are those of results.md (paces.json). What is
in sparse.json already is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from run import HERE, METHODS, budget, machine, scored, volsam

from volsam.data.dataset import read_dataset
from volsam.data.io import read_volume, write_volume
from volsam.recipes.methods.runs import choose_cases

REST = {"all slices": None, "the rest ignored": "ignore", "the rest background": "background"}
"""What is labelled, and what the other slices are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--set", default="hippocampus")
    parser.add_argument(
        "--every", type=int, default=4, help="how many slices, along the last axis, one of which is drawn"
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="of one thread, at the pace of results.md")
    parser.add_argument("--methods", default="volsam-s, adapted;UNet from scratch", help="names, with semicolons")
    parser.add_argument("--work", type=Path, default=Path("runs/sparse"), help="where sets and runs are kept")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "sparse.json"
    for method in options.methods.split(";"):
        for called, rest in REST.items():
            key = {"set": options.set, "every": options.every, "minutes": options.minutes}
            key |= {"method": method, "labelled": called}
            rows = json.loads(path.read_text()) if path.exists() else []
            if any(all(row[part] == value for part, value in key.items()) for row in rows):
                continue
            rows.append({**key, **run(options, method, rest)})
            print(json.dumps(rows[-1]), flush=True)
            path.write_text(json.dumps(rows, indent=1) + "\n")
            (options.output / "sparse.md").write_text(table(rows))


def run(options: argparse.Namespace, method: str, rest: str | None) -> dict[str, Any]:
    """Train on all cases, and score the held-out ones."""
    whole = options.data / options.set
    known = whole if rest is None else drawn(whole, options.work / f"{options.set}-{rest}", options.every, rest)
    folder = options.work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    recipe, settings = METHODS[method]
    given = {**settings, "seed": 0, "validate_every": 1.0}
    given["max_steps"] = budget(argparse.Namespace(**{**vars(options), "output": HERE}), options.set, method, "all")
    words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    done = volsam(["train", recipe, known, "-o", folder, "--device", "cpu", *words])
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return {**scored(folder, whole, folder / "splits.json", folder / "report"), "steps": given["max_steps"]}


def drawn(source: Path, folder: Path, every: int, rest: str) -> Path:
    """A copy of a set in which one slice in so many is labelled, but for the held-out cases."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    dataset = read_dataset(folder)
    fold = choose_cases(dataset, 0, None, 0)
    value = 0 if rest == "background" else max(dataset.labels.values()) + 1
    for case in dataset.cases:
        if case.label is None or case.name not in (*fold.train, *fold.val):
            continue
        volume = read_volume(case.label)
        labels = volume.data.copy()
        labels[..., np.arange(labels.shape[-1]) % every != every // 2] = value
        write_volume(volume.with_data(labels.astype(np.uint8)), case.label)
    if value:
        table = json.loads((folder / "dataset.json").read_text())
        decathlon = all(key.isdigit() for key in table["labels"])
        table["labels"] |= {str(value): "ignore"} if decathlon else {"ignore": value}
        (folder / "dataset.json").write_text(json.dumps(table))
    return folder


def table(rows: list[dict[str, Any]]) -> str:
    """The results file."""
    lines = [
        "# Labels in some slices",
        "",
        "Made by `benchmarks/adaptation/sparse.py`: mean Dice over the objects of the held-out cases, which are all "
        "labelled. The same cases, steps and seed in all rows of a method.",
        "",
        machine(),
        "",
        "| set | one slice in | minutes | method | " + " | ".join(REST) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(REST),
    ]
    keys = ("set", "every", "minutes", "method")
    for key in dict.fromkeys(tuple(row[part] for part in keys) for row in rows):
        dice = {row["labelled"]: row["dice"] for row in rows if tuple(row[part] for part in keys) == key}
        cells = " | ".join(f"{dice[called]:.3f}" if called in dice else "" for called in REST)
        lines.append(f"| {key[0]} | {key[1]} | {key[2]:g} | {key[3]} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
