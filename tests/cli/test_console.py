"""How commands end: quietly, in one line, or with a traceback for those who ask."""

import errno
import logging
import re
import sys
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from volsam.cli import console
from volsam.cli.console import Command, Group, Steps, fail, say, table, track
from volsam.errors import BadInput


def run(action, *words):
    """A program of two commands, of which `work` does `action`."""
    app = typer.Typer(cls=Group, pretty_exceptions_enable=False)

    @app.callback()
    def start(debug: bool = False) -> None:
        pass

    @app.command(cls=Command)
    def work(words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
        action(*(words or ()))

    @app.command(cls=Command)
    def rest() -> None:
        pass

    return CliRunner().invoke(app, list(words) or ["work"])


def raising(error):
    def action(*_):
        raise error

    return action


def test_what_goes_well_ends_with_0():
    result = run(lambda: typer.echo("done"))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "done\n", "")


def test_an_error_of_ours_is_one_line():
    result = run(raising(BadInput("it is\n  too large: crop it")))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: it is too large: crop it\n"


def test_an_unexpected_error_is_one_line_too():
    result = run(raising(KeyError("shape")))
    assert result.exit_code == 1
    assert result.stderr == "error: unexpected KeyError: 'shape'; run again with --debug to see where\n"


@pytest.mark.parametrize("words", [("--debug", "work"), ("work", "--debug")])
def test_debug_works_before_and_after_the_command(words):
    result = run(raising(BadInput("no")), *words)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: no\n")


def test_debug_behind_two_dashes_is_a_word_like_any_other():
    result = run(lambda word: typer.echo(word), "work", "--", "--debug")
    assert result.stdout == "--debug\n"


def test_an_interruption_is_quiet():
    result = run(raising(KeyboardInterrupt()))
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.00 TiB for an array"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7.00 TiB"),
    ],
)
def test_memory_that_runs_out_is_told_with_what_was_wanted(error):
    said = run(raising(error)).stderr
    assert said.startswith("error: memory ran out (")
    assert "7.00 TiB" in said
    assert "--debug" not in said


def test_a_file_that_the_system_refuses_is_named():
    said = run(raising(OSError(errno.ENOSPC, "No space left on device", "/big/mask.nii.gz"))).stderr
    assert said == "error: /big/mask.nii.gz: No space left on device; check free space and permissions\n"


def test_wrong_usage_ends_with_2():
    assert run(lambda: None, "work", "--unknown").exit_code == 2
    assert run(lambda: None, "unknown").exit_code == 2


def test_a_warning_is_said_once():
    def warn():
        for _ in range(2):
            logging.getLogger("volsam.data.io").warning("the header of %s is odd", "ct")

    assert run(warn).stderr == "warning: the header of ct is odd\n"
    assert logging.getLogger("volsam").handlers == []


def test_progress_is_plain_lines_where_nobody_watches():
    result = run(lambda: [say(str(item)) for item in track(range(3), "cases")])
    assert result.stderr.splitlines() == [
        "0",
        "cases: 1 of 3, 0 s",
        "1",
        "cases: 2 of 3, 0 s",
        "2",
        "cases: 3 of 3, 0 s",
    ]


def test_long_work_says_something_ten_times():
    result = run(lambda: list(track(range(1000), "cases")))
    assert len(result.stderr.splitlines()) == 10


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    result = run(lambda: typer.echo(sum(track(range(4), "cases"))))
    assert result.stdout == "6\n"
    assert "of 4" not in result.stderr


def test_steps_are_timed_and_shown_on_a_terminal(monkeypatch):
    monkeypatch.setattr(console, "on_terminal", lambda: True)

    def work():
        steps = Steps()
        with steps("read"), steps("unpack"):
            pass
        with steps("read"):
            pass
        typer.echo(str(steps))

    result = run(work)
    assert result.stdout == "unpack 0.0, read 0.0, together 0.0\n"
    assert "read …" in result.stderr


def test_a_table_is_not_folded_in_a_pipe():
    result = run(lambda: table(("name", "summary"), [("a", "x" * 300), ("b[red]", "y")]))
    assert "x" * 300 in result.stdout
    assert "b[red]" in result.stdout


@pytest.fixture
def a_terminal(monkeypatch, capsys):
    """Print a table on a terminal of so many columns, and read it as text."""

    def shown(width, *content):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        table(*content)
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)

    return shown


WIDE = ("model", *(f"measure{number} ms" for number in range(12)))
ROWS = [("sam", *(f"{number}.5 (1.0-9.0)" for number in range(12))), ("unet", "7", *[""] * 11)]


def test_a_row_is_a_block_where_the_columns_do_not_fit(a_terminal):
    lines = [line.rstrip() for line in a_terminal(80, WIDE, ROWS).splitlines()]
    assert lines[0] == "sam"
    assert lines[1].split() == ["measure0", "ms", "0.5", "(1.0-9.0)"]
    assert lines[12].split() == ["measure11", "ms", "11.5", "(1.0-9.0)"]
    assert [line.split() for line in lines[13:]] == [["unet"], ["measure0", "ms", "7"]]


def test_a_table_stays_one_where_the_words_of_its_columns_fit(a_terminal):
    assert a_terminal(300, WIDE, ROWS).splitlines()[0].split()[:3] == ["model", "measure0", "ms"]
    folded = a_terminal(80, ("name", "summary"), [("sam", "words and " * 20)]).splitlines()
    assert folded[0].split() == ["name", "summary"]
    assert folded[1].startswith("sam   words and")


def test_failing_is_a_line_and_a_status():
    result = run(lambda: fail("3 problems"))
    assert (result.exit_code, result.stderr) == (1, "error: 3 problems\n")
