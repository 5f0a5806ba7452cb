"""What can be set for a training run. Every field is reached by `--set name=value` and by `--config FILE.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from volsam.errors import BadInput
from volsam.training.augment import Strength

Config = TypeVar("Config", bound="TrainConfig")

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
"""A part of something, 0 to 1."""

Percent: TypeAlias = Annotated[float, Field(ge=0, le=100)]
"""A part of something, 0 to 100."""

Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
"""Of a running average."""


class TrainConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """One run; recipes add fields of their own and change defaults."""

    max_steps: PositiveInt = 1000
    """Optimiser steps of the whole schedule."""
    minutes: PositiveFloat | None = None
    """Time of the whole schedule, instead of steps; preparing the data does not count, nor does validation."""
    clock: Literal["wall", "cpu"] = "wall"
    """What minutes are counted by: cpu counts the processor's, which a busy machine does not stretch."""
    batch_size: PositiveInt = 2
    """Items per optimiser step, over all processes."""
    accumulate: PositiveInt = 1
    """In how many parts a batch passes through the network, to need less memory."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate, reached after the warm-up."""
    weight_decay: NonNegativeFloat = 0.01
    """Of AdamW, on all weights of two or more axes: matrices and kernels, and tables of positions and tokens as well;
    biases and norms do not decay."""
    warm_up: NonNegativeInt = 20
    """Steps over which the rate rises."""
    schedule: Literal["constant", "linear", "polynomial", "cosine"] = "cosine"
    """How the rate falls after the warm-up."""
    power: PositiveFloat = 0.9
    """Of the polynomial schedule; MA-SAM and SAMed have 7."""
    least: NonNegativeFloat = 0.01
    """The part of the peak rate at which the schedule ends."""
    clip_norm: PositiveFloat | None = 1.0
    """Longest gradient of each group of weights."""
    average: Decay = 0.0
    """Decay of a running average of the trained weights, which is then what is kept and validated; 0 for none."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """As Lightning Fabric calls them; mixed precision pays on a GPU, and half precision needs a scale of its own."""
    recompute: bool = False
    """Whether blocks of the encoder are computed again on the way back and not kept: less memory, a third more time."""
    augment: Strength | Literal["auto"] = "full"
    """light: flips alone; full: turns, zooms, noise, blur, brightness and contrast as well; strong: more of all, bent
    space, changed histograms, uneven fields and lower resolution; auto: strong for up to three volumes, else full."""
    flip: bool | None = None
    """Whether mirror images may be shown; None: unless a label's name says left or right."""
    validate_every: PositiveFloat = 0.2
    """Part of the schedule after which the validation cases are segmented."""
    validation_cases: PositiveInt = 50
    """Most of them that are segmented every time, drawn by the seed."""
    save_every: PositiveInt = 100
    """Steps after which the run could go on if it were stopped."""
    workers: NonNegativeInt = 0
    """Processes beside the training that prepare items; 0 prepares them in turn."""
    seed: NonNegativeInt = 0
    """Of everything that is drawn."""

    def rate(self, progress: float, step: int) -> float:
        """The part of the peak rate at a place in the schedule: `progress` from 0 to 1, `step` from 0."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        # Of a schedule by time nobody knows how many steps it has: as many more as have been made so far say.
        risen = progress * self.warm_up / step if step else 0.0
        left = 1.0 - (min(progress, 1.0) - risen) / max(1.0 - risen, 1e-9)
        falling = {
            "constant": 1.0,
            "linear": left,
            "polynomial": left**self.power,
            "cosine": 0.5 - 0.5 * math.cos(math.pi * left),
        }[self.schedule]
        return self.least + (1 - self.least) * falling


def configured(kind: type[Config], given: Mapping[str, Any]) -> Config:
    """A config of that kind with some fields set; unknown fields and impossible values are refused."""
    unknown = [name for name in given if name not in kind.model_fields]
    if unknown:
        near = get_close_matches(unknown[0], kind.model_fields, 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise BadInput(f"there is no setting {unknown[0]!r}; {guess}there are: {', '.join(sorted(kind.model_fields))}")
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        # One error for each type that would do; a place within a field may be a type's name.
        name = str(error.errors()[0]["loc"][0])
        reasons = dict.fromkeys(found["msg"] for found in error.errors() if found["loc"][0] == name)
        raise BadInput(
            f"{name}={given[name]!r} is not valid: {' or: '.join(reasons)}; see `volsam train --settings METHOD`"
        ) from None


def described(kind: type[TrainConfig]) -> dict[str, tuple[Any, str]]:
    """Every setting with its default and what it means; one whose default a recipe changes keeps its meaning."""
    found = {}
    for name, field in kind.model_fields.items():
        kinds = (each.model_fields for each in kind.__mro__ if issubclass(each, TrainConfig))
        meaning = next((each[name].description for each in kinds if name in each and each[name].description), "")
        found[name] = (field.default, " ".join(str(meaning).split()))
    return found
