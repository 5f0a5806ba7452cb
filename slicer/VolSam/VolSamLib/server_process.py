"""A server on this computer, in a Python environment of its own: never in Slicer's, and never without being asked to.

`find_python` looks for a Python, `Setup` makes the environment in the background, `Process` runs `volsam serve` in it.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

MARK = "made-by-volsam"
LOWEST, HIGHEST = (3, 10), (3, 13)
# The repository that this module lies in, if it does.
CHECKOUT = Path(__file__).resolve().parents[3]
SERVES = re.compile(r"volsam serves at (http://\S+)")
# What Slicer sets for its own Python, and would break another one.
OWN = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONNOUSERSITE",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "__PYVENV_LAUNCHER__",
)
PATIENCE = 10.0  # seconds that a server may take to end
_CHECK = "import sys; print('%d.%d' % sys.version_info[:2], sys.prefix)"


def requirement() -> str:
    """What is installed: the volsam that this module belongs to, or, where it was copied alone, the released one."""
    whole = (CHECKOUT / "pyproject.toml").is_file() and (CHECKOUT / "src" / "volsam").is_dir()
    return f"{CHECKOUT if whole else 'volsam'}[serve,itk]"


class NotPossible(Exception):
    """What stands in the way, in one sentence for the user."""


def default_folder() -> Path:
    """Where the environment is made unless the user names another place."""
    return Path.home() / ".volsam" / "slicer-environment"


def outside_environment() -> dict[str, str]:
    """The environment variables that Slicer itself was started with."""
    try:
        import slicer

        variables: Mapping[str, str] = slicer.util.startupEnvironment()
    except Exception:
        variables = os.environ
    return {name: value for name, value in variables.items() if name not in OWN}


def python_in(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def find_python(candidates: Sequence[str] | None = None) -> str:
    """A Python that volsam runs on, outside of Slicer. Raises NotPossible."""
    names = candidates or [f"python3.{minor}" for minor in range(HIGHEST[1], LOWEST[1] - 1, -1)] + ["python3", "python"]
    environment = outside_environment()
    own = Path(sys.prefix).resolve()
    for name in names:
        found = shutil.which(name, path=environment.get("PATH"))
        version, _, prefix = (_output([found, "-c", _CHECK], environment) if found else "").partition(" ")
        if not found or not re.fullmatch(r"\d+\.\d+", version) or Path(prefix).resolve() == own:
            continue
        if LOWEST <= tuple(int(part) for part in version.split(".")) <= HIGHEST:
            return found
    raise NotPossible(
        "There is no Python 3.10 to 3.13 outside of Slicer: install one from python.org, or enter the address "
        "of a server on another computer."
    )


def has_volsam(folder: Path) -> bool:
    """Whether an environment can serve."""
    python = python_in(folder)
    asked = "import importlib.util as u; print(all(u.find_spec(n) for n in ('volsam', 'fastapi', 'uvicorn')))"
    return python.is_file() and _output([str(python), "-c", asked], outside_environment()) == "True"


class Setup:
    """Makes an environment and installs volsam into it, in the background; `lines` has what is said meanwhile."""

    def __init__(self, folder: Path, python: str, requirement: str) -> None:
        self.lines: queue.Queue[str] = queue.Queue()
        self.error: str | None = None
        self.folder = folder
        if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise NotPossible(f"{folder} is not empty: choose another folder for the environment.")
        self._steps = (
            [python, "-m", "venv", str(folder)],
            [str(python_in(folder)), "-m", "pip", "install", "--disable-pip-version-check", requirement],
        )
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="VolSam-setup")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or with an `error`."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Give up; what was made is taken away."""
        self._is_stopped = True
        if self._process is not None:
            self._process.terminate()

    def _run(self) -> None:
        last: deque[str] = deque(maxlen=3)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / MARK).touch()
            for step in self._steps:
                self._process = _started(step)
                assert self._process.stdout is not None
                with self._process.stdout as said:
                    for line in said:
                        last.append(line.strip())
                        self.lines.put(line.rstrip())
                if self._process.wait() != 0 or self._is_stopped:
                    reason = "it was stopped" if self._is_stopped else " ".join(last) or "it gave no reason"
                    raise NotPossible(f"The environment could not be set up: {reason}")
        except (OSError, NotPossible) as error:
            self.error = f"{str(error).rstrip('.')}; look at the network and at free space, then try again."
            shutil.rmtree(self.folder, ignore_errors=True)


class Process:
    """`volsam serve`, on this computer only, at any port that is free. It ends with `stop`, or with Slicer."""

    def __init__(self, folder: Path, models: Sequence[str] = ()) -> None:
        python = python_in(folder)
        if not python.is_file():
            raise NotPossible(f"There is no environment in {folder}: set one up first.")
        serve = ["from volsam.cli import main; main()", "serve", "--port", "0", "--dialects", "none"]
        command = [str(python), "-c", *serve, *(["--models", ",".join(models)] if models else [])]
        self.address: str | None = None
        self._last: deque[str] = deque(maxlen=5)
        self._process = _started(command)
        self._thread = threading.Thread(target=self._listen, daemon=True, name="VolSam-server")
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def error(self) -> str | None:
        """Why it has ended, in one sentence."""
        if self.is_running:
            return None
        self._thread.join(2.0)
        reason = next((line for line in reversed(self._last) if line), "it gave no reason")
        return f"The server has ended ({reason.removeprefix('error: ')}): start it again."

    def stop(self) -> None:
        """End it, without waiting; what was acknowledged is saved."""
        if self.is_running:
            self._process.terminate()
            threading.Thread(target=self._see_it_end, daemon=True, name="VolSam-stop").start()

    def _see_it_end(self) -> None:
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                self._last.append(line.strip())
                if found := SERVES.search(line):
                    self.address = found[1]


def _started(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=outside_environment() | {"PYTHONUNBUFFERED": "1"},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _output(command: Sequence[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=30,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
