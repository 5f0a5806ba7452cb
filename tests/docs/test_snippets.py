"""Every snippet of the README and of the documentation is run, page by page, as a reader would type it.

The blocks of a page share a Python namespace, and a folder with a sample scan, ct.nii.gz. A block with a title is a
file of that name. A comment before a block changes what is done: `<!-- not run: reason -->` leaves it out, and
`<!-- fails -->` says that its commands are meant to be refused.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from volsam.cli import app
from volsam.data.io import write_volume
from volsam.data.synthetic import sample_volume

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<words>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
BEFORE = re.compile(r"<!--\s*(?P<word>not run|fails)\s*:?\s*(?P<reason>.*?)\s*-->\n\Z")
RUN = ("python", "bash")
SHOWN = ("json", "text", "mermaid")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, title and text, the line of its first text, and what the comment before it says."""

    language: str
    title: str | None
    text: str
    line: int
    comment: str | None
    reason: str


def blocks_of(page: Path) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(content):
        language, _, rest = fence["words"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        before = BEFORE.search(content[: fence.start()])
        found.append(
            Block(
                language,
                title[1] if title else None,
                fence["text"],
                content.count("\n", 0, fence.start()) + 2,
                before["word"] if before else None,
                before["reason"] if before else "",
            )
        )
    return found


def commands_of(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


WITH_SNIPPETS = [
    page for page in PAGES if any(block.language in RUN and block.comment != "not run" for block in blocks_of(page))
]


@pytest.fixture(scope="session")
def a_sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documentation speaks of."""
    folder = tmp_path_factory.mktemp("sample")
    write_volume(sample_volume()[0], folder / "ct.nii.gz")
    shutil.copytree(ROOT / "tests" / "reference", folder / "tests" / "reference")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_what_a_page_shows_works(
    page: Path, a_sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(a_sample_folder, folder)
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.comment == "not run":
            continue
        if block.title is not None:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            # Empty lines in front, so that an error names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        elif block.language == "bash":
            for words in commands_of(block):
                run(words, page, refused=block.comment == "fails")


def run(words: list[str], page: Path, refused: bool) -> None:
    """A command of volsam, in this process."""
    answer = CliRunner().invoke(app, words[1:])
    shown = f"{name_of(page)}: {shlex.join(words)}\n{answer.output}"
    if refused:
        assert answer.exit_code == 1, shown
        assert answer.stderr.startswith("error: "), shown
        assert answer.stderr.count("\n") == 1, shown
    else:
        assert answer.exit_code == 0, f"{shown}\n{answer.exception!r}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks_of(page):
        where = f"{name_of(page)}, line {block.line}"
        assert block.language in (*RUN, *SHOWN), f"{where}: a block of {block.language!r} is of no known kind"
        if block.comment == "not run":
            assert block.reason, f"{where}: say why it is not run"
            continue
        if block.language == "python":
            compile(block.text, where, "exec")
        if block.language == "json":
            json.loads(block.text)
        if block.language == "bash":
            for words in commands_of(block):
                assert words[0] == "volsam", f"{where}: {words[0]!r} is not run; mark the block"


def test_pages_hold_snippets() -> None:
    """A typo in the pattern must not pass for documentation without snippets."""
    assert len(WITH_SNIPPETS) >= 8
    assert sum(len(blocks_of(page)) for page in PAGES) >= 30
