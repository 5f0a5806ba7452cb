"""volsam-s adapted to the labels of a datastore: a dataset made of them, a run of `volsam train adapt`, and its model.

STUDIES/.volsam/training/DATE/dataset    the labelled images in the layout of nnU-Net, while the run goes on
                             /run        the model, as `volsam train` leaves it; `volsam predict` takes it too
                             /log.txt    what the run has said
"""

from __future__ import annotations

import csv
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from volsam.data.studies import Drawn, names_of, write_dataset
from volsam.errors import BadFile, BadInput, MissingExtra
from volsam.inference.automatic import AutomaticModel
from volsam.server.core import Core
from volsam.server.dialects.monai_label.datastore import Datastore, Label, named_values
from volsam.server.dialects.monai_label.tasks import Stopped, Task
from volsam.server.problems import Problem
from volsam.training.run import LOG, Record, RunFolder

RECIPE = "adapt"
PLACE = ".volsam/training"
# Settings that clients may change, with what they begin at; they see them as a table.
SETTINGS: dict[str, int | float] = {"max_steps": 400, "batch_size": 2, "learning_rate": 0.002}
# What clients send beside settings.
BESIDE = ("client_id", "model")


class Trainer:
    """Runs on one datastore, and the newest model that came out of them."""

    def __init__(self, core: Core, store: Datastore) -> None:
        self._core = core
        self._store = store
        self._now: Path | None = None
        self._model: tuple[Path, AutomaticModel] | None = None
        self._lock = threading.Lock()

    # --- the model -----------------------------------------------------------------------------------------------

    def newest(self) -> Path | None:
        """The folder of the newest run that is done."""
        for folder in sorted((self._store.root / PLACE).glob("*/run"), reverse=True):
            record = _record(folder)
            if record is not None and record.done:
                return folder
        return None

    def labels(self) -> dict[str, int]:
        """Names and values of what the newest model labels."""
        folder = self.newest()
        record = None if folder is None else _record(folder)
        if record is None:
            return {}
        return {name: value for name, value in zip(record.plan.labels, record.plan.values, strict=True) if value > 0}

    def model(self) -> AutomaticModel:
        """The newest model, loaded; 404 if nothing was trained yet."""
        from volsam.recipes.recipe import choose_device
        from volsam.recipes.trained import is_automatic, load_run

        folder = self.newest()
        if folder is None:
            raise Problem(404, "no model was trained on this datastore yet")
        with self._lock:
            if self._model is None or self._model[0] != folder:
                loaded = load_run(folder, choose_device(self._core.settings.device))
                if not is_automatic(loaded):
                    raise BadFile(f"the run {folder.parent.name} holds no model that works without clicks")
                self._model = (folder, loaded)
            return self._model[1]

    # --- training ------------------------------------------------------------------------------------------------

    def work(self, asked: Mapping[str, Any]) -> Any:
        """Checked settings as work for `Tasks.start`; what cannot be done is refused before it begins."""
        settings = _settings(asked)
        _require_extra()
        if not self._store.cases():
            raise BadInput("no image of the datastore has a label with the tag final yet: save some first")

        def train(task: Task) -> None:
            place = self._store.root / PLACE / datetime.now().strftime("%Y%m%d-%H%M%S")
            place.mkdir(parents=True)
            self._now = place / "run"
            try:
                name = self._store.root.resolve().name
                count, _ = write_dataset(labelled(self._store, task), place / "dataset", name, task.say)
                task.say(f"training on {count} labelled images")
                task.command(_command(place, settings, self._core.settings.device), place / "log.txt")
                task.result = self.progress()
            except Stopped:
                self._now = None
                shutil.rmtree(place, ignore_errors=True)
                raise
            finally:
                shutil.rmtree(place / "dataset", ignore_errors=True)

        return train

    def progress(self) -> dict[str, Any]:
        """How far the last run is, in the words of MONAI Label; of the newest model where none was begun."""
        folder = self._now or self.newest()
        record = None if folder is None else _record(folder)
        if folder is None or record is None:
            return {}
        rows = _rows(folder / LOG)
        scores = [float(row["validation"]) for row in rows if row.get("validation")]
        best = record.best if record.best is not None else max(scores, default=0.0)
        total = int(record.config.get("max_steps", 0))
        found = {
            "epoch": int(rows[-1]["step"]) if rows else 0,
            "total_epochs": total,
            "best_metric": best,
            "start_ts": record.date,
            "run": folder.parent.name,
            "cases": len(record.training) + len(record.validation),
        }
        return {**found, "epoch": total, "total_time": f"{record.minutes:.1f} minutes"} if record.done else found


def labelled(store: Datastore, task: Task) -> Iterator[Drawn]:
    """The labelled images of a datastore, with what the values of their labels are called."""
    for image, label in store.cases():
        task.say(f"preparing {image.identity}")
        yield Drawn(image.identity, store.path(image), store.root / label.file, _names(store, label))


def _names(store: Datastore, label: Label) -> dict[str, int]:
    """As saved with a label, by the file beside it or by a client of MONAI Label, else as in dataset.json."""
    return names_of(store.root / label.file) or named_values(label.info) or store.declared()


def _settings(asked: Mapping[str, Any]) -> dict[str, int | float]:
    found: dict[str, int | float] = {}
    for key, value in asked.items():
        if key in BESIDE:
            continue
        if key not in SETTINGS:
            raise BadInput(f"training has no setting {key!r}; it has: {', '.join(SETTINGS)}")
        try:
            found[key] = type(SETTINGS[key])(value)
        except (TypeError, ValueError, OverflowError):
            raise BadInput(f"the setting {key} is a number such as {SETTINGS[key]}, got {value!r}") from None
        if found[key] <= 0:
            raise BadInput(f"the setting {key} is above 0, got {value!r}")
    return found


def _command(place: Path, settings: Mapping[str, int | float], device: str) -> list[str]:
    words = ["train", RECIPE, str(place / "dataset"), "-o", str(place / "run"), "--device", device]
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    return [sys.executable, "-c", "from volsam.cli import main; main()", *words]


def _require_extra() -> None:
    from importlib.util import find_spec

    if find_spec("lightning") is None:
        raise MissingExtra("training", "train")


def _record(folder: Path) -> Record | None:
    run = RunFolder(folder)
    try:
        return run.record() if run.begun else None
    except BadFile:
        return None


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
    except OSError:
        return []
