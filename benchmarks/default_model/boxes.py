"""Does a box help the default model more than a click? Dice after clicks, after a box, and after clicks behind a box.

    python benchmarks/default_model/boxes.py --data ../shared/data

Every object of every case is asked about twice by `volsam evaluate`: with up to three clicks, the first one deepest in
the object and each further one deepest in the error, and with the smallest box around it and up to two clicks after it.
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
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
SETS = ("hippocampus", "left_atrium", "chaos_t2_abdomen", "headneck_ct", "acdc_cardiac")
ASKED = {"clicks": ["--protocol", "clicks", "--clicks", "3"], "box": ["--protocol", "box", "--clicks", "2"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--sets", default=",".join(SETS), help="names, with commas")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    rows = []
    for name in options.sets.split(","):
        found: dict[str, Any] = {"set": name}
        with tempfile.TemporaryDirectory() as work:
            for asked, words in ASKED.items():
                scored = dice(options.data / name, Path(work) / asked, words)
                found |= {asked: [round(mean(each), 4) for each in zip(*scored, strict=True)], "objects": len(scored)}
        rows.append(found)
        print(json.dumps(found), flush=True)
        (options.output / "boxes.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.output / "boxes.md").write_text(table(rows))


def dice(dataset: Path, report: Path, words: list[str]) -> list[list[float]]:
    """Of every object, after each prompt."""
    line = [sys.executable, "-c", "from volsam.cli import main; main()", "evaluate", "volsam-s", str(dataset)]
    done = subprocess.run(
        [*line, "-o", str(report), "--split", "all", "--pictures", "0", "--device", "cpu", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return [row["scores"]["dice"] for row in json.loads((report / "results.json").read_text())["rows"]]


def table(rows: list[dict[str, Any]]) -> str:
    """The results file."""
    lines = [
        "# A box, or clicks?",
        "",
        "Made by `benchmarks/default_model/boxes.py`: mean Dice of volsam-s over all objects of all cases. The box is "
        "the smallest around the object; clicks lie deepest in the object, further ones deepest in the error. The "
        "hippocampus is among the sets that the model learnt from.",
        "",
        f"Machine: {platform.machine()}, {platform.system()}, Python {platform.python_version()}.",
        "",
        "| set | objects | 1 click | a box | 2 clicks | a box and 1 click | 3 clicks | a box and 2 clicks |",
        "| --- " * 8 + "|",
    ]
    for row in rows:
        pairs = [f"{value:.3f}" for both in zip(row["clicks"], row["box"], strict=True) for value in both]
        lines.append(f"| {row['set']} | {row['objects']} | " + " | ".join(pairs) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
