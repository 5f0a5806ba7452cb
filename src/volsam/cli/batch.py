"""Many images through one model: while one is worked on, the next is read and the one before it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from volsam.cli.journal import Journal, Line

if TYPE_CHECKING:
    from volsam.data.dataset import Case


@dataclass
class Wanted:
    """An image on its way through the work."""

    case: Case
    target: Path
    line: Line
    done: bool = False
    said: str = ""
    error: Exception | None = None


class Worker(Protocol):
    """Reads an image, answers it, and writes what was answered; `write` says in words and in the line what that is."""

    channels: int

    def prompts(self, case: Case) -> Path | None:
        """The file of an image's prompts."""

    def read(self, case: Case, *, beside: bool = False) -> Any:
        """What `answer` needs; `beside`: while another image is worked on, or None where there is no room for two."""

    def answer(self, wanted: Wanted, read: Any) -> Any:
        """What `write` needs."""

    def write(self, wanted: Wanted, answer: Any) -> None:
        """Write the files."""


def wanted_of(
    cases: Iterable[Case], output: Path, worker: Worker, journal: Journal, overwrite: bool
) -> Iterator[Wanted]:
    """The images with their digests, and whether what is wanted of them is there."""
    from volsam.data.digests import file_digest, image_digest

    for case in cases:
        wanted = Wanted(case, output / f"{case.name}.nii.gz", Line(case.name))
        try:
            asked = worker.prompts(case)
            wanted.line = Line(case.name, image_digest(case), "" if asked is None else file_digest(asked).hex())
            wanted.done = not overwrite and journal.is_done(wanted.target, wanted.line)
        except Exception as error:  # one image that cannot be read must not end the work on the others
            wanted.error = error
        yield wanted


def worked(worker: Worker, images: Iterator[Wanted]) -> Iterator[Wanted]:
    """The images, worked on: while one is, the next is read and the one before it is written."""
    with ThreadPoolExecutor(1) as aside:
        ahead: tuple[Wanted, Future[Any]] | None = None
        writing: tuple[Wanted, Future[Any]] | None = None
        for wanted in _with_next(images):
            now, following = wanted
            if now.error is None and not now.done:
                began = perf_counter()
                try:
                    read = ahead[1].result() if ahead is not None and ahead[0] is now else None
                    ahead = None
                    if read is None:
                        read = worker.read(now.case)
                    if following is not None and following.error is None and not following.done:
                        ahead = following, aside.submit(worker.read, following.case, beside=True)
                    answer = worker.answer(now, read)
                    now.line = replace(now.line, seconds=f"{perf_counter() - began:.2f}")
                except Exception as error:
                    now.error = error
            if writing is not None:
                yield _written(*writing)
                writing = None
            if now.error is None and not now.done:
                writing = now, aside.submit(worker.write, now, answer)
            else:
                yield now
        if writing is not None:
            yield _written(*writing)


def _with_next(images: Iterator[Wanted]) -> Iterator[tuple[Wanted, Wanted | None]]:
    now = next(images, None)
    while now is not None:
        following = next(images, None)
        yield now, following
        now = following


def _written(wanted: Wanted, writing: Future[Any]) -> Wanted:
    try:
        writing.result()
    except Exception as error:
        wanted.error = error
    return wanted
