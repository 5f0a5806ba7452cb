"""How volsam speaks on a terminal.

Results go to standard output; progress, warnings and errors, a line each, go beside it. A command that raises ends in
one line `error: ...` and exit status 1; `--debug`, anywhere on the line, also shows where it was raised.
"""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NoReturn, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from volsam.errors import VolsamError, is_out_of_memory

Item = TypeVar("Item")

INTERRUPTED = 130  # what a shell reports of a program stopped by Ctrl-C
UNFOLDED = 10_000  # columns, more than any table has
CLEAR_LINE = "\r\x1b[2K"


class Group(TyperGroup):
    """The words of `volsam`; takes `--debug` before and after the word of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--debug` to the front, where it is declared."""
        own = args[: args.index("--")] if "--" in args else args
        if "--debug" in own:
            args = ["--debug", *(word for word in own if word != "--debug"), *args[len(own) :]]
        return super().parse_args(ctx, args)


class Command(TyperCommand):
    """A command that ends in one line when something goes wrong."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line: `IMAGE...`, where typer writes `{IMAGE}...`."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what it raises becomes a line and an exit status."""
        debug = bool(ctx.find_root().params.get("debug"))
        try:
            with warnings_in_a_line():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if debug:
                traceback.print_exc()
            fail(explained(error))


def fail(text: str) -> NoReturn:
    """Say in one line why the command ends here, and end it."""
    say(f"error: {' '.join(text.split())}")
    raise typer.Exit(1)


def explained(error: Exception) -> str:
    """What a user should read of an exception."""
    if isinstance(error, VolsamError):
        return str(error)
    if is_out_of_memory(error):
        return f"memory ran out ({error or 'no more could be had'}): crop or resample the image, or free some memory"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}; check free space and permissions"
    return f"unexpected {type(error).__name__}: {error}; run again with --debug to see where"


def no_room(error: BaseException | None) -> bool:
    """Whether what was to be written had no place, as nothing that follows will have."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return True
        error = error.__cause__ or error.__context__
    return False


def say(text: str) -> None:
    """A line for the reader, not part of the result."""
    typer.echo((CLEAR_LINE if on_terminal() else "") + text, err=True)


def on_terminal() -> bool:
    """Whether progress is read by a person."""
    return sys.stderr.isatty()


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Show what volsam's modules log, each text once."""
    logger = logging.getLogger("volsam")
    handler = _Warnings(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Warnings(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Say a text the first time it comes; a header that is read twice warns twice."""
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            say(f"{record.levelname.lower()}: {text}")


class Steps:
    """Named steps of one command and the seconds each took; the one at work is shown on a terminal."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a step; a step that comes twice adds up."""
        if on_terminal():
            typer.echo(f"{CLEAR_LINE}{name} …", err=True, nl=False)
        begin = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - begin
            if on_terminal():
                typer.echo(CLEAR_LINE, err=True, nl=False)

    def __str__(self) -> str:
        parts = [f"{name} {seconds:.1f}" for name, seconds in self.seconds.items()]
        return ", ".join([*parts, f"together {sum(self.seconds.values()):.1f}"])


def track(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Go through `items` with a progress bar on a terminal, and a line for every tenth of them otherwise."""
    if on_terminal():
        from rich.console import Console
        from rich.progress import track as bar

        return bar(items, what, console=Console(stderr=True), transient=True)
    return _lines(items, what)


def _lines(items: Sequence[Item], what: str) -> Iterator[Item]:
    begin = perf_counter()
    for done, item in enumerate(items, 1):
        yield item
        if done == len(items) or done * 10 // len(items) > (done - 1) * 10 // len(items):
            say(f"{what}: {done} of {len(items)}, {perf_counter() - begin:.0f} s")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their headings; plain enough to be cut by other programs when it is not a terminal.

    On a terminal that is too narrow for the words of all columns, each row is a block of lines.
    """
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        shown.add_row(*row)
    # A pipe has no width: nothing is folded there.
    console = Console(width=None if sys.stdout.isatty() else UNFOLDED, highlight=False, markup=False)
    if console.measure(shown, options=console.options.update(width=UNFOLDED)).minimum <= console.width:
        console.print(shown)
        return
    for row in rows:
        block = Table(box=None, show_header=False, pad_edge=False)
        for column, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                block.add_row(f"  {column}", cell)
        console.print(row[0], style="bold")
        console.print(block)
