"""How good a model is while it learns: by Dice on cases that it does not learn from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import numpy as np

from volsam.data.dataset import Case, read_image, read_label
from volsam.evaluation.metrics import dice
from volsam.recipes.trained import is_automatic
from volsam.training.run import Plan

if TYPE_CHECKING:
    from volsam.inference.session import Model
    from volsam.recipes.methods.method import Trained


def mean_score(model: Trained, cases: Iterable[Case], plan: Plan) -> float:
    """Mean over cases of `score`, those aside that hold no object to ask for; 0 if there is no other."""
    scores = [found for case in cases if (found := score(model, case, plan)) is not None]
    return float(np.mean(scores)) if scores else 0.0


def score(model: Trained, case: Case, plan: Plan) -> float | None:
    """Mean Dice of the objects that a case has, by an automatic model, or after one click, or a box, by others."""
    from volsam.evaluation.protocol import Objects

    volume = read_image(case, plan.channels)
    target = read_label(case, volume.grid)
    known = Objects(target, {}, plan.ignored).known
    present = [value for value in plan.values[1:] if (target == value).any()]
    if is_automatic(model):
        found = known(model.segment(volume).data[0])
        return float(np.mean([dice(found == value, target == value) for value in present or plan.values[1:]]))
    from volsam.data.simulate import first_click
    from volsam.evaluation.placement import box_around
    from volsam.inference.session import Session

    scores = []
    for value in present:
        session = Session(cast("Model", model), volume)
        ask = first_click if "click" in cast("Model", model).takes else box_around
        session.add(ask(target == value, volume.grid))
        scores.append(dice(known(session.mask.data[0]) > 0, target == value))
    return float(np.mean(scores)) if scores else None
