"""What is loaded by whom: `import volsam` and `volsam --help` cost next to nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import volsam

HEAVY = ("torch", "monai", "SimpleITK", "nibabel", "scipy.ndimage", "numpy", "PIL", "pandas", "matplotlib")

IMPORT = "import volsam"
HELP = "import sys; from volsam.cli import main; sys.argv = {line!r}.split()\ntry: main()\nexcept SystemExit: pass"

SURFACE = """
    BadFile BadInput Box Click Grid MaskHint MissingExtra NotSupported PromptOutside PromptSet Scribble Session
    Volume VolsamError load_model read_volume resample write_volume
"""


def loaded_by(code: str) -> list[str]:
    """Which of the heavy packages a fresh Python has loaded after running some code."""
    asking = f"{code}\nimport sys; print('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].removeprefix("loaded:").split()


def test_importing_volsam_loads_nothing_heavy():
    assert loaded_by(IMPORT) == []


@pytest.mark.parametrize("line", ["volsam --help", "volsam segment --help", "volsam models --help"])
def test_help_loads_nothing_heavy(line):
    assert loaded_by(HELP.format(line=line)) == []


def test_reading_drawing_and_prompts_need_no_torch():
    modules = "volsam.data.io, volsam.prompts, volsam.cli.job, volsam.inference.preview"
    assert not {"torch", "monai", "SimpleITK"} & set(loaded_by(f"import {modules}"))


def test_a_session_needs_torch_and_nothing_slow_beside_it():
    # nibabel loads pydicom, and that loads PIL, wherever pydicom is installed; what is asked here is what we load.
    without_pydicom = "import sys; sys.modules['pydicom'] = None"
    assert loaded_by(f"{without_pydicom}; import volsam; volsam.Session, volsam.load_model, volsam.read_volume") == [
        "torch",
        "nibabel",
        "numpy",
    ]


def test_the_surface_is_what_is_promised():
    assert sorted(volsam.__all__) == sorted(SURFACE.split())


@pytest.mark.parametrize("name", volsam.__all__)
def test_every_public_name_is_there(name):
    assert getattr(volsam, name).__name__ == name
    assert name in dir(volsam)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(volsam.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(volsam.__all__)


def test_a_name_that_is_not_there_is_refused_as_usual():
    with pytest.raises(AttributeError, match="no attribute 'Volumes'"):
        _ = volsam.Volumes
