"""The table of 3DSAM-adapter's paper in small: one SAM, one automatic network, and what the methods make of it; and its
two ablations, where clicks enter the network and where they lie in the object.

    python benchmarks/adaptation/peft.py --data ../shared/data --set hippocampus --steps 160 --draws 2

All methods begin with sam-mini and make the same steps on all training cases, as the paper's have the same epochs;
draws differ in their seeds. What is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch
from jaxtyping import Float
from run import scored, volsam
from torch import Tensor, nn

from volsam.data.dataset import read_dataset
from volsam.models.features import Features, Prediction
from volsam.models.segmenter import enlarge
from volsam.models.visual_sampler import VisualSampler
from volsam.recipes import trained
from volsam.recipes.families.sam_adapter_3d import SamAdapter3D
from volsam.recipes.methods import runs
from volsam.recipes.methods.method import Weights, load_methods, methods
from volsam.recipes.methods.volumes import ClickConfig, clicked
from volsam.training.run import Plan, counts

HERE = Path(__file__).parent
PEFT = ("full", "adapter", "pro-tuning", "st-adapter", "med-tuning", "fact", "lora", "sam-med2d", "3dsam-adapter-auto")
LEVELS = {"1, 2, 3, 4": (0, 1, 2), "1 and 4": (0,), "2 and 4": (1,), "3 and 4": (2,), "4 only, as published": ()}
"""Levels of features that clicks enter, and those of them before the last."""
WHERE = ("centre", "surround", "margin", "random")
COUNTS = (1, 3, 10)
SMALL = {"edge": 32, "out": 64, "voxels": 32**3}


# --- clicks at other levels ------------------------------------------------------------------------------------------


class LevelsConfig(ClickConfig, frozen=True):
    """Settings of 3DSAM-adapter with clicks at more levels."""

    levels: tuple[int, ...] = ()
    """Of 0, 1, 2, the levels that clicks enter beside the last."""


class LevelSamplers(SamAdapter3D):
    """3DSAM-adapter whose clicks change several levels of features before the head reads them."""

    def __init__(self, base: SamAdapter3D, levels: tuple[int, ...], make: Callable[[], VisualSampler]) -> None:
        super().__init__(base.encoder, base.sampler, base.head)
        self.levels = levels
        self.samplers = nn.ModuleDict({str(level): make() for level in levels})

    def decode(self, features: Features, points: Float[Tensor, "#b n 3"]) -> Prediction:
        """As without, but that what the levels before the last add is computed for these clicks."""
        d, h, w = features.image.shape[2:]
        at = (points + 0.5) / points.new_tensor([d, h, w])
        taps = [
            self.samplers[str(level)](tap, at) if level in self.levels else tap
            for level, tap in enumerate(features.taps[:-1])
        ]
        size = tuple(2 * length for length in self.encoder.config.grid)
        image = enlarge(features.image, (size[0], size[1], size[2])).expand(len(taps[0]), -1, -1, -1, -1)
        context = self.head.context(tuple(taps), image)
        return super().decode(Features(features.embedding, (*taps, context), features.image), points)


def at_levels(plan: Plan, config: LevelsConfig, weights: Weights | None) -> nn.Module:
    """The published network, with a sampler for every level that is asked for."""
    base = cast(SamAdapter3D, clicked(plan, config, weights))
    made = LevelSamplers(base, config.levels, lambda: cast(SamAdapter3D, clicked(plan, config, weights)).sampler)
    for parameter in made.samplers.parameters():
        parameter.requires_grad_(True)
    return made


# --- runs ------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the set")
    parser.add_argument("--set", default="hippocampus")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--draws", type=int, default=1, help="seeds")
    parser.add_argument("--work", type=Path, default=Path("runs/peft"), help="where runs are kept")
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    load_methods()
    methods.add("levels", replace(methods["3dsam-adapter"], name="levels", config=LevelsConfig, network=at_levels))
    path = options.output / "peft.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    jobs: list[tuple[str, str, Callable[..., list[dict[str, Any]]]]] = [
        *(("peft", name, tuned) for name in PEFT),
        *(("levels", name, levelled) for name in LEVELS),
    ]
    for draw in range(options.draws):
        for kind, name, work in jobs:
            key = {"set": options.set, "steps": options.steps, "draw": draw, "kind": kind, "name": name}
            if any(all(row.get(part) == value for part, value in key.items()) for row in rows):
                continue
            for found in work(options, name, draw):
                rows.append({**key, **found})
                print(json.dumps(rows[-1]), flush=True)
            path.write_text(json.dumps(rows, indent=1) + "\n")
            (options.output / "peft.md").write_text(tables(rows))


def tuned(options: argparse.Namespace, name: str, draw: int) -> list[dict[str, Any]]:
    """A method of the table: trained and scored."""
    folder = options.work / f"{name}-{draw}"
    shutil.rmtree(folder, ignore_errors=True)
    settings = {**SMALL, "max_steps": options.steps, "seed": draw, "validate_every": 1.0}
    words = ["train", name, options.data / options.set, "-o", folder, "--device", "cpu"]
    done = volsam([*words, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))])
    if done.returncode:
        return [{"failed": done.stderr.strip().splitlines()[-1]}]
    record = json.loads((folder / "run.json").read_text())
    _, network, _ = trained.load_network(folder)
    inside = sum(weight.numel() for key, weight in network.named_parameters() if _tuned_in_encoder(key, weight))
    return [
        {
            **scored(folder, options.data / options.set, folder / "splits.json", folder / "report"),
            "trained": record["trained"],
            "in encoder": inside,
        }
    ]


def _tuned_in_encoder(name: str, weight: nn.Parameter) -> bool:
    return weight.requires_grad and name.startswith("encoder.")


def levelled(options: argparse.Namespace, name: str, draw: int) -> list[dict[str, Any]]:
    """Clicks at some levels, trained here, since no command knows of it; the published ones also by click position."""
    from volsam.cli import app

    folder = options.work / f"levels-{name.replace(' ', '').replace(',', '')}-{draw}"
    shutil.rmtree(folder, ignore_errors=True)
    dataset = read_dataset(options.data / options.set)
    settings = {**SMALL, "levels": LEVELS[name], "max_steps": options.steps, "seed": draw, "validate_every": 1.0}
    fold = runs.choose_cases(dataset, 0, None, 0)
    job = runs.start("levels", dataset, folder, settings=settings, fold=fold, init="sam-mini")
    runs.train(job)
    found = []
    for where in WHERE if not LEVELS[name] else ("random",):
        report = folder / f"report-{where}"
        words = ["evaluate", folder, options.data / options.set, "-o", report, "--split", folder / "splits.json"]
        words += ["--where", where, "--clicks", max(COUNTS), "--objects", job.plan.labels[1], "--pictures", 0]
        app([str(word) for word in words], standalone_mode=False)
        rows = json.loads((report / "results.json").read_text())
        found.append(
            {
                "where": where,
                "dice": [round(mean(row["scores"]["dice"][at] for row in rows["rows"]), 4) for at in _places(rows)],
                "nsd": [round(mean(row["scores"]["nsd"][at] for row in rows["rows"]), 4) for at in _places(rows)],
                "objects": len(rows["rows"]),
                "trained": counts(job.network)[0],
            }
        )
    return found


def _places(results: dict[str, Any]) -> list[int]:
    """Where the answers to so many clicks are in a row: they are given together, 1, 3, 5 and 10 in turn."""
    return [[1, 3, 5, 10].index(count) for count in COUNTS]


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(rows: list[dict[str, Any]]) -> str:
    """The results file."""
    first = rows[0]
    lines = [
        "# What learns in one SAM",
        "",
        "Made by `benchmarks/adaptation/peft.py`: sam-mini in the automatic network of 3DSAM-adapter, "
        f"{first['steps']} steps on all training cases of {first['set']} for every method, mean over the objects of "
        "the held-out cases and over seeds, in brackets the lowest and the highest. So few steps on so small a SAM say "
        "nothing about the order at full size.",
        "",
        f"Machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}.",
        "",
        "| method | learns in the encoder | learns in all | Dice | NSD | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["name"] for row in rows if row["kind"] == "peft"):
        some = [row for row in rows if row["kind"] == "peft" and row["name"] == name and "dice" in row]
        if not some:
            lines.append(f"| {name} | failed | | | | |")
            continue
        sizes = f"{some[0]['in encoder'] / 1e6:.2f} M | {some[0]['trained'] / 1e6:.2f} M"
        lines.append(f"| {name} | {sizes} | {_cell(some, 'dice')} | {_cell(some, 'nsd')} | {len(some)} |")
    head = " | ".join(f"Dice, {count} click{'s' * (count > 1)}" for count in COUNTS)
    for title, label, kept in (
        ("Levels that clicks enter", "levels", lambda row: row["where"] == "random"),
        ("Where clicks lie", "clicks", lambda row: row["name"].startswith("4 only")),
    ):
        some = [row for row in rows if row["kind"] == "levels" and kept(row)]
        if not some:
            lines += ["", f"## {title}", "", "Not run yet."]
            continue
        lines += ["", f"## {title}", "", f"| {label} | {head} | seeds |", "| --- " * (len(COUNTS) + 2) + "|"]
        for name in dict.fromkeys(row["name" if label == "levels" else "where"] for row in some):
            those = [row for row in some if name in (row["name"], row["where"])]
            cells = " | ".join(_cell(those, "dice", at) for at in range(len(COUNTS)))
            lines.append(f"| {name} | {cells} | {len(those)} |")
    lines += [
        "",
        "Clicks are drawn in the true object and given together, on the first label. The paper has Dice 64.6, 66.8, "
        "69.2, 65.4 and 73.8 for the levels in this order (kidney tumour), and finds the place of clicks to matter "
        "little.",
    ]
    return "\n".join(lines) + "\n"


def _cell(rows: list[dict[str, Any]], measure: str, at: int | None = None) -> str:
    values = [row[measure] if at is None else row[measure][at] for row in rows]
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
