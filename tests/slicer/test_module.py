"""The 3D Slicer module, in an environment and a process of its own: real MRML, fakes for Qt, a live server.

Fakes for `qt` and `ctk` must not meet other tests, and Slicer's libraries are not those of this environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-slicer" / "bin" / "python"
TESTS = ROOT / "tests" / "slicer" / "mrml"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.glob("test_*.py")))
def test_the_module_in_a_scene(name: str, tmp_path: Path) -> None:
    if not PYTHON.is_file():
        pytest.skip("there is no environment with Slicer's libraries: make slicer-env")
    variables = {
        **os.environ,
        "VOLSAM_PYTHON": sys.executable,
        "VTK_DEFAULT_OPENGL_WINDOW": "vtkEGLRenderWindow",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(PYTHON), "-m", "pytest", "-q", f"--confcutdir={TESTS}", f"--basetemp={tmp_path / 'tests'}"]
    done = subprocess.run(
        [*command, str(TESTS / name)], env=variables, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
