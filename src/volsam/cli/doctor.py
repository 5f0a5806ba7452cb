"""`volsam doctor`: what is wrong with this installation, and the exact fix."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import typer

import volsam
from volsam.cli.console import fail
from volsam.cli.options import AsJson
from volsam.data.memory import available_memory

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PYTHONS = ((3, 10), (3, 13))
WEIGHTS = Path(volsam.__file__).parent / "weights"
# Extras for those who work on volsam itself.
FOR_DEVELOPERS = {"dev", "test", "docs"}
# Bytes of memory below which nothing runs, and below which large scans do not.
TOO_LITTLE, LITTLE = 700_000_000, 2_000_000_000


@dataclass(frozen=True)
class Finding:
    """Something looked at: "ok", a "note" that some use is not possible, or a "problem" that stops all use."""

    what: str
    state: Literal["ok", "note", "problem"]
    found: str
    fix: str | None = None


def doctor(as_json: AsJson = False) -> None:
    """Say what is wrong with this installation, and the exact fix."""
    findings = list(examine())
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        report = {"ok": not problems, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(report, indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            typer.echo(f"{finding.state:8} {finding.what:{width}}  {finding.found}")
            if finding.fix is not None:
                typer.echo(f"{'':8} {'':{width}}  -> {finding.fix}")
    if problems:
        named = ", ".join(finding.what for finding in problems)
        fail(f"volsam cannot work here because of: {named}; the fix stands beside each")


def examine() -> Iterator[Finding]:
    """Look at everything, one thing after the other; nothing here needs a network."""
    yield _python()
    yield from _requirements()
    yield from _torch()
    yield from _weights()
    yield Finding("network", "ok", "not needed: the weights of the default model are in the package")
    yield _folder()
    yield _memory()
    yield _prediction()


def _python() -> Finding:
    version = sys.version_info[:2]
    found = f"{sys.version.split()[0]} on {sys.platform}"
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return Finding("python", "ok", found)
    first, last = (".".join(map(str, known)) for known in PYTHONS)
    return Finding("python", "problem", found, f"make an environment with Python {first} to {last}")


def _requirements() -> Iterator[Finding]:
    """What the package says it needs, and what each extra adds."""
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(text) for text in metadata.requires("volsam") or ()]
    except (ImportError, metadata.PackageNotFoundError) as error:
        yield Finding("volsam", "problem", f"not installed as a package ({error})", "pip install volsam")
        return
    yield Finding("volsam", "ok", volsam.__version__)
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    if missing := _missing(needed):
        told = " ".join(f'"{one.name}{one.specifier}"' for one in needed if one.name in missing)
        yield Finding("packages", "problem", _in_words(missing), f"pip install {told}")
    else:
        yield Finding("packages", "ok", f"all {len(needed)} are here")
    for extra in sorted(metadata.metadata("volsam").get_all("Provides-Extra") or ()):
        if extra not in FOR_DEVELOPERS:
            yield _extra(extra, [one for one in wanted if one.marker and one.marker.evaluate({"extra": extra})])


def _extra(name: str, wanted: list[Requirement]) -> Finding:
    parts = ", ".join(one.name for one in wanted if one.marker is not None and "extra" in str(one.marker))
    if missing := _missing(wanted):
        return Finding(f"extra {name}", "note", f"absent: {_in_words(missing)}", f'pip install "volsam[{name}]"')
    return Finding(f"extra {name}", "ok", f"present: {parts}")


def _missing(wanted: list[Requirement]) -> dict[str, str]:
    """Packages that are absent or of another version, and what is there."""
    missing = {}
    for one in wanted:
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            missing[one.name] = "absent"
            continue
        if not one.specifier.contains(version, prereleases=True):
            missing[one.name] = f"{version}, wanted {one.specifier}"
    return missing


def _in_words(missing: dict[str, str]) -> str:
    return "; ".join(f"{name} {found}" for name, found in missing.items())


def _torch() -> Iterator[Finding]:
    """Whether torch loads, and on what it can compute."""
    try:
        import torch
    except Exception as error:
        yield Finding("torch", "problem", f"does not load: {_first_line(error)}", 'pip install --upgrade "torch>=2.6"')
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    names = ["cpu"]
    if torch.backends.mps.is_available():
        names.insert(0, "mps")
    if torch.cuda.is_available():
        names.insert(0, f"cuda ({torch.cuda.get_device_name()})")
    elif torch.version.cuda is not None:
        found = f"{', '.join(names)}; torch is made for CUDA {torch.version.cuda} and sees no GPU"
        yield Finding("devices", "note", found, "if there is a GPU, update its driver until `nvidia-smi` shows it")
        return
    yield Finding("devices", "ok", f"{', '.join(names)}; --device auto takes {names[0].split()[0]}")


def _weights() -> Iterator[Finding]:
    """The files that ship with the package, and whether they are what their cards say."""
    files = sorted(WEIGHTS.glob("*.safetensors"))
    again = "pip install --force-reinstall --no-deps volsam"
    if not files:
        yield Finding("weights", "problem", f"none in {WEIGHTS}", again)
    for file in files:
        try:
            checksum = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            yield Finding(f"weights {file.stem}", "problem", f"cannot be read: {error.strerror}", again)
            continue
        found = f"{file.stat().st_size / 1e6:.1f} MB, sha256 {checksum}"
        if (stated := _stated_checksum(file.with_suffix(".md"))) not in (None, checksum):
            yield Finding(f"weights {file.stem}", "problem", f"{found}, but its card says {stated}", again)
        else:
            yield Finding(f"weights {file.stem}", "ok", found)


def _stated_checksum(card: Path) -> str | None:
    """The SHA-256 on a card, if it has one."""
    if not card.is_file():
        return None
    stated = re.search(r"sha-?256\W+([0-9a-f]{64})\b", card.read_text(encoding="utf-8"), re.IGNORECASE)
    return stated.group(1).lower() if stated else None


def _folder() -> Finding:
    """A mask goes beside its image unless -o says otherwise; the folder at hand stands for that."""
    folder = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding("writing", "ok", f"files may be made in {folder}")
    except OSError as error:
        found = f"no files may be made in {folder}: {error.strerror}"
        return Finding("writing", "note", found, f"cd {Path.home()}, or give -o with a folder of yours")


def _memory() -> Finding:
    free = available_memory()
    if free is None:
        return Finding("memory", "ok", "this system does not tell")
    found = f"{free / 1e9:.1f} GB free, {os.cpu_count()} processors"
    if free < TOO_LITTLE:
        return Finding("memory", "problem", found, "close other programs until 2 GB are free")
    if free < LITTLE:
        return Finding(
            "memory", "note", f"{found}; a scan of 512 × 512 × 600 voxels takes 1.2 GB", "close other programs"
        )
    return Finding("memory", "ok", found)


def _prediction() -> Finding:
    """A click on a tiny scan, on the CPU, through the same code as any other."""
    again = "run `volsam doctor --debug` after the problems above are gone, and report what it shows"
    begin = perf_counter()
    try:
        voxels, quality = _click_on_a_ball()
    except Exception as error:
        return Finding("prediction", "problem", f"failed: {type(error).__name__}: {_first_line(error)}", again)
    if voxels == 0 or not 0 <= quality <= 1:
        return Finding("prediction", "problem", f"a click gave {voxels} voxels of quality {quality:g}", again)
    return Finding("prediction", "ok", f"a click on a tiny scan took {perf_counter() - begin:.1f} s")


def _click_on_a_ball() -> tuple[int, float]:
    """Voxels and expected quality of the mask for a click on a bright ball in noise."""
    import numpy as np

    from volsam.geometry import Grid
    from volsam.inference.session import Session
    from volsam.prompts import Click
    from volsam.recipes.recipe import load_model
    from volsam.volume import Volume

    grid = Grid.at((24, 24, 24), 2.0)
    i, j, k = (line - 11.5 for line in np.ogrid[:24, :24, :24])
    distance = np.sqrt(i**2 + j**2 + k**2)
    noise = np.random.default_rng(0).normal(0, 10, grid.shape)
    session = Session(load_model(device="cpu"), Volume((100 * (distance < 7) + noise).astype(np.int16), grid))
    x, y, z = grid.to_world((11.5, 11.5, 11.5))
    session.add(Click((float(x), float(y), float(z))))
    return int(np.count_nonzero(session.mask.data)), float(session.quality or 0.0)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
