"""What does a step of each method take here? Seconds and memory of one process each, on one thread.

    python benchmarks/adaptation/steps.py --dataset ../shared/data/hippocampus
    volsam bench --suite train --models sam-med3d,fastsam3d --rounds 3 --threads 1

The first makes every method ready on a dataset, with its own settings, and makes two steps three times, of which the
second counts; it is for a machine on which nothing else runs. What is in steps.json already is not done again. The
second sets our networks beside the published ones, at the size of the papers, where there is something to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Methods that need more than a dataset.
LEFT_OUT = ("checkout",)
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="in the layout of nnU-Net v2")
    parser.add_argument("--one", help="measure this method alone, in this process, and print what came out")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one, options.dataset)))
        return
    from volsam.recipes.methods.method import load_methods

    path = options.output / "steps.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for method in load_methods():
        if method in LEFT_OUT or any(row["method"] == method for row in rows):
            continue
        line = [sys.executable, __file__, "--dataset", options.dataset, "--one", method]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([str(word) for word in line], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{method}: {done.stderr.strip().splitlines()[-1]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
        options.output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / "steps.md").write_text(table(rows, options.dataset.name))


def measured(method: str, folder: Path) -> dict[str, Any]:
    """A step of a method with its own settings, from one training case."""
    import torch

    torch.set_num_threads(1)
    from volsam.data.dataset import read_dataset
    from volsam.recipes.methods import runs

    dataset = read_dataset(folder)
    fold = runs.choose_cases(dataset, 0, 1, 0, str)
    with tempfile.TemporaryDirectory() as work:
        job = runs.start(method, dataset, Path(work) / "run", settings={"max_steps": 1}, fold=fold)
        found = [runs.prospect(job) for _ in range(ROUNDS)]
    item = job.items[0]
    seen = next(item[name] for name in ("image", "embedding") if name in item)
    return {
        "method": method,
        "input": list(seen.shape),
        "batch": job.config.batch_size,
        "trained": found[0].trained,
        "frozen": found[0].frozen,
        "seconds": sorted(round(one.seconds, 3) for one in found),
        "memory": round(found[0].memory, 2),
    }


def table(rows: list[dict[str, Any]], dataset: str) -> str:
    """The results file."""
    import torch

    lines = [
        "# A step of training, method by method",
        "",
        f"Made by `benchmarks/adaptation/steps.py` on {dataset}, each method with its own settings: the second of two "
        "steps, the median of three times with the quickest and the slowest, and the peak of the process, what AdamW "
        "keeps included. Inputs differ, so rows do not rank methods. "
        "Beside the published code, at the size of the papers: `benchmarks/originals/results.md`.",
        "",
        f"Machine: {platform.machine()}, {platform.system()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, one thread.",
        "",
        "| method | input | batch | weights that learn, frozen | step, s | memory, GB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        size = " × ".join(map(str, row["input"]))
        weights = f"{row['trained'] / 1e6:.2f} M, {row['frozen'] / 1e6:.2f} M"
        low, middle, high = row["seconds"]
        taken = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {row['method']} | {size} | {row['batch']} | {weights} | {taken} | {row['memory']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
