"""Files of published weights, safetensors or torch: read without running anything that is in them.

A torch file is a pickle, and a pickle is a program. Only torch's restricted reader touches it, which knows tensors and
plain containers; a file that needs more is refused with the name of what it wanted.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from volsam.errors import BadFile, BadInput
from volsam.recipes.families.family import Described, Family, built, fill, on_no_device
from volsam.recipes.store import checksum

# Where training scripts put the weights, beside the state of their optimisers.
WRAPPERS = ("model_state_dict", "state_dict", "model")
# The three parts of 3DSAM-adapter; the second is a list, with a prompt encoder for each level.
PARTS = ("encoder_dict", "feature_dict", "decoder_dict")
# torch.nn.DataParallel puts this before every name.
PARALLEL = "module."

Kind = Literal["safetensors", "torch", "old torch"]
AGAIN = "copy or download it again"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors of a file.

    tensors: by their names in the original, in one level; where: the file, for messages; sha256: of the file; note:
    where in the file they were and what else was there, "" if they were all.
    """

    tensors: Mapping[str, Tensor]
    where: str
    sha256: str
    note: str = ""

    @property
    def described(self) -> Described:
        """Names and shapes, by which a family knows its own."""
        return Described.of(self.where, self.tensors)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a safetensors or torch file; refused in one line if it is neither, damaged, or needs code."""
    path = Path(path)
    kind = kind_of(path)
    try:
        content = _read_safetensors(path) if kind == "safetensors" else _read_torch(path, kind)
        tensors, note = unwrapped(content, str(path))
        return Checkpoint(
            {name: _plain(name, tensor, path) for name, tensor in tensors.items()}, str(path), checksum(path), note
        )
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from error


def require_finite(checkpoint: Checkpoint) -> None:
    """Refuse weights that are no numbers, the trace of a training that failed or of a damaged file."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise BadInput(
                f"{checkpoint.where}: {count} of {tensor.numel()} values of {name} are NaN or infinite: take another "
                "checkpoint of that training, or download the file again"
            )


def filled(family: Family, described: Described, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a family with the weights of an original, in single precision, on the CPU.

    Memory is taken once: the network is made without any, and takes the tensors as they are.
    """
    single = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    with sizes_fit(described.where, family.title):
        network = on_no_device(family, described)
        fill(network, family, single, described.where)
        if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
            # Something that is computed from sizes and no weight; only a network in memory computes it.
            network = built(family, described)
            fill(network, family, single, described.where)
    return network


@contextmanager
def sizes_fit(where: str, title: str) -> Iterator[None]:
    """Refuse weights whose shapes contradict each other, whichever step fails on them."""
    try:
        yield
    except BadInput:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"{where}: its sizes do not fit {title} ({reason})") from error


# --- what a file is --------------------------------------------------------------------------------------------------


def kind_of(path: Path) -> Kind:
    """What a file is by its first bytes; what is no checkpoint is refused by what it is."""
    if path.is_dir():
        raise BadFile(f"{path} is a folder: give the file of weights in it")
    try:
        with path.open("rb") as file:
            start = file.read(1024)
            size = path.stat().st_size
    except FileNotFoundError:
        raise BadFile(f"there is no file {path}: give the path of a safetensors or torch file") from None
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror or error}") from error
    if start.startswith(b"PK\x03\x04"):
        return "torch"
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return "old torch"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < max(size, 100_000_000):
        return "safetensors"
    raise BadFile(f"{path} {_no_checkpoint(start)}")


def _no_checkpoint(start: bytes) -> str:
    text = start.lstrip().lower()
    if not start:
        return f"is empty: {AGAIN}"
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not the weights: run `git lfs pull` where it was cloned, or download the file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<")):
        return "is a web page, not weights: the address leads to a page; download the file behind it"
    if start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
        return "is a packed archive: unpack it, and give the file of weights in it"
    if start.startswith(b"\x93NUMPY"):
        return "is an array of numpy, not a checkpoint: give a safetensors or torch file"
    return f"is neither a safetensors nor a torch file: give one of these, or {AGAIN} if it should be one"


# --- reading ---------------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise BadFile(f"{path} is cut short or damaged ({error}): {AGAIN}") from None


def _read_torch(path: Path, kind: Kind) -> Any:
    if kind == "torch":
        _require_whole(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Aside, name) for name in _ASIDE]):
            warnings.simplefilter("ignore")  # of old forms, which are read all the same
            # Mapped, weights are read when they are used; the older format cannot be.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "torch")
    except (MemoryError, OSError):
        raise
    except Exception as error:
        raise BadFile(f"{path} {_reason(str(error))}") from None


def _require_whole(path: Path) -> None:
    """Refuse an archive that is cut, that is damaged, that is none of torch's, or that unpacks to more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            names = [part.filename.partition("/")[2] for part in parts]
            if "constants.pkl" in names:
                raise BadFile(f"{path} is a program of TorchScript, not weights: give a file of weights (a state dict)")
            if "data.pkl" not in names:
                raise BadFile(f"{path} is an archive, but not one of torch: unpack it, and give the weights in it")
            if sum(part.file_size for part in parts) > path.stat().st_size:
                raise BadFile(f"{path} unpacks to more than its size, which no file of torch does: get another")
            if (damaged := archive.testzip()) is not None:
                raise BadFile(f"{path} is damaged, the checksum of its part {damaged} is wrong: {AGAIN}")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
        raise BadFile(f"{path} is cut short or damaged: {AGAIN}") from None


_WANTED = re.compile(r"(?:unsupported|Unsupported global:) GLOBAL (\S+)")
_OTHERWISE = "nothing in it was run; get the weights as safetensors, or as a plain state dict"


def _reason(text: str) -> str:
    """Why torch's restricted reader refused a file."""
    if wanted := _WANTED.search(text):
        name = wanted[1] if "." in wanted[1] else f"builtins.{wanted[1]}"
        return f"needs {name}, more than tensors and plain containers: {_OTHERWISE}"
    if re.search(r"Unsupported oper|[Cc]an only|reduce for unrecognized|persistent", text):
        return f"is a pickle of more than tensors and plain containers, or of a newer kind: {_OTHERWISE}"
    return f"is cut short or damaged: {AGAIN}"


class _Aside:
    """Stands for a setting or a number beside the weights, which is not looked at."""

    def __new__(cls, *_: Any) -> _Aside:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# What training scripts of published systems save beside the weights: their options, and losses as numbers of numpy. A
# pickle that names one of these gets an `_Aside`; the class itself is not even imported.
_ASIDE = (
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{made}" for core in ("core", "_core") for made in ("scalar", "_reconstruct")),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool")),
)


# --- where the weights are in it -------------------------------------------------------------------------------------


def unwrapped(content: Any, where: str) -> tuple[dict[str, Tensor], str]:
    """The tensors in what a file holds, by name in one level, and a note on where they were and what else there was."""
    if not isinstance(content, Mapping):
        raise BadFile(f"{where} holds a {type(content).__name__} without names: give a checkpoint or a state dict")
    if all(part in content for part in PARTS):
        return _three_parts(content, where), _note(PARTS, [name for name in content if name not in PARTS])
    inside: list[str] = []
    beside: list[Any] = []
    while (inner := next((name for name in WRAPPERS if _holds_tensors(content.get(name))), None)) is not None:
        inside.append(inner)
        beside += [name for name in content if name != inner]
        content = content[inner]
    if not any(isinstance(value, Tensor) for value in content.values()):
        held = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise BadFile(f"{where} holds no tensors under names, but {held}: give a checkpoint or a state dict")
    beside += [name for name, value in content.items() if not isinstance(value, Tensor)]
    return _named(content), _note([".".join(inside)] if inside else [], beside)


def _three_parts(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    encoder, prompts, decoder = (content[part] for part in PARTS)
    if not isinstance(prompts, (list, tuple)) or not all(map(_holds_tensors, (encoder, *prompts, decoder))):
        raise BadFile(f"{where}: its {', '.join(PARTS)} must hold tensors, the second in a list: {AGAIN}")
    levels = {f"feature_dict[{level}]": part for level, part in enumerate(prompts)}
    parts = {"encoder_dict": encoder, **levels, "decoder_dict": decoder}
    return {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in _named(held).items()}


def _holds_tensors(part: Any) -> bool:
    """Whether a part is weights, or holds them one level further down."""
    if not isinstance(part, Mapping):
        return False
    return any(isinstance(held, Tensor) for value in (part, *part.values()) for held in _values(value))


def _values(part: Any) -> Iterable[Any]:
    return part.values() if isinstance(part, Mapping) else ()


def _named(part: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {str(name): value for name, value in part.items() if isinstance(value, Tensor)}
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


def _note(inside: Sequence[str], beside: Sequence[Any]) -> str:
    parts = [f"weights in {', '.join(inside)}"] if inside else []
    if beside:
        more = f" and {len(beside) - 8} more" if len(beside) > 8 else ""
        parts.append(f"left out: {', '.join(map(str, beside[:8]))}{more}")
    return "; ".join(parts)


def _plain(name: str, tensor: Tensor, path: Path) -> Tensor:
    """A tensor without a history; refused if its values are not all in the file."""
    odd = type(tensor) not in (Tensor, nn.Parameter) or tensor.is_nested or tensor.is_quantized
    if odd or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        kind = "nested, quantized or of a class of its own" if odd else f"{tensor.layout} on {tensor.device}"
        raise BadFile(f"{path}: {name} is {kind}: save it again as a plain dense tensor on the CPU")
    # A tensor may say that it is larger than what is stored of it: a kilobyte that becomes a terabyte when it is used.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BadFile(f"{path}: {name} has shape {list(tensor.shape)}, more values than are stored: get another file")
    return tensor.detach()
