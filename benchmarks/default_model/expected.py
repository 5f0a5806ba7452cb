"""How near is the Dice that the default model expects of its mask to the true one, after a click, a box, or both?

    python benchmarks/default_model/expected.py --data ../shared/data

Every object of the first cases of a set is asked about anew for each kind of prompt: the click deepest in it, and the
smallest box around it.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import volsam
from volsam.data.dataset import Case, read_dataset, read_image, read_label
from volsam.data.simulate import first_click
from volsam.evaluation.metrics import dice
from volsam.evaluation.placement import box_around
from volsam.inference.session import Model

HERE = Path(__file__).parent
SETS = {"hippocampus": 24, "left_atrium": 8, "chaos_t2_abdomen": 6, "acdc_cardiac": 6, "headneck_ct": 3}
"""How many cases of each; all of them would take an hour."""
KINDS = {"a click": (first_click,), "a box": (box_around,), "a box and a click": (box_around, first_click)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sets")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    model = volsam.load_model(device="cpu")
    found = {}
    for name, count in SETS.items():
        dataset = read_dataset(options.data / name)
        cases = islice((case for case in dataset.cases if case.label is not None), count)
        pairs = [pair for case in cases for pair in told(model, case, list(dataset.objects.values()))]
        found[name] = np.array(pairs).round(4).tolist()
        print(name, len(pairs), flush=True)
        (options.output / "expected.json").write_text(json.dumps(found) + "\n")
    (options.output / "expected.md").write_text(table(found))


def told(model: Model, case: Case, values: Sequence[int]) -> Iterator[list[tuple[float, float]]]:
    """For each object (kinds, 2): the true Dice and the expected one."""
    volume = read_image(case)
    label = read_label(case, volume.grid)
    for value in values:
        target = label == value
        if not target.any():
            continue
        pairs = []
        for asks in KINDS.values():
            session = volsam.Session(model, volume)
            for ask in asks:
                session.add(ask(target, volume.grid))
            pairs.append((dice(session.mask.data[0] > 0, target), session.quality))
        yield pairs


def table(found: Mapping[str, Any]) -> str:
    """The results file."""
    lines = [
        "# The Dice that is expected, and the true one",
        "",
        "Made by `benchmarks/default_model/expected.py`: means over objects, true / expected by volsam-s, and how the "
        "two go together over the objects of a set (Pearson's correlation). The hippocampus is among the sets that the "
        "model learnt from.",
        "",
        f"Machine: {platform.machine()}, {platform.system()}, Python {platform.python_version()}.",
        "",
        "| set | objects | " + " | ".join(f"{kind} | correlation" for kind in KINDS) + " |",
        "| --- " * (2 + 2 * len(KINDS)) + "|",
    ]
    for name, pairs in found.items():
        scores = np.array(pairs)
        cells = []
        for kind in range(len(KINDS)):
            true, said = scores[:, kind].T
            cells.append(f"{true.mean():.3f} / {said.mean():.3f} | {np.corrcoef(true, said)[0, 1]:+.2f}")
        lines.append(f"| {name} | {len(pairs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
