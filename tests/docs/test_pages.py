"""The documentation names what exists, and all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml

import volsam
from volsam.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{name_of(page)} links to {target}, which is not there"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", text))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert yaml.safe_load(text)["theme"]["font"] is False


def test_the_reference_names_every_command_and_option() -> None:
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    for words, options in commands(typer.main.get_command(app)):
        if words:
            # A command of a group has a row in the group's table.
            head = f"## volsam {words[0]}"
            assert head in page, f"no section on volsam {' '.join(words)}"
            section = page.split(head)[1].split("\n## ")[0]
            assert all(f"`{word}" in section for word in words[1:]), f"{head} does not name {words[-1]}"
        else:
            section = page
        for option in options:
            assert option in section, f"volsam {' '.join(words)} {option} is not in the reference"


def test_the_reference_names_no_option_that_is_not_there() -> None:
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    known = {option for _, options in commands(typer.main.get_command(app)) for option in options}
    assert set(re.findall(r"--[a-z][a-z0-9-]*", page)) <= known | {"--help"}


def commands(command: object, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], list[str]]]:
    """Every command by its words, with its long options."""
    found = [
        (words, [name for one in command.params for name in one.opts if name.startswith("--") and name != "--help"])
    ]
    for name, inner in getattr(command, "commands", {}).items():
        found += commands(inner, (*words, name))
    return found


def test_the_reference_names_all_that_is_public() -> None:
    page = (DOCS / "reference" / "python.md").read_text(encoding="utf-8")
    missing = [name for name in volsam.__all__ if not re.search(rf"\b{name}\b", page)]
    assert not missing


def test_the_changelog_has_a_place_for_what_comes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]$", text, re.MULTILINE)


def test_decisions_are_numbered_without_a_gap_and_listed() -> None:
    records = sorted(path.name for path in (DOCS / "decisions").glob("0*.md"))
    assert [int(name[:4]) for name in records] == list(range(1, len(records) + 1))
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    assert all(f"({name})" in index for name in records)
