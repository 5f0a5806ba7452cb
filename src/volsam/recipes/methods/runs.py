"""From a dataset to a trained model: choose cases, prepare them, train, validate."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from volsam.data.dataset import FOLDERS, Case, Dataset, read_image, read_label
from volsam.data.digests import fingerprint, image_digest
from volsam.data.preparation import Prepared, prepare
from volsam.data.splits import NAME as SPLITS
from volsam.data.splits import Fold, make_folds, read_splits, write_splits
from volsam.errors import BadInput
from volsam.evaluation.metrics import dice
from volsam.models.encoder import Encoder
from volsam.recipes.methods.method import Method, cache_folder, load_methods
from volsam.recipes.trained import initial, is_automatic
from volsam.training import processes
from volsam.training.config import TrainConfig, configured
from volsam.training.items import Items
from volsam.training.loop import Progress, State, fit, parts_of
from volsam.training.run import RUN, Init, Plan, Record, RunFolder, counts

if TYPE_CHECKING:
    from volsam.inference.session import Model
    from volsam.recipes.methods.method import Trained

# Of a dataset without a splits file, one case in so many is left for the test, and one for validation.
FOLDS = 5
# A run's own file of cases, when the dataset has none.
OWN_SPLITS = "splits.json"


# --- which cases -----------------------------------------------------------------------------------------------------


def choose_cases(
    dataset: Dataset,
    fold: int | None,
    limit: int | None,
    seed: int,
    patient: Callable[[str], str] = lambda name: name,
    labelled: bool = True,
) -> Fold:
    """The cases to train on, to choose by, and to leave for the test.

    Args:
        dataset: its splits_final.json decides where there is one. Else all cases are dealt out in folds, patients
            whole; what is tested in a fold is neither learnt from nor chosen by, unless the dataset has a test part
            of its own.
        fold: which one, from 0; None: learn from all, and leave none to choose by.
        limit: learn from so many training cases only, drawn by `seed`.
        seed: of the draw; the same seed gives growing sets that hold one another.
        patient: tells from a case's name whose it is.
        labelled: whether labels are learnt from; if not, the cases without one, which no fold holds, are learnt from
            as well.
    """
    names = [case.name for case in dataset.cases if case.label is not None]
    if not names and labelled:
        raise BadInput(f"{dataset.folder} has no labelled case: labels lie in {FOLDERS['training'][1]}")
    found = Fold(tuple(sorted(names))) if fold is None or not names else _dealt(dataset, names, fold, patient)
    train = list(found.train)
    if not labelled:
        dealt = {*found.train, *found.val, *found.test}
        train += [case.name for case in dataset.cases if case.label is None and case.name not in dealt]
    if not train:
        raise BadInput(f"fold {fold} of {dataset.folder} has no case to train on")
    if limit is not None:
        if limit > len(train):
            raise BadInput(f"--train-cases {limit}: fold {fold} of {dataset.name} has {len(train)} training cases")
        np.random.default_rng(seed).shuffle(train)
        train = sorted(train[:limit])
    return Fold(tuple(train), found.val, found.test)


def _dealt(dataset: Dataset, names: Sequence[str], fold: int, patient: Callable[[str], str]) -> Fold:
    path = dataset.folder / SPLITS
    if path.is_file():
        folds = read_splits(path)
        if not 0 <= fold < len(folds):
            raise BadInput(f"--fold {fold}: {path} has the folds 0 to {len(folds) - 1}")
        return folds[fold]
    patients = len({patient(name) for name in names})
    if patients < 3:  # too few to leave any out
        if fold:
            raise BadInput(f"--fold {fold}: {dataset.name} has {patients} patients or cases, too few to be dealt out")
        return Fold(tuple(sorted(names)))
    folds = make_folds(names, min(FOLDS, patients), 0, patient)
    if not 0 <= fold < len(folds):
        raise BadInput(f"--fold {fold}: {dataset.name} is dealt out in {len(folds)} folds, 0 to {len(folds) - 1}")
    if (dataset.folder / FOLDERS["test"][1]).is_dir():
        return folds[fold]
    held = set(folds[fold].val)
    val = folds[(fold + 1) % len(folds)].val
    return Fold(tuple(sorted(set(names) - held - set(val))), val, tuple(sorted(held)))


# --- training --------------------------------------------------------------------------------------------------------


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
    validation = [known[case] for case in _some(chosen_by, config.validation_cases, config.seed)]
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
        versions={"volsam": _volsam(), "torch": torch.__version__, "python": platform.python_version()},
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    _require_same(run, record)
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


def _some(names: Sequence[str], most: int, seed: int) -> tuple[str, ...]:
    """So many of the names at the most, in their order."""
    if len(names) <= most:
        return tuple(names)
    chosen = np.random.default_rng(seed).choice(len(names), most, replace=False)
    return tuple(names[place] for place in sorted(chosen))


def prospect(job: Job) -> Prospect:
    """Make one step without learning from it, and foretell the rest."""
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


def _as_model(job: Job) -> Trained:
    found: Trained = job.method.model(job.network, job.plan, job.config, job.folder.path.name, job.device)
    return found


def _recompute(network: nn.Module, name: str) -> None:
    encoders = [module for module in network.modules() if isinstance(module, Encoder)]
    if not encoders:
        raise BadInput(f"{name} has no transformer blocks that could be computed again: leave recompute out")
    for encoder in encoders:
        encoder.recompute = True


def _require_same(run: RunFolder, record: Record) -> None:
    """A stopped run goes on as what it was.

    A run that was refused before its first steps, for its settings or its data, has learnt nothing and may be another.
    """
    run.require_free()
    if not run.begun or {path.name for path in run.path.iterdir()} <= {RUN, OWN_SPLITS}:
        return
    before = run.record()
    settings = {f"another setting {key}": (before.config.get(key), value) for key, value in record.config.items()}
    for what, (old, new) in {
        "another method": (before.method, record.method),
        **settings,
        "another choice of cases": (", ".join(before.training), ", ".join(record.training)),
        "other images or labels of these cases": (before.fingerprint, record.fingerprint),
        **_plans(before.plan, record.plan),
        "other weights to begin with": (before.init.name or "none", record.init.name or "none")
        if before.init.sha256 != record.init.sha256
        else ("", ""),
        "other weights of its teacher": (before.teacher.sha256[:8], record.teacher.sha256[:8]),
    }.items():
        if old != new:
            raise BadInput(f"{run.path} holds a run with {what} ({old}, now {new}): give another folder with -o")


# What has changed where two plans differ, but neither a setting nor the files of a case, which are told of before.
OF_PLAN = {
    "labels": "other labels in dataset.json",
    "values": "other values of the labels in dataset.json",
    "channels": "another number of channels in dataset.json",
    "patch": "another size of patches",
    "flip": "another choice of mirror images",
    "ignored": "another label to ignore in dataset.json",
}


def _plans(before: Plan, now: Plan) -> dict[str, tuple[str, str]]:
    """Every field of a plan in words, and what it was and is."""
    told: list[dict[str, str]] = []
    for plan in (before, now):
        fields = plan.model_dump(mode="json")
        seen = fields.pop("preparation")
        words = {OF_PLAN.get(name, f"another {name} of its plan"): value for name, value in fields.items()}
        words |= {f"another {name} of volumes": value for name, value in seen.items()}
        told.append({what: _listed(value) for what, value in words.items()})
    return {what: (told[0][what], told[1][what]) for what in told[0]}


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


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


def _volsam() -> str:
    return version("volsam")


def _peak() -> float | None:
    """Highest memory of this process so far, GB."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e9 if sys.platform == "darwin" else 1e6)
