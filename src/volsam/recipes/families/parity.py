"""Proof that a network here is a published one: rebuild what a fixture describes, run it, compare every array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from volsam.errors import BadInput
from volsam.recipes.families.family import Family, built, family_of, fill
from volsam.recipes.families.fixture import Array, Fixture, read_fixture

TOLERANCE = 1e-4
"""Largest difference that counts as agreement, in float32 on a CPU."""

PROMPTS = ("points", "points_xy", "labels", "box_xyxy")
"""Recorded arrays that were given to the original, not computed by it."""


@dataclass(frozen=True)
class ArrayDifference:
    """How far one recorded array is from ours; `max_difference` is infinite where the shapes differ."""

    name: str
    shape: tuple[int, ...]
    max_difference: float
    agrees: bool


def verify(path: str | Path, families: Sequence[Family] | None = None) -> list[ArrayDifference]:
    """Compare every output recorded in a fixture with ours; `path` is its JSON."""
    fixture = read_fixture(Path(path))
    family = family_of(fixture, families)
    computed = _compute(family, fixture)
    recorded = {name: array for name, array in fixture.arrays.items() if name not in PROMPTS}
    unknown = sorted(set(recorded) - set(computed))
    if unknown or not recorded:
        raise BadInput(
            f"{Path(fixture.where).with_suffix('.npz')}: {family.title} computes none of {unknown or 'its arrays'}; "
            f"expected names such as {', '.join(sorted(computed)[:4])}"
        )
    return [_difference(name, array, computed[name].detach().numpy()) for name, array in recorded.items()]


def _compute(family: Family, fixture: Fixture) -> Mapping[str, Tensor]:
    network = built(family, fixture)
    fill(network, family, fixture.weights(), fixture.where)
    try:
        with torch.no_grad():
            return family.compute(network, fixture)
    except BadInput:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"{fixture.where}: its sizes and prompts do not fit {family.title} ({reason})") from error


def _difference(name: str, recorded: Array, computed: Array) -> ArrayDifference:
    """Large outputs are recorded with stride 2 along their spatial axes."""
    if recorded.shape != computed.shape:
        every_second = [slice(None)] * 2 + [slice(None, None, 2)] * (computed.ndim - 2)
        computed = computed[tuple(every_second)]
    if recorded.shape != computed.shape:
        return ArrayDifference(name, recorded.shape, float("inf"), agrees=False)
    most = float(np.abs(recorded.astype(np.float64) - computed.astype(np.float64)).max(initial=0.0))
    return ArrayDifference(name, recorded.shape, most, agrees=most <= TOLERANCE)
