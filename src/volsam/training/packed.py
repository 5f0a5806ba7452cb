"""A run in one file: all that its model needs on another machine, and no name of a case.

The file is in the safetensors format, which holds no commands. `learnt.NAME` are the weights of the run, `began.NAME`
those that it began with where they do not ship with volsam; the header has the record of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from volsam.errors import BadFile, BadInput
from volsam.training.run import Record, write_tensors

SUFFIX = ".safetensors"
KEY = "volsam.run"
LEARNT, BEGAN = "learnt.", "began."


@dataclass(frozen=True, eq=False)
class Packed:
    """What a packed run holds; `began` is None where the run began with a model that ships, or with nothing."""

    record: Record
    learnt: Mapping[str, Tensor]
    began: Mapping[str, Tensor] | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All weights under the names that they have in the file."""
        began = self.began or {}
        named = ((LEARNT, self.learnt), (BEGAN, began))
        return {prefix + name: value for prefix, part in named for name, value in part.items()}

    @property
    def header(self) -> dict[str, str]:
        """What goes into the header of the file."""
        return {"format": "pt", KEY: self.record.model_dump_json()}


def is_packed(path: Path) -> bool:
    """Whether a file is a packed run; reads its header alone."""
    return path.suffix == SUFFIX and path.is_file() and KEY in _header(path)


def record_in(path: Path) -> Record:
    """What is known of the run."""
    try:
        return Record.model_validate_json(_header(path)[KEY])
    except ValidationError:
        raise BadFile(f"{path} holds a run of another version of volsam, or is damaged") from None


def unpack(path: Path) -> Packed:
    """The run in a file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    record = record_in(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadFile(f"{path} cannot be read ({error}): copy it again") from None
    learnt, began = (
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in (LEARNT, BEGAN)
    )
    return Packed(record, learnt, began or None)


def write(run: Packed, path: Path) -> None:
    """Write the file, whole or not at all."""
    if path.suffix != SUFFIX or path.is_dir():
        raise BadInput(f"-o {path}: a run goes into a file that ends in {SUFFIX}")
    if not path.parent.is_dir():
        raise BadInput(f"-o {path}: the folder {path.parent} does not exist: make it first")
    write_tensors(path, {name: value.contiguous() for name, value in run.tensors.items()}, run.header)


def nameless(record: Record) -> Record:
    """A record whose cases have numbers in place of names, and whose weights to begin with have no folder.

    Names of cases are often those of patients. What tells their images from others stays, so that an evaluation still
    knows what was learnt from.
    """
    cases = (*record.training, *record.validation)
    numbered = {name: f"case {number}" for number, name in enumerate(cases, start=1)}
    return record.model_copy(
        update={
            "training": tuple(numbered[name] for name in record.training),
            "validation": tuple(numbered[name] for name in record.validation),
            "images": {numbered[name]: digest for name, digest in record.images.items()},
            "init": record.init.model_copy(update={"name": Path(record.init.name).name}),
            "teacher": record.teacher.model_copy(update={"name": Path(record.teacher.name).name}),
            "config": {**record.config, **({"teacher": Path(record.teacher.name).name} if record.teacher.name else {})},
        }
    )


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
