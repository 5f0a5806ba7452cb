"""Which rule chooses the zoom best, on scans that took part in training and on held-out cases of their sets.

    python benchmarks/default_model/choose_zoom.py --data ../shared/data

At the first click every zoom of the ladder is tried, and the model looks twice, the second time at its own mask.
Compared are the zoom with the highest true Dice (an oracle), that of the highest expected quality at the first look, at
the second look, and of the first times the agreement with neighbouring zooms (the rule that is used); and what the
second look itself brings. Never run it on the never-seen sets: what is chosen here must not know them. Last output:
choose_zoom.txt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import volsam
from volsam.data.simulate import first_click
from volsam.evaluation.metrics import dice
from volsam.inference.painting import Answer, paint
from volsam.inference.predictor import Predictor, _agreement
from volsam.prompts import PromptSet

HERE = Path(__file__).parent
# Scans of the training with objects of many sizes, and which labels are tried.
TRAINED = (
    ("totalsegmentator_ct", "ts_ct", (1, 2, 5, 6, 7, 30, 52, 20, 9)),
    ("totalsegmentator_mr", "ts_mr", (1, 2, 3, 5, 6, 19, 21, 23, 46)),
    ("spleen_ct", "spleen_2", (1,)),
    ("spinal_cord", "sct_t2", (1,)),
    ("permissive_scans", "seg3d_head_mr", (1,)),
    ("permissive_scans", "ts_aorta_ct", (1, 2)),
    ("permissive_scans", "sts023_t1", (1,)),
    ("permissive_scans", "sts044_pet", (1,)),
)


def objects(data: Path) -> Iterator[tuple[str, str, volsam.Volume, np.ndarray]]:
    """held-out or trained, a name, the scan, the object."""
    held_out = json.loads((HERE / "split.json").read_text())["validation"]
    for folder, cases in held_out.items():
        for case in cases:
            volume, labels = read(data, folder, case)
            for values in ((1,), (1, 2)) if folder == "hippocampus" else ((1,),):
                yield "held-out", f"{folder} {case} {values}", volume, np.isin(labels, values)
    for folder, case, values in TRAINED:
        volume, labels = read(data, folder, case)
        for value in values:
            if (labels == value).sum() > 30:
                yield "trained", f"{folder} {case} {value}", volume, labels == value


def read(data: Path, folder: str, case: str) -> tuple[volsam.Volume, np.ndarray]:
    volume = volsam.read_volume(data / folder / "imagesTr" / f"{case}_0000.nii.gz")
    return volume, volsam.read_volume(data / folder / "labelsTr" / f"{case}.nii.gz").data[0]


def worth(predictor: Predictor, answer: Answer, prompts: PromptSet, target: np.ndarray) -> float:
    mask = np.zeros(target.shape, bool)
    patch = paint(answer, prompts, predictor.volume.grid)
    mask[patch.window] = patch.mask
    return dice(mask, target)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, default=Path("../shared/data"))
    words.add_argument("--model", default=None)
    given = words.parse_args()
    torch.set_num_threads(1)
    model = volsam.load_model(given.model, device="cpu")
    table: dict[str, list[list[float]]] = {}
    for kind, name, volume, target in objects(given.data):
        predictor = Predictor(model, volume)
        prompts = PromptSet([first_click(target, volume.grid)])
        answers = [predictor._look(roi, prompts, None) for roi in predictor._first_regions(prompts)]
        again = [predictor._look(answer.roi, prompts, answer) for answer in answers]
        once = np.array([worth(predictor, answer, prompts, target) for answer in answers])
        true = np.array([worth(predictor, answer, prompts, target) for answer in again])
        said = np.array([answer.quality for answer in answers])
        said_again = np.array([answer.quality for answer in again])
        pairs = [_agreement(finer, coarser) for finer, coarser in pairwise(answers)] or [1.0]
        beside = np.array([np.mean(pairs[max(i - 1, 0) : i + 1]) for i in range(len(answers))])
        rules = (said, said_again, said * beside)
        row = [true.max(), *(true[rule.argmax()] for rule in rules), once[rules[2].argmax()]]
        table.setdefault(kind, []).append([float(value) for value in row])
        print(f"{kind:9} {name:45} {np.round(true, 2)} expected {np.round(said, 2)} agreement {np.round(beside, 2)}")
    table["all"] = [row for rows in table.values() for row in rows]
    for kind, group in table.items():
        best, quality, second, beside, one_look = np.mean(group, axis=0)
        print(
            f"{kind}: {len(group)} objects; oracle {best:.3f}, quality {quality:.3f}, quality of the second look "
            f"{second:.3f}, quality x neighbours {beside:.3f}; the same with one look only {one_look:.3f}"
        )


if __name__ == "__main__":
    main()
