"""Which settings suit `adapt` where one volume is all there is? By validation cases, never by held-out ones.

    python benchmarks/adaptation/few.py --data ../shared/data --set hippocampus --minutes 1
    python benchmarks/adaptation/few.py --data ../shared/data --set left_atrium --minutes 3

Each run has so many minutes of processor time on one thread, learns from the case that its draw gives, and is validated
once, at its end, on all validation cases of the fold. What is in few.json already is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

from run import machine, volsam

HERE = Path(__file__).parent
CHOICES = ("strong,adapters", "full,all", "strong,all", "full,adapters")
"""`augment` and `tune`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--set", default="hippocampus")
    parser.add_argument("--minutes", type=float, default=1.0, help="of processor time")
    parser.add_argument("--choices", nargs="+", default=CHOICES, help="augment,tune of each; all four without it")
    parser.add_argument("--draws", type=int, default=2, help="random choices of the training case")
    parser.add_argument("--work", type=Path, default=Path("runs/few"), help="where runs are kept while they last")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "few.json"
    for draw in range(options.draws):
        for augment, tune in (choice.split(",") for choice in options.choices):
            key = {"set": options.set, "minutes": options.minutes, "draw": draw, "augment": augment, "tune": tune}
            rows = json.loads(path.read_text()) if path.exists() else []
            if any(all(row[part] == value for part, value in key.items()) for row in rows):
                continue
            rows.append({**key, **run(options, draw, augment, tune)})
            print(json.dumps(rows[-1]), flush=True)
            path.write_text(json.dumps(rows, indent=1) + "\n")
            (options.output / "few.md").write_text(table(rows))


def run(options: argparse.Namespace, draw: int, augment: str, tune: str) -> dict[str, Any]:
    """Train once; what the validation cases say."""
    folder = options.work / f"{options.set}-{draw}-{augment}-{tune}"
    shutil.rmtree(folder, ignore_errors=True)
    given = {"augment": augment, "tune": tune, "seed": draw, "minutes": options.minutes, "clock": "cpu"}
    given["validate_every"] = 1.0
    settings = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    words = ["train", "adapt", options.data / options.set, "-o", folder, "--train-cases", "1", "--device", "cpu"]
    done = volsam([*words, *settings])
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    record = json.loads((folder / "run.json").read_text())
    shutil.rmtree(folder)
    return {"steps": record["steps"], "validation": round(record["best"], 4), "cases": len(record["validation"])}


def table(rows: list[dict[str, Any]]) -> str:
    """The results file."""
    lines = [
        "# Settings of adapt for one volume",
        "",
        "Made by `benchmarks/adaptation/few.py`: mean Dice of the fold's validation cases after so many minutes of "
        "processor time on one thread, and over draws of the one training case; in brackets the lowest, the highest.",
        "",
        machine(),
        "",
        "| set | minutes | `augment` | `tune` | steps | validation | draws |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    keys = ("set", "minutes", "augment", "tune")
    for key in dict.fromkeys(tuple(row[part] for part in keys) for row in rows):
        some = [row for row in rows if tuple(row[part] for part in keys) == key]
        name, minutes, augment, tune = key
        dice = [row["validation"] for row in some]
        spread = f" ({min(dice):.3f} to {max(dice):.3f})" if len(dice) > 1 else ""
        steps = round(mean(row["steps"] for row in some))
        lines.append(
            f"| {name} | {minutes:g} | {augment} | {tune} | {steps} | {mean(dice):.3f}{spread} | {len(dice)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
