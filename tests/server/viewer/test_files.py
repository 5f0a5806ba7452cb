"""The page's files fit together; needs no browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from volsam.server import app

SCRIPTS = sorted(app.STATIC.glob("*.js"))
PAGE = (app.STATIC / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_what_is_there_and_only_that(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    for names, source in re.findall(r"import \{([^}]+)\} from \"(\./[^\"]+)\"", text):
        other = (script.parent / source).read_text(encoding="utf-8")
        for name in (one.strip() for one in names.split(",")):
            assert re.search(rf"export (async )?(function|class|const) {name}\b", other), f"{source} exports no {name}"
            assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{name} is imported and not used"
    for source in re.findall(r"(?:from|import\(|URL\()\s*\"(\./[^\"]+)\"", text):
        assert (script.parent / source).is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_finds_the_elements_that_it_names(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    ids = set(re.findall(r"id=\"([\w-]+)\"", PAGE))
    assert set(re.findall(r"(?:byId|getElementById)\(\"([\w-]+)\"\)", text)) <= ids


def test_the_page_loads_nothing_from_elsewhere() -> None:
    assert not re.findall(r"(?:src|href)=\"(?!\./|#)", PAGE)
    for place in [*SCRIPTS, app.STATIC / "viewer.css"]:
        text = place.read_text(encoding="utf-8")
        assert not re.search(r"(?:from|import\(|fetch\(|url\()\s*[\"']?https?:", text), place.name


def test_code_of_others_comes_with_its_licences() -> None:
    licences = (app.STATIC / "vendor" / "LICENSES.txt").read_text(encoding="utf-8")
    for package in ("@niivue/niivue 0.69.0", "gl-matrix", "nifti-reader-js", "fflate", "zarrita"):
        assert package in licences
    vendored = (app.STATIC / "vendor" / "niivue.js").read_text(encoding="utf-8")
    assert '"0.69.0"' in vendored
    assert "sourceMappingURL" not in vendored
