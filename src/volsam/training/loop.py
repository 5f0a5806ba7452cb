"""The training loop, in the open: next batch, forward, backward, step, log, validate, save.

It runs on Lightning Fabric, which knows devices, precision and processes. Whatever is particular to a method is in the
task (a network and its losses), the items, and the groups of weights that are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic, process_time
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from volsam.data.files import replacing
from volsam.errors import BadFile, BadInput
from volsam.training import processes
from volsam.training.config import TrainConfig
from volsam.training.items import Items, Numbers, batches
from volsam.training.run import BEST, LAST, RESUME, RunFolder

# A line of the log for so many steps, averaged over them.
LOG_EVERY = 10
# Between the seeds of two processes in the same step.
OF_A_PROCESS = 1_000_000_007
# How long processes wait for the first one while it validates.
PATIENCE = timedelta(hours=12)


@runtime_checkable
class Staged(Protocol):
    """A task that changes on the way."""

    def at(self, part: float) -> None:
        """How far the schedule is, 0 to 1."""


@runtime_checkable
class Whole(Protocol):
    """A task whose loss is not the mean over the items of a batch, so that it takes batches whole."""

    parts: int
    """In how many it passes a batch through the network by itself."""


@dataclass
class State:
    """How far a run is."""

    step: int = 0
    seconds: float = 0.0
    validated: int = 0
    best: float | None = None
    sums: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What a caller is told after each step."""

    step: int
    part: float
    """Of the schedule, 0 to 1."""
    loss: float
    seconds: float
    """Of all steps so far."""

    @property
    def left(self) -> float:
        """Seconds, at the pace so far."""
        return self.seconds * max(0.0, 1 - self.part) / max(self.part, 1e-9)


def fit(
    task: nn.Module,
    items: Items,
    config: TrainConfig,
    folder: RunFolder,
    *,
    groups: Sequence[tuple[list[nn.Parameter], float]],
    validate: Callable[[nn.Module], float] | None = None,
    tell: Callable[[Progress], None] | None = None,
    board: Callable[[Mapping[str, float], int], None] | None = None,
    device: str = "cpu",
) -> State:
    """Train `task.network`; what it learns is in `folder` when this returns.

    Args:
        task: a batch to a dict of losses; `loss` is minimised, and is of the whole batch if the task is `Whole`.
        items: what there is to see, by number.
        config: the schedule.
        folder: where weights and log go, and from where a stopped run goes on.
        groups: weights that learn, each with the part of the rate that it gets.
        validate: the network, in evaluation mode, to a score of which more is better; called in the first process.
        tell: is told after every step.
        board: takes named numbers and the step, for a logger.
        device: where to train: cpu, cuda, cuda:1, mps; of several processes each has its own.

    Two processes, started by torchrun, share each batch; gradients are averaged over them.
    """
    parts = parts_of(task, config)
    fabric = _fabric(config, device)
    if config.batch_size % (fabric.world_size * config.accumulate):
        raise BadInput(
            f"a batch of {config.batch_size} cannot be shared by {fabric.world_size} processes in {config.accumulate} "
            "parts: choose a batch_size that both divide"
        )
    network: nn.Module = task.network  # type: ignore[assignment]
    # One kernel for all weights: a third of the time of the loop over them.
    optimiser = torch.optim.AdamW(_decayed(groups, config), lr=config.learning_rate, fused=True)
    average = Average(network, config.average) if config.average else None
    model, optimiser = fabric.setup(task, optimiser)
    state = State()
    _resume(folder, network, optimiser, average, state)

    numbers = Numbers(config.batch_size, state.step, fabric.global_rank, fabric.world_size)
    feed = batches(items, numbers, parts, config.workers)
    task.train()
    clock = monotonic if config.clock == "wall" else process_time
    began = clock() - state.seconds
    while (part := _part(state, config)) < 1:
        # What is drawn inside networks, such as dropout, follows from the step as well; each process draws its own.
        torch.manual_seed(config.seed * 1_000_003 + state.step + OF_A_PROCESS * fabric.global_rank)
        rate = config.rate(part, state.step)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rate * group["share"]

        if isinstance(task, Staged):
            task.at(part)
        told: dict[str, float] = {}
        for turn in range(parts):
            batch = fabric.to_device(next(feed))
            with fabric.no_backward_sync(model, enabled=turn < parts - 1):
                losses = model(batch)
                fabric.backward(losses["loss"] / parts)
            for name, value in losses.items():
                told[name] = told.get(name, 0.0) + float(value.detach()) / parts
        if not torch.isfinite(torch.tensor(told["loss"])):
            raise BadInput(
                f"the loss became NaN or infinite at step {state.step}: use a lower learning_rate or full precision"
            )
        if config.clip_norm is not None:
            for parameters, _ in groups:
                nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if average is not None:
            average.update(network, state.step)

        state.step += 1
        state.seconds = _agreed(fabric, config, clock() - began)
        _log(fabric, folder, board, state, told, rate * config.learning_rate)
        if tell is not None:
            tell(Progress(state.step, _part(state, config), told["loss"], state.seconds))
        over = _part(state, config) >= 1
        due = config.validate_every <= 1 and over
        if validate is not None and (due or _part(state, config) >= (state.validated + 1) * config.validate_every):
            paused = clock()
            _validate(fabric, task, network, average, validate, folder, board, state)
            began += clock() - paused
        if fabric.is_global_zero and (over or state.step % config.save_every == 0):
            _save(folder, network, optimiser, average, state)
    fabric.barrier()
    return state


def parts_of(task: nn.Module, config: TrainConfig) -> int:
    """In how many parts a task is given the batch of a step."""
    return 1 if isinstance(task, Whole) else config.accumulate


def _fabric(config: TrainConfig, device: str) -> Any:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    count = processes.count()
    kind, _, index = device.partition(":")
    backend = "nccl" if kind == "cuda" else "gloo"
    together = DDPStrategy(process_group_backend=backend, timeout=PATIENCE, find_unused_parameters=True)
    here = processes.count_here()
    fabric = Fabric(
        accelerator=kind,
        devices=[int(index)] if kind == "cuda" and index and count == 1 else here,
        num_nodes=count // here,
        strategy=together if count > 1 else "auto",
        precision=config.precision,
    )
    fabric.launch()
    return fabric


def _agreed(fabric: Any, config: TrainConfig, seconds: float) -> float:
    """The time that the schedule goes by, the first process's: all must end and validate after the same step."""
    if config.minutes is None or fabric.world_size == 1:
        return seconds
    return float(fabric.broadcast(seconds))


def _decayed(groups: Sequence[tuple[list[nn.Parameter], float]], config: TrainConfig) -> list[dict[str, Any]]:
    """Each group twice: weights of two or more axes decay, biases and norms do not."""
    found = []
    for parameters, share in groups:
        for decay in (True, False):
            some = [parameter for parameter in parameters if parameter.requires_grad and (parameter.ndim > 1) == decay]
            if some:
                found.append({"params": some, "share": share, "weight_decay": config.weight_decay if decay else 0.0})
    if not found:
        raise BadInput("nothing of this network learns: choose another method, or other settings")
    return found


def _part(state: State, config: TrainConfig) -> float:
    if config.minutes is not None:
        return state.seconds / (60 * config.minutes)
    return state.step / config.max_steps


class Average:
    """A running average of the weights that learn."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {
            name: parameter.detach().clone()
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in a step; early ones count more, since they are few."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in network.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange the average and the network's own weights."""
        for name, parameter in network.named_parameters():
            if name in self.weights:
                own = parameter.detach().clone()
                parameter.copy_(self.weights[name])
                self.weights[name].copy_(own)


def _log(fabric: Any, folder: RunFolder, board: Any, state: State, told: Mapping[str, float], rate: float) -> None:
    for name, value in told.items():
        if value == value:  # Dice of a batch without any object is none
            state.sums[name] = state.sums.get(name, 0.0) + value
            state.sums[f"{name} times"] = state.sums.get(f"{name} times", 0.0) + 1
    if state.step % LOG_EVERY:
        return
    # What one process has no value of, another may have: all ask for the sums of the same names.
    sums = {name: torch.tensor([state.sums.get(key, 0.0) for key in (name, f"{name} times")]) for name in told}
    state.sums = {}
    if fabric.world_size > 1:
        sums = {name: fabric.all_reduce(pair) for name, pair in sums.items()}
    means = {name: float(total / times) for name, (total, times) in sums.items() if times}
    if fabric.is_global_zero:
        folder.log({"step": state.step, "minutes": round(state.seconds / 60, 4), "rate": rate, **means})
        if board is not None:
            board({**means, "rate": rate}, state.step)


def _validate(
    fabric: Any,
    task: nn.Module,
    network: nn.Module,
    average: Average | None,
    validate: Callable[[nn.Module], float],
    folder: RunFolder,
    board: Any,
    state: State,
) -> None:
    """Score the network, and keep the best weights; the first process does it, the others wait."""
    state.validated += 1
    if fabric.is_global_zero:
        task.eval()
        if average is not None:
            average.swap(network)
        score = validate(network)
        if state.best is None or score > state.best:
            state.best = score
            folder.save(BEST, network)
        if average is not None:
            average.swap(network)
        folder.log({"step": state.step, "minutes": round(state.seconds / 60, 4), "validation": score})
        if board is not None:
            board({"validation": score}, state.step)
    fabric.barrier()
    task.train()


# --- going on --------------------------------------------------------------------------------------------------------


def _save(folder: RunFolder, network: nn.Module, optimiser: Any, average: Average | None, state: State) -> None:
    learning = {name: value for name, value in network.named_parameters() if value.requires_grad}
    content = {
        "weights": {name: value.detach().cpu() for name, value in learning.items()},
        "buffers": {name: value.detach().cpu() for name, value in network.named_buffers()},
        "optimiser": optimiser.state_dict(),
        "average": None if average is None else average.weights,
        "state": vars(state),
    }
    with replacing(folder.path / RESUME) as unfinished, unfinished.open("wb") as file:
        torch.save(content, file)
    folder.save(LAST, network, None if average is None else average.weights)


def _resume(folder: RunFolder, network: nn.Module, optimiser: Any, average: Average | None, state: State) -> None:
    path = folder.path / RESUME
    if not path.is_file():
        folder.truncate_log(0)
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BadFile(f"{path} cannot be read ({type(error).__name__}): delete it to begin anew") from None
    with torch.no_grad():
        own = dict(network.named_parameters())
        for name, value in content["weights"].items():
            own[name].copy_(value)
        buffers = dict(network.named_buffers())
        for name, value in content["buffers"].items():
            buffers[name].copy_(value)
        if average is not None and content["average"] is not None:
            for name, value in content["average"].items():
                average.weights[name].copy_(value)
    optimiser.load_state_dict(content["optimiser"])
    for name, value in content["state"].items():
        setattr(state, name, value)
    folder.truncate_log(state.step)
