"""What an original computes at a reduced size: a pair of files, and the rule by which weights and inputs follow.

The JSON holds `config` (sizes), `state_dict` (name -> shape, in the naming of the original) and `seed`. Weights and
inputs follow from a name, a shape and the seed by a fixed rule, so none are stored. The npz holds what the original
computes, and the prompts it was given.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from volsam.errors import BadInput
from volsam.recipes.families.family import Described

Array = NDArray[Any]


@dataclass(frozen=True)
class Fixture(Described):
    """What a pair of files says; `facts` are the sizes in its configuration."""

    seed: int = 0
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """Every weight of the original, by the rule."""
        return {name: torch.from_numpy(weight(name, shape, self.seed)) for name, shape in self.shapes.items()}

    def given(self, name: str) -> Tensor:
        """A recorded prompt, float32."""
        if name not in self.arrays:
            raise BadInput(f'{Path(self.where).with_suffix(".npz")}: a recorded scene needs "{name}", which is missing')
        return torch.from_numpy(self.arrays[name]).float()

    def input(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An input of the original, such as "image", by the rule."""
        return torch.from_numpy(tensor_input(name, shape, self.seed))


def read_fixture(path: Path) -> Fixture:
    """Both files of a fixture, given its JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shapes = {str(name): tuple(map(int, shape)) for name, shape in content["state_dict"].items()}
        config, seed = dict(content["config"]), int(content["seed"])
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give the JSON file of a fixture") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: not a fixture ({type(error).__name__}: {error}); expected JSON with config, state_dict and seed"
        ) from None
    arrays = path.with_suffix(".npz")
    try:
        with arrays.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return Fixture(str(path), shapes, config, seed, {name: stored[name] for name in stored})
    except FileNotFoundError:
        raise BadInput(f"{arrays}: missing; the recorded arrays belong beside {path.name}") from None
    except (OSError, ValueError, AttributeError, TypeError, EOFError, BadZipFile) as error:
        raise BadInput(f"{arrays}: not an archive of arrays ({error}); record the fixture again") from None


# --- the rule ----------------------------------------------------------------------------------------------


def weight(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """The float32 value of the weight `name` of the original."""
    values = _normal(name, shape, seed)
    if name.endswith("gaussian_matrix"):
        return values
    if name.endswith("weight") and len(shape) == 1:  # the scale of a norm
        return np.asarray(1 + 0.1 * values, dtype=np.float32)
    if len(shape) < 2:
        return np.asarray(0.1 * values, dtype=np.float32)
    return np.asarray(values / np.float64(math.sqrt(max(1, math.prod(shape[1:])))), dtype=np.float32)


def tensor_input(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """The float32 value of the input `name`: "image", "mask"."""
    return _normal(f"input:{name}", shape, seed)


def _normal(text: str, shape: tuple[int, ...], seed: int) -> Array:
    random = np.random.RandomState((zlib.crc32(text.encode()) + seed) % 2**32)  # the seed alone makes the numbers
    return np.asarray(random.standard_normal(shape), dtype=np.float32)
