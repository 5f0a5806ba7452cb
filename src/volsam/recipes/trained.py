"""Weights that runs begin with, and models that they end with: from a name, a file or the folder of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from torch import nn

from volsam.errors import BadFile
from volsam.recipes.methods.method import Method, Weights, load_methods
from volsam.training.run import BEST, LAST, Init, Record, RunFolder

if TYPE_CHECKING:
    from volsam.inference.automatic import AutomaticModel
    from volsam.recipes.methods.method import Trained


def initial(method: Method, named: str | None) -> tuple[Weights | None, Init]:
    """The weights that a run begins with: of a name, or of a file; None where a method begins from nothing."""
    wanted = method.init if named is None else named
    if wanted in ("", "none"):
        return None, Init(name="", licence="trained on the dataset alone")
    from safetensors.torch import load_file

    from volsam.recipes import store
    from volsam.recipes.checkpoint import read_checkpoint
    from volsam.recipes.recipe import shipped

    recipes = shipped()
    if wanted in recipes and (weights := recipes[wanted].weights) is not None:
        tensors = {name: tensor.float() for name, tensor in load_file(weights).items()}
        return tensors, Init(name=wanted, sha256=store.checksum(weights), licence=recipes[wanted].licence)
    if store.is_stored(wanted):
        model = store.stored(wanted)
        return load_file(model.weights), Init(name=wanted, sha256=model.card.sha256, licence=model.card.licence)
    path = Path(wanted)
    if is_run(path):
        run = RunFolder(path)
        file = path / (BEST if (path / BEST).is_file() else LAST)
        name = str(path.resolve())
        return load_file(file), Init(name=name, sha256=store.checksum(file), licence=run.record().licence)
    if not path.is_file():
        raise store.unknown(wanted) if not path.suffix else BadFile(f"--init {wanted}: there is no such file")
    found = read_checkpoint(path)
    return found.tensors, Init(name=str(path.resolve()), sha256=found.sha256, licence="as of the weights it began with")


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a training run."""
    return RunFolder(Path(path)).begun


def is_automatic(model: Trained) -> TypeGuard[AutomaticModel]:
    """Whether a model labels volumes by itself."""
    return hasattr(model, "segment")


def load_run(path: str | os.PathLike[str], device: str) -> Trained:
    """The model of a run, by its best weights."""
    method, network, record = load_network(path)
    config = method.config.model_validate(dict(record.config))
    found: Trained = method.model(network, record.plan, config, Path(path).resolve().name, device)
    return found


def _where(named: str, run: Path) -> str:
    """The weights that a run began with: where they were, or, if both were moved, beside the run."""
    place = Path(named)
    if not place.is_absolute() or place.exists():
        return named
    beside = run.resolve().parent / place.name
    if not beside.exists():
        raise BadFile(f"{run} began with {named}, which is gone: bring it back, or put it beside {run}")
    return str(beside)


def load_network(path: str | os.PathLike[str]) -> tuple[Method, nn.Module, Record]:
    """The network of a run with its best weights, how it was trained, and what is known of it."""
    record = RunFolder(Path(path)).record()
    method = load_methods()[record.method]
    run = RunFolder(Path(path), method.keeps)
    config = method.recalled(method.config.model_validate(dict(record.config)))
    weights, began = initial(method, _where(record.init.name, Path(path)))
    if began.sha256 != record.init.sha256:
        raise BadFile(f"{path} began with {record.init.name}, and these weights have changed since: bring them back")
    network = method.network(record.plan, config, weights)
    run.load(network)
    return method, network.eval(), record
