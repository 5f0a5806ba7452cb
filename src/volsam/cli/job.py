"""One volume from prompts to files: what `volsam segment` and `volsam demo` do."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volsam.cli.console import Steps, say
from volsam.cli.prompts import gather
from volsam.data.files import replacing
from volsam.data.io import WRITABLE, read_grid, read_volume, volume_name, write_volume
from volsam.data.memory import require_room
from volsam.errors import BadInput
from volsam.geometry import Grid, resample
from volsam.prompts import PromptSet
from volsam.volume import Volume

if TYPE_CHECKING:
    from volsam.inference.session import Model, Session
    from volsam.inference.uncertainty import Uncertainty


@dataclass(frozen=True)
class Job:
    """What is asked; the fields are the options of `volsam segment`."""

    image: Path
    points: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    prompts: Path | None = None
    space: str = "voxel"
    model: str | None = None
    device: str = "auto"
    engine: str | None = None
    output: Path | None = None
    uncertainty: Path | None = None
    preview: Path | None = None
    frame: int | None = None
    channel: int | None = None
    plane: str = "auto"

    @property
    def mask_file(self) -> Path:
        """Where the mask goes: as asked, or beside the image (for a series, beside its folder)."""
        if self.output is not None:
            return self.output
        folder = Path(os.path.abspath(self.image)) if self.image.is_dir() else self.image  # noqa: PTH100  keeps links
        return folder.parent / f"{volume_name(self.image)}_mask.nii.gz"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a job."""

    job: Job
    mask: Volume
    voxels: int
    quality: float | None
    doubt: Uncertainty | None
    replaced: frozenset[Path]

    @property
    def millilitres(self) -> float:
        """Volume of the object."""
        return self.voxels * self.mask.grid.voxel_volume / 1000

    def lines(self) -> list[str]:
        """For the reader."""
        lines = [
            f"mask         {self._told(self.job.mask_file)}",
            f"object       {self.voxels:,} voxels, {self.millilitres:,.2f} ml",
        ]
        if self.quality is not None:
            lines.append(f"quality      {self.quality:.2f} expected Dice (1 is perfect)")
        if self.doubt is not None:
            lines.append(f"probability  {self._told(self.job.uncertainty)}")
            lines.append(f"spread       {_in_words(self.doubt, self.mask.grid)}")
        if self.job.preview is not None:
            lines.append(f"picture      {self._told(self.job.preview)}")
        return lines

    def _told(self, file: Path | None) -> str:
        return f"{file}, replaced" if file in self.replaced else str(file)


def carry_out(job: Job, steps: Steps, model: Model | None = None) -> Outcome:
    """Do it and write the files; whatever can be refused is refused before it costs time.

    model: already loaded, for many jobs with one; otherwise the job's is loaded.
    """
    name = volume_name(job.image)
    _require_places(job)
    with steps("header"):
        grid = read_grid(job.image)
        prompts = gather(job.points, job.boxes, job.prompts, job.space, grid, name)
        require_room(grid, name)
    # Unpacking a file and importing torch take a second or more each, and neither needs the other.
    with steps("loading"), ThreadPoolExecutor(1) as aside:
        loading = aside.submit(lambda: _load_model(job) if model is None else model)
        volume = _read(job)
        ready = loading.result()
    with steps("prompts"):
        session = _answered(ready, volume, prompts, job.plane)
    doubt = None
    if job.uncertainty is not None:
        with steps("uncertainty"):
            doubt = session.uncertainty()
    outputs = (job.mask_file, job.uncertainty, job.preview)
    replaced = frozenset(file for file in outputs if file is not None and file.exists())
    with steps("files"):
        _write(job, session, doubt, prompts)
    voxels = int(np.count_nonzero(session.mask.data))
    return Outcome(job, session.mask, voxels, session.quality, doubt, replaced)


def _require_places(job: Job) -> None:
    """Refuse outputs that cannot be written, or that would replace an input or one another."""
    taken = {job.image: "IMAGE"} if job.prompts is None else {job.image: "IMAGE", job.prompts: "--prompts"}
    for option, path, endings in (
        ("-o", job.mask_file, WRITABLE),
        ("--uncertainty", job.uncertainty, WRITABLE),
        ("--preview", job.preview, (".png",)),
    ):
        if path is None:
            continue
        for other, meant in taken.items():
            if path.resolve() == other.resolve():
                raise BadInput(f"{option} {path} is also given as {meant}, which would be lost: give another name")
        if path.is_dir() or not path.name.lower().endswith(endings):
            raise BadInput(f"{option} {path}: give the name of a file that ends in {' or '.join(endings)}")
        if not path.parent.is_dir():
            raise BadInput(f"{option} {path}: the folder {path.parent} does not exist: make it first")
        if not os.access(path.parent, os.W_OK):
            raise BadInput(
                f"{option} {path}: files may not be made in {path.parent}: give another folder with {option}"
            )
        taken[path] = option


def _load_model(job: Job) -> Model:
    from volsam.recipes.recipe import load_model

    return load_model(job.model, device=job.device, engine=job.engine)


def _read(job: Job) -> Volume:
    """The volume, of its channels the one that is looked at."""
    volume = read_volume(job.image, frame=job.frame)
    channel = job.channel or 0
    if not 0 <= channel < volume.channels:
        held = f"{volume.channels} channels, 0..{volume.channels - 1}" if volume.channels > 1 else "one channel, 0"
        raise BadInput(f"channel {channel} was asked for, but {volume.name} holds {held}")
    if job.channel is None and volume.channels > 1:
        say(f"note: {volume.name} has {volume.channels} channels; channel 0 is looked at, see --channel")
    return volume.with_data(volume.data[channel : channel + 1])


def _answered(model: Model, volume: Volume, prompts: PromptSet, plane: str) -> Session:
    """A session in which the prompts were given one after the other, so that each answer builds on the last; all at
    once to a model whose answers do not build on one another.
    """
    from volsam.inference.session import Session

    session = Session(model, volume, plane=plane)
    if session.builds_on_answers:
        for prompt in prompts:
            session.add(prompt)
    else:
        session.add_all(prompts)
    return session


def _write(job: Job, session: Session, doubt: Uncertainty | None, prompts: PromptSet) -> None:
    write_volume(session.mask, job.mask_file)
    if job.uncertainty is not None and doubt is not None:
        write_volume(_probability(doubt, session.volume), job.uncertainty)
    if job.preview is not None:
        from volsam.inference.preview import draw

        with replacing(job.preview) as temporary:
            draw(session.volume, session.mask, prompts).save(temporary, format="PNG")


def _probability(doubt: Uncertainty, volume: Volume) -> Volume:
    """The mean probability on the volume's own grid; voxels outside the region take no memory."""
    low, high = volume.grid.overlap(doubt.grid)
    values = np.zeros(volume.grid.shape, np.float32)
    window = tuple(slice(first, last) for first, last in zip(low, high, strict=True))
    values[window] = resample(doubt.probability, doubt.grid, volume.grid.crop(low, high))
    return volume.with_data(values)


def _in_words(doubt: Uncertainty, grid: Grid) -> str:
    """How far the ensemble agrees, and where it does so least."""
    inside = doubt.probability > 0.5
    spread = float(doubt.spread[inside].mean()) if inside.any() else 0.0
    text = f"{spread:.2f} on average in the mask"
    place = doubt.least_certain(grid)
    if place is None:
        return text
    voxel = ",".join(str(round(float(index))) for index in grid.to_voxels(place))
    return f"{text}; a click at voxel {voxel} would tell most"
