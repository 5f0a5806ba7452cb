"""nnU-Net beside the methods of volsam: the same training cases, the same budget, the same held-out cases and scores.

    python benchmarks/peers/nnunet.py --data ../shared/data --sets hippocampus --pace
    python benchmarks/peers/nnunet.py --data ../shared/data --sets hippocampus --minutes 1 --draws 2

nnU-Net v2 comes from its own package, in an environment of its own (`.venv-peers`, made by this script: about 2 GB),
and makes its own plan from the training cases. Planning and preprocessing are no part of the budget, as with volsam;
then it trains on one thread for the steps that it makes in so many minutes, by its own recipe (`nnunet_inside.py` says
what differs). `volsam evaluate` scores what it predicts for the held-out cases, and the rows go into the table of
`benchmarks/adaptation`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from volsam.data.dataset import Case, Dataset, mapped, read_dataset, read_image, read_label, write_table
from volsam.data.io import read_volume, write_volume
from volsam.data.splits import Fold, patient_of, write_splits
from volsam.recipes.methods.runs import choose_cases
from volsam.volume import Volume

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(HERE.parent / "adaptation"))

from run import PATIENTS, arguments, budget, carry_out, scored  # noqa: E402

METHOD = "nnU-Net"
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
# Installed without what they ask for, see nnunet.txt.
BARE = ("nnunetv2==2.8.1", "dynamic-network-architectures==0.4.4", "timm==1.0.22")
PACED = 0.5
"""Minutes of the run in which its pace is measured: a step takes seconds."""
# nnU-Net wants a number for a dataset; there is never another one beside it.
NUMBER = "Dataset001"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser, work=Path("runs/nnunet"))
    parser.add_argument(
        "--no-mirrors", action="store_true", help="predict once, not for all mirror images: 8 times less"
    )
    options = parser.parse_args()
    make_environment()
    carry_out(options, [METHOD], pace, run)


def pace(options: argparse.Namespace, set: str, method: str) -> int:
    """Steps in a minute of processor time, from a short run."""
    folder = (options.work / f"{set}-pace").resolve()
    chosen(options, set, "2", 0, folder)
    done = inside(folder, f"{NUMBER}_{set}", "--minutes", PACED, "--no-labels")
    if done.returncode:
        raise SystemExit(done.stderr)
    return round(json.loads((folder / "record.json").read_text())["steps"] / PACED)


def run(options: argparse.Namespace, set: str, method: str, size: str, draw: int, minutes: float) -> dict[str, Any]:
    """Train once and score; how it went."""
    steps = budget(options, set, method, size)
    folder = (options.work / f"{set}-{size}-{draw}-{minutes:g}").resolve()
    dataset, fold = chosen(options, set, size, draw, folder)
    mirrors = ["--no-mirrors"] if options.no_mirrors else []
    done = inside(folder, f"{NUMBER}_{set}", "--steps", steps, "--seed", draw, *mirrors)
    if done.returncode:
        return {"failed": (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}
    take_back(dataset, folder)
    found = scored(folder / "labels", dataset.folder, folder / "splits.json", folder / "report")
    if "failed" in found:
        return found
    record = json.loads((folder / "record.json").read_text())
    known = {key: record[key] for key in ("steps", "trained", "mirrors")}
    return {**found, **known, "cases": list(fold.train)}


def chosen(options: argparse.Namespace, set: str, size: str, draw: int, folder: Path) -> tuple[Dataset, Fold]:
    """The cases that the other methods get, laid out in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    dataset = read_dataset(options.data / set)
    names = [case.name for case in dataset.cases]
    patient = patient_of(PATIENTS[set], names) if set in PATIENTS else str
    fold = choose_cases(dataset, 0, None if size == "all" else int(size), draw, patient)
    lay_out(dataset, fold, folder)
    return dataset, fold


def make_environment() -> None:
    """An environment with nnU-Net and the torch of this project; kept once it is there."""
    wanted = "import nnunetv2.training.nnUNetTrainer.nnUNetTrainer"
    if PYTHON.exists() and not subprocess.run([PYTHON, "-c", wanted], capture_output=True).returncode:
        return
    print(f"{PYTHON.parents[1]}: nnU-Net's environment is made, which takes some minutes", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", PYTHON.parents[1]], check=True)
    torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    for words in ([torch], ["--no-deps", *BARE], ["-r", HERE / "nnunet.txt"]):
        line = [PYTHON, "-m", "pip", "install", "-q", *words]
        subprocess.run(list(map(str, line)), check=True, env={**os.environ, "PIP_CONSTRAINT": str(CONSTRAINTS)})


def lay_out(dataset: Dataset, fold: Fold, folder: Path) -> None:
    """The training cases as nnU-Net wants them, the held-out images beside them, and the split for the evaluation.

    Files are written anew on their own grids: nnU-Net wants one file for each channel, and labels without gaps.
    """
    raw = folder / "raw" / f"{NUMBER}_{dataset.folder.name}"
    for part in (raw / "imagesTr", raw / "labelsTr", folder / "images"):
        part.mkdir(parents=True)
    for name in fold.train:
        case = dataset.case(name)
        image = write_channels(case, raw / "imagesTr")
        labels = mapped(read_label(case, image.grid), {0: 0, **numbered(dataset)})
        write_volume(image.with_data(labels, name), raw / "labelsTr" / f"{name}.nii.gz")
    for name in fold.test:
        write_channels(dataset.case(name), folder / "images")
    names = {name: numbered(dataset)[value] for name, value in dataset.objects.items()}
    write_table(raw, dataset.folder.name, dataset.channels, {"background": 0, **names}, len(fold.train))
    write_splits([fold], folder / "splits.json")


def write_channels(case: Case, folder: Path) -> Volume:
    """One file for each channel."""
    image = read_image(case)
    for number, channel in enumerate(image.data):
        write_volume(image.with_data(channel[None]), folder / f"{case.name}_{number:04d}.nii.gz")
    return image


def numbered(dataset: Dataset) -> dict[int, int]:
    """From the label values of a dataset to 1, 2, 3."""
    return {value: number for number, value in enumerate(sorted(dataset.objects.values()), start=1)}


def take_back(dataset: Dataset, folder: Path) -> None:
    """What nnU-Net predicted, with the label values of the dataset."""
    (folder / "labels").mkdir()
    back = {0: 0, **{number: value for value, number in numbered(dataset).items()}}
    for path in sorted((folder / "predicted").glob("*.nii.gz")):
        volume = read_volume(path)
        write_volume(volume.with_data(mapped(volume.data.astype("uint8"), back)), folder / "labels" / path.name)


def inside(folder: Path, dataset: str, *more: Any) -> subprocess.CompletedProcess[str]:
    """Plan, train and predict in nnU-Net's environment, on one thread and without processes beside it."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results"),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
    }
    script = HERE / "nnunet_inside.py"
    words = [script, dataset, folder / "images", folder / "predicted", folder / "record.json"]
    line = [PYTHON, *words, *more]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, env=environment)
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    return done


if __name__ == "__main__":
    main()
