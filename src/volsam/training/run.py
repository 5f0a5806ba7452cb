"""The folder of a training run: what was trained, how, on what, and how far it is.

    RUN/run.json             what the weights are: method, settings, labels, data, licence
    RUN/best.safetensors     trained weights that did best on the validation cases
    RUN/last.safetensors     trained weights of the last step
    RUN/resume.pt            what a stopped run goes on from
    RUN/log.csv              a line for every logged step

Only what was trained is stored. What was frozen is in the weights that the run began with, which `run.json` names with
their checksum.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from volsam.data.files import replacing
from volsam.data.preparation import Preparation
from volsam.errors import BadFile, BadInput

FORMAT = 2
RUN, BEST, LAST, RESUME, LOG = "run.json", "best.safetensors", "last.safetensors", "resume.pt", "log.csv"
# The fold of a run, with the cases that it never saw as "test", if the dataset has no such file.
OWN_SPLITS = "splits.json"


class Init(BaseModel, frozen=True):
    """Weights that a run began with, or was taught by."""

    name: str
    """A name from `volsam models list`, or the path of a file; empty for none."""
    sha256: str = ""
    licence: str = ""


class Plan(BaseModel, frozen=True, extra="forbid"):
    """What a method made of a dataset before training; it needs no more than this to be built again."""

    labels: tuple[str, ...]
    """Of every class, background first."""
    values: tuple[int, ...]
    """Of every class in the files of labels."""
    channels: int
    """Of the images."""
    preparation: Preparation
    """How volumes are seen."""
    patch: tuple[int, int, int]
    """Voxels, or pixels, that the network sees at once."""
    flip: bool
    """Whether mirror images are shown in training."""
    ignored: int | None = None
    """In the files of labels, the value of voxels whose truth is not known."""


class Record(BaseModel, frozen=True):
    """What is known of a run."""

    format: int = FORMAT
    method: str
    config: Mapping[str, Any]
    plan: Plan
    init: Init
    teacher: Init = Init(name="")
    """The model that was imitated, whose prompt encoder and mask head a student has taken over."""
    dataset: str
    training: tuple[str, ...]
    """Names of the cases that were learnt from."""
    validation: tuple[str, ...]
    """Names of the cases by which the best weights were chosen."""
    fingerprint: str
    """Of the files of all these cases."""
    images: Mapping[str, str]
    """Of each of these cases what tells its images from others, whatever they are called."""
    licence: str
    """Of the trained weights, as far as it is known."""
    trained: int
    """Weights that learn."""
    frozen: int
    versions: Mapping[str, str]
    date: str
    best: float | None = None
    """Mean Dice of the validation cases, of the best weights."""
    steps: int = 0
    """Optimiser steps that were made."""
    minutes: float = 0.0
    """Wall time of the steps."""
    done: bool = False


class RunFolder:
    """The files of a run; `keeps` is a pattern of names that are stored although they do not learn, see `kept`."""

    def __init__(self, path: Path, keeps: str = "") -> None:
        self.path = path
        self.keeps = keeps

    def require_free(self) -> None:
        """A folder that holds something else is left alone."""
        if self.path.exists() and (not self.path.is_dir() or (any(self.path.iterdir()) and not self.begun)):
            raise BadInput(f"{self.path} holds files that are no training run: give another folder with -o")

    def start(self, record: Record) -> None:
        """Make the folder."""
        self.require_free()
        self.path.mkdir(parents=True, exist_ok=True)
        self.write(record)

    def write(self, record: Record) -> None:
        """Replace what is known."""
        with replacing(self.path / RUN) as unfinished:
            unfinished.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @property
    def begun(self) -> bool:
        """Whether there is a run."""
        return (self.path / RUN).is_file()

    @property
    def resumes(self) -> bool:
        """Whether it has steps behind it, from which it goes on."""
        return self.begun and (self.path / RESUME).is_file()

    def record(self) -> Record:
        """What is known."""
        try:
            return Record.model_validate_json((self.path / RUN).read_bytes())
        except OSError as error:
            raise BadFile(f"{self.path} is not a training run: {RUN} cannot be read ({error.strerror})") from None
        except ValidationError:
            raise BadFile(
                f"{self.path / RUN} does not say what a run must say: it is damaged, or of another version"
            ) from None

    def save(self, name: str, network: nn.Module, average: Mapping[str, Tensor] | None = None) -> None:
        """Write the trained weights, or their running average."""
        weights = {key: value.detach().cpu().contiguous().clone() for key, value in kept(network, self.keeps).items()}
        if average is not None:
            weights |= {key: value.detach().cpu().contiguous() for key, value in average.items()}
        write_tensors(self.path / name, weights)

    @property
    def weights(self) -> Path:
        """The best weights, or where no case was left to choose by, the last ones."""
        return self.path / (BEST if (self.path / BEST).is_file() else LAST)

    def learnt(self) -> dict[str, Tensor]:
        """The trained weights: the best ones where there are any."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.weights)
        except (SafetensorError, OSError) as error:
            raise BadFile(f"{self.weights} cannot be read ({error}): has the run saved anything yet?") from None

    def log(self, row: Mapping[str, float | int]) -> None:
        """Add a line to the log."""
        path = self.path / LOG
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(COLUMNS), restval="")
            if fresh:
                writer.writeheader()
            writer.writerow({key: row[key] for key in COLUMNS if key in row})

    def truncate_log(self, step: int) -> None:
        """Forget lines after a step: a run that goes on makes them again."""
        path = self.path / LOG
        if not path.exists():
            return
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        with replacing(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(COLUMNS))
            writer.writeheader()
            writer.writerows(rows)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; through a file of Python's, which says when a disk is full."""
    from safetensors.torch import save

    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(save(dict(tensors), header))


COLUMNS = ("step", "minutes", "rate", "loss", "dice", "validation")


def kept(network: nn.Module, keeps: str = "") -> dict[str, Tensor]:
    """What is stored of a network: weights that learn, those named by `keeps` (drawn anew and frozen), and what is no
    weight but was drawn or gathered, such as the matrix of a position code and running means.
    """
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    weights = {name for name, _ in network.named_parameters()}
    return {
        name: value
        for name, value in network.state_dict().items()
        if name in learning or name not in weights or (keeps and re.match(keeps, name))
    }


def fill(network: nn.Module, weights: Mapping[str, Tensor], where: Path, keeps: str = "") -> None:
    """Give a network, built as it was for a run, the trained weights, which lie in `where`."""
    if wrong := set(kept(network, keeps)) ^ set(weights):
        raise BadFile(f"{where} does not fit the network that it tells of ({min(wrong)}): the run is damaged")
    network.load_state_dict(dict(weights), strict=False)


def counts(network: nn.Module) -> tuple[int, int]:
    """Weights that learn, and weights that do not."""
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in network.parameters()]
    return sum(size for learns, size in sizes if learns), sum(size for learns, size in sizes if not learns)
