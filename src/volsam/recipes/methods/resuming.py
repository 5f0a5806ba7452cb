"""Whether a stopped run may go on: with the same method, settings, cases, labels and weights to begin with."""

from __future__ import annotations

from typing import Any

from volsam.errors import BadInput
from volsam.training.run import OWN_SPLITS, RUN, Plan, Record, RunFolder


def require_same(run: RunFolder, record: Record) -> None:
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
