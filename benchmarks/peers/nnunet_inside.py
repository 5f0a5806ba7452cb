"""The part of `nnunet.py` that runs in nnU-Net's own environment: plan, preprocess, train, predict.

It knows nothing of volsam. Everything is as published but the length of the training, a number of steps or of minutes
of this process's processor time, and that the rate falls with the part of it that is spent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans"


class BudgetTrainer(nnUNetTrainer):
    """nnU-Net's trainer with a budget of its own instead of a thousand epochs."""

    budget: int | None = None
    seconds: float | None = None
    steps = 0
    last_loss = float("nan")

    def run_training(self) -> None:
        """Train until the budget is spent; there is no validation, and what counts are the last weights."""
        self.on_train_start()  # loads the cases, which is no part of the budget
        self.network.train()
        began = process_time()
        while (part := self.spent(process_time() - began)) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - part) ** 0.9
            self.last_loss = float(self.train_step(next(self.dataloader_train))["loss"])
            self.steps += 1
        self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_final.pth"))

    def spent(self, seconds: float) -> float:
        """The part of the budget, 0 to 1."""
        return seconds / self.seconds if self.budget is None else self.steps / self.budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="DatasetNNN_NAME in nnUNet_raw")
    parser.add_argument("images", type=Path, help="folder of the images to predict")
    parser.add_argument("labels", type=Path, help="folder for what is predicted")
    parser.add_argument("record", type=Path, help="file for what is known of the training")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int)
    length.add_argument("--minutes", type=float, help="of processor time")
    parser.add_argument("--no-labels", action="store_true", help="train only")
    parser.add_argument("--no-mirrors", action="store_true", help="predict once, not for all mirror images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(options.seed)
    plan(int(options.dataset[7:10]))
    trainer = train(options.dataset, options.steps, options.minutes)
    if not options.no_labels:
        predict(trainer, options.images, options.labels, mirrors=not options.no_mirrors)
    known = {**described(trainer), "mirrors": not options.no_mirrors}
    options.record.write_text(json.dumps(known, indent=2) + "\n")


def plan(number: int) -> None:
    """What nnU-Net makes of the training cases."""
    extract_fingerprints([number], num_processes=1, check_dataset_integrity=True, show_progress_bar=False)
    plan_experiments([number])
    preprocess([number], PLANS, (CONFIGURATION,), (1,))


def train(dataset: str, steps: int | None, minutes: float | None) -> BudgetTrainer:
    """The trained network in its trainer; all cases of the dataset are learnt from."""
    # No process beside this one makes the batches. The planner does not take the 0, so it comes only now.
    os.environ.update(nnUNet_n_proc_DA="0")
    folder = Path(str(nnUNet_preprocessed)) / dataset
    plans = json.loads((folder / f"{PLANS}.json").read_text()) | {"continue_training": False}
    table = json.loads((folder / "dataset.json").read_text())
    trainer = BudgetTrainer(plans, CONFIGURATION, "all", table, torch.device("cpu"))
    trainer.budget, trainer.seconds = steps, None if minutes is None else 60 * minutes
    trainer.run_training()
    return trainer


def predict(trainer: BudgetTrainer, images: Path, labels: Path, *, mirrors: bool) -> None:
    """Labels of every image, with windows half over one another and, as published, all mirror images."""
    labels.mkdir(parents=True, exist_ok=True)
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(
        use_mirroring=mirrors, device=trainer.device, perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.manual_initialization(
        trainer.network.eval(),
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    predictor.predict_from_files_sequential(str(images), str(labels))


def described(trainer: BudgetTrainer) -> dict[str, Any]:
    """What is known of the training."""
    configuration = trainer.configuration_manager
    return {
        "steps": trainer.steps,
        "trained": sum(each.numel() for each in trainer.network.parameters() if each.requires_grad),
        "loss": trainer.last_loss,
        "batch": configuration.batch_size,
        "patch": list(map(int, configuration.patch_size)),
        "spacing": list(map(float, configuration.spacing)),
    }


if __name__ == "__main__":
    main()
