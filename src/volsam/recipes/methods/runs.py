"""From a dataset to a trained model: prepare the cases, build the network, train."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from volsam.data.dataset import Case, Dataset, read_image, read_label
from volsam.data.digests import fingerprint, image_digest
from volsam.data.preparation import Prepared, prepare
from volsam.data.splits import Fold, write_splits
from volsam.errors import BadInput
from volsam.models.encoder import Encoder
from volsam.recipes.methods.cases import choose_cases, some_of
from volsam.recipes.methods.method import Method, cache_folder, load_methods
from volsam.recipes.methods.resuming import require_same
from volsam.recipes.methods.validation import mean_score
from volsam.recipes.trained import initial
from volsam.training import processes
from volsam.training.config import TrainConfig, configured
from volsam.training.items import Items
from volsam.training.loop import Progress, State, fit, parts_of
from volsam.training.run import OWN_SPLITS, Init, Plan, Record, RunFolder, counts

if TYPE_CHECKING:
    from volsam.recipes.methods.method import Trained

__all__ = ["Job", "Prospect", "choose_cases", "mean_score", "prospect", "start", "train"]


@dataclass(frozen=True)
class Prospect:
    """What a run will take, found out by one step of it."""

    trained: int
    frozen: int
    seconds: float
    """Of all steps together."""
    memory: float | None
    """GB of the process at its peak, of the device where it has memory of its own; None where the system is silent."""


@dataclass(frozen=True)
class Job:
    """Everything a run needs, ready to begin or to go on."""

    method: Method
    config: TrainConfig
    plan: Plan
    network: nn.Module
    task: nn.Module
    items: Items
    validation: tuple[Case, ...]
    folder: RunFolder
    device: str


def start(
    name: str,
    dataset: Dataset,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    fold: Fold,
    init: str | None = None,
    device: str = "cpu",
    progress: Callable[[Sequence[Any], str], Iterable[Any]] = lambda items, _: items,
) -> Job:
    """A run made ready: cases prepared, network built, its folder begun. The same call goes on with a stopped run."""
    method = load_methods()[name]
    config = method.settled(configured(method.config, method.complete(settings, init)), len(fold.train))
    known = {case.name: case if method.labelled else replace(case, label=None) for case in dataset.cases}
    missing = [case for case in (*fold.train, *fold.val) if case not in known]
    if missing:
        raise BadInput(f"{dataset.folder} has no case {missing[0]!r}, which its splits name")
    training = [known[case] for case in fold.train]
    chosen_by = fold.val if method.labelled else ()
    validation = [known[case] for case in some_of(chosen_by, config.validation_cases, config.seed)]
    weights, began = initial(method, init)
    taught_by = method.teacher(config)
    teacher = initial(method, taught_by)[1] if taught_by else Init(name="")
    plan = method.plan(dataset, training, config)
    if method.labelled:
        _require_labels([*training, *validation], plan, dataset)
    torch.manual_seed(config.seed)
    network = method.network(plan, config, weights)
    method.begin(network, config)
    if config.recompute:
        _recompute(network, name)
    run = RunFolder(folder, method.keeps)
    images = {case.name: image_digest(case) for case in (*training, *validation)}
    trained, frozen = counts(network)
    record = Record(
        method=name,
        config=config.model_dump(mode="json"),
        plan=plan,
        init=began,
        teacher=teacher,
        dataset=dataset.name,
        training=fold.train,
        validation=tuple(case.name for case in validation),
        fingerprint=fingerprint([*training, *validation], images),
        images=images,
        licence="; ".join(
            [
                *([f"as of its teacher: {teacher.licence}"] if teacher.name else []),
                *([began.licence] if began.name or not teacher.name else []),
                *([f"data: {dataset.licence}"] if dataset.licence else []),
            ]
        ),
        trained=trained,
        frozen=frozen,
        versions={"volsam": version("volsam"), "torch": torch.__version__, "python": platform.python_version()},
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    require_same(run, record)
    prepared = prepare(
        training,
        plan.preparation,
        plan.values,
        cache_folder(),
        lambda cases: progress(cases, "preparing"),
        declared=dataset.labels.values(),
        ignored=plan.ignored,
        channels=plan.channels,
    )
    if method.labelled:
        _require_objects(prepared, plan, dataset)
    for case in progress(validation, "reading validation cases") if not run.resumes else ():
        read_label(case, read_image(case, plan.channels).grid)  # a bad one is found now, and not after an hour
    network.to(device)
    items = method.items(prepared, plan, config, network, device, lambda numbers: progress(numbers, "encoding slices"))
    task = method.task(network, plan, config)
    if not run.resumes:
        run.start(record)
        write_splits([fold], folder / OWN_SPLITS)
    return Job(method, config, plan, network, task, items, tuple(validation), run, device)


def prospect(job: Job) -> Prospect:
    """Make one step without learning from it, and estimate the rest."""
    from torch.utils.data import default_collate

    parts = parts_of(job.task, job.config)
    own = max(1, job.config.batch_size // parts // processes.count())
    batch = {name: value.to(job.device) for name, value in default_collate([job.items[i] for i in range(own)]).items()}
    cuda = job.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(job.device)
    job.task.train()
    buffers = {name: value.clone() for name, value in job.task.named_buffers()}
    seconds = []
    for _ in range(2):  # the first one is slower than those that follow
        began = perf_counter()
        with torch.autocast(job.device.split(":")[0], torch.bfloat16, enabled=job.config.precision == "bf16-mixed"):
            lost = job.task(batch)["loss"]
        lost.backward()
        if cuda:
            torch.cuda.synchronize(job.device)
        seconds.append(perf_counter() - began)
    job.task.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in job.task.named_buffers():
            value.copy_(buffers[name])
    trained, frozen = counts(job.network)
    # AdamW keeps two numbers of four bytes for every weight that learns.
    moments = 8 * trained / 1e9
    memory = torch.cuda.max_memory_allocated(job.device) / 1e9 if cuda else _peak()
    steps = seconds[-1] * parts * job.config.max_steps
    seconds_in_all = 60 * job.config.minutes if job.config.minutes else steps
    return Prospect(trained, frozen, seconds_in_all, None if memory is None else memory + moments)


def train(
    job: Job,
    tell: Callable[[Progress], None] | None = None,
    board: Callable[[Mapping[str, float], int], None] | None = None,
) -> Record:
    """Train, or go on; returns what is known of the run in the end."""
    validate = None
    if job.validation:
        cases = job.validation
        job_model = _as_model(job)
        validate = lambda _: mean_score(job_model, cases, job.plan)  # noqa: E731
    state: State = fit(
        job.task,
        job.items,
        job.config,
        job.folder,
        groups=job.method.groups(job.network, job.config),
        validate=validate,
        tell=tell,
        board=board,
        device=job.device,
    )
    found = job.folder.record().model_copy(
        update={"best": state.best, "steps": state.step, "minutes": round(state.seconds / 60, 3), "done": True}
    )
    if processes.is_first():
        job.folder.write(found)
    return found


def _as_model(job: Job) -> Trained:
    found: Trained = job.method.model(job.network, job.plan, job.config, job.folder.path.name, job.device)
    return found


def _recompute(network: nn.Module, name: str) -> None:
    encoders = [module for module in network.modules() if isinstance(module, Encoder)]
    if not encoders:
        raise BadInput(f"{name} has no transformer blocks that could be computed again: leave recompute out")
    for encoder in encoders:
        encoder.recompute = True


def _require_labels(cases: Sequence[Case], plan: Plan, dataset: Dataset) -> None:
    if len(plan.labels) < 2:
        raise BadInput(
            f"{dataset.folder / 'dataset.json'} names no label but the background: there is nothing to learn"
        )
    if unlabelled := [case.name for case in cases if case.label is None]:
        raise BadInput(f"{dataset.folder}: case {unlabelled[0]} has no label to learn from")


def _require_objects(cases: Sequence[Prepared], plan: Plan, dataset: Dataset) -> None:
    if not any(len(places) for case in cases for places in case.places):
        spacing = plan.preparation.spacing
        seen = "" if spacing is None else f" when seen in voxels of {' x '.join(f'{size:.3g}' for size in spacing)} mm"
        raise BadInput(
            f"no training case of {dataset.name} holds a voxel of {', '.join(plan.labels[1:])}{seen}: "
            f"see `volsam data check {dataset.folder}`, or set finer voxels, or another object"
        )


def _peak() -> float | None:
    """Highest memory of this process so far, GB."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e9 if sys.platform == "darwin" else 1e6)
