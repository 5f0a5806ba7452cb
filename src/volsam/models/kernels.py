"""How many kernels a call launches, counted on any machine: what decides the time of small steps on a GPU.

At batch 1 a GPU waits for launches, not for arithmetic; and it waits for the host wherever the host wants to know a
value, or makes a tensor and sends it. All of this shows in the list of operations that a call dispatches, so it can be
kept low without a GPU: trace the call on tensors of the meta device, which take the same way through the code as those
of a GPU, and have no values that could be read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Kind: TypeAlias = Literal["heavy", "light"]


@dataclass(frozen=True)
class KernelCount:
    """What a call dispatched.

    ops: all operations, views included; kernels: those that read or write memory, each a launch when run one by one;
    fused: launches that remain when a compiler fuses what is easy to fuse; heavy: names of the kernels that no fusion
    removes; syncs: operations that wait for the device; host_made: tensors made on the host within the call.

    `fused` is an estimate by one rule, not a measurement: a *heavy* kernel (matrix product, convolution, attention,
    norm, softmax, reduction, sort) counts once. A *light* one (pointwise arithmetic, and copies, gathers or constants,
    which are pointwise in what they write) is free if it directly follows or precedes a heavy kernel through any
    number of light ones, as that kernel's epilogue or prologue. What is connected to no heavy kernel counts once for
    each connected group. Library kernels take fewer epilogues than this allows, hand-written ones take more.
    """

    ops: int
    kernels: int
    fused: int
    heavy: tuple[str, ...]
    syncs: tuple[str, ...]
    host_made: tuple[str, ...]


def count_kernels(call: Callable[[], object], device: torch.device | str) -> KernelCount:
    """Run `call`, whose tensors live on `device`, in inference mode, and count what it dispatches.

    On the CPU, only tensors made from Python numbers are known to be made on the host; on the meta device all are.
    """
    trace = _Trace(torch.device(device))
    with torch.inference_mode(), trace:
        call()
    return KernelCount(
        trace.ops,
        len(trace.kinds),
        trace.kinds.count("heavy") + _groups_apart(trace),
        tuple(name for name, kind in zip(trace.names, trace.kinds, strict=True) if kind == "heavy"),
        tuple(trace.syncs),
        tuple(trace.host_made),
    )


# --- the trace -----------------------------------------------------------------------------------------------------

_NO_KERNEL = {"_unsafe_view", "_reshape_alias", "detach", "lift_fresh", "lift_fresh_copy"}
_NO_KERNEL |= {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}

# Torch writes it out where there is no kernel for it; a GPU has one.
_ONE_KERNEL = {"scaled_dot_product_attention"}

_WAITING = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}

_CONSTANT = {"arange", "zeros", "ones", "full", "eye", "scalar_tensor", "linspace", "tril_indices", "triu_indices"}

# Pointwise in what they write, and fused as such by a compiler, though torch does not tag them.
_LIGHT = _CONSTANT | {"clone", "copy", "copy_", "_to_copy", "cat", "stack", "flip", "roll", "repeat", "fill", "fill_"}
_LIGHT |= {"zero_", "zeros_like", "ones_like", "full_like", "new_zeros", "new_full", "new_ones", "constant_pad_nd"}
_LIGHT |= {"embedding", "index", "index_select", "gather", "tril", "triu", "expand_copy", "slice_scatter"}
_LIGHT |= {"select_scatter", "as_strided_scatter", "unfold_copy", "repeat_interleave"}


@dataclass
class _Trace(TorchDispatchMode):
    """Names and kinds of the kernels in order, and for each the kernels whose results it reads."""

    device: torch.device
    ops: int = 0
    names: list[str] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    reads: list[set[int]] = field(default_factory=list)
    syncs: list[str] = field(default_factory=list)
    host_made: list[str] = field(default_factory=list)
    _writer: dict[int, int] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if func._can_decompose() and name not in _ONE_KERNEL:  # one name for several operations
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.ops += 1
        if name in _WAITING or _reads_a_mask(name, given) or len({leaf.device for leaf in [*given, *made]}) > 1:
            self.syncs.append(name)
        if name.startswith("lift_fresh") or (name in _CONSTANT and any(leaf.device != self.device for leaf in made)):
            self.host_made.append(name)
        if not _is_view(func, name):
            self._add(name, "light" if _is_light(func, name) else "heavy", given, made)
        self._alive += made  # or a later tensor could have the same identity
        return out

    def _add(self, name: str, kind: Kind, given: list[Tensor], made: list[Tensor]) -> None:
        self.reads.append({self._writer[key] for key in map(_memory, given) if key in self._writer})
        for tensor in made:
            self._writer[_memory(tensor)] = len(self.kinds)
        self.names.append(name)
        self.kinds.append(kind)


def _memory(tensor: Tensor) -> int:
    """What a tensor has in common with its views."""
    return tensor.untyped_storage()._cdata


def _is_view(func: OpOverload, name: str) -> bool:
    returns = [given.alias_info for given in func._schema.returns]
    views = bool(returns) and all(alias is not None and not alias.is_write for alias in returns)
    return views or name in _NO_KERNEL


def _is_light(func: OpOverload, name: str) -> bool:
    return torch.Tag.pointwise in func.tags or name in _LIGHT


def _reads_a_mask(name: str, given: list[Tensor]) -> bool:
    """Indexing by a boolean tensor: how much comes out, only the device knows."""
    return name.startswith("index") and any(leaf.dtype == torch.bool for leaf in given[1:])


# --- the rule ------------------------------------------------------------------------------------------------------


def _groups_apart(trace: _Trace) -> int:
    """Connected groups of light kernels that neither follow nor precede a heavy one."""
    group = list(range(len(trace.kinds)))
    touches_heavy = [False] * len(group)

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    for index, (kind, reads) in enumerate(zip(trace.kinds, trace.reads, strict=True)):
        for other in reads:
            if kind == trace.kinds[other] == "light":
                one, two = root(index), root(other)
                group[one] = two
                touches_heavy[two] |= touches_heavy[one]
            elif kind != trace.kinds[other]:
                touches_heavy[root(index if kind == "light" else other)] = True
    return sum(
        kind == "light" and group[index] == index and not touches_heavy[index] for index, kind in enumerate(trace.kinds)
    )
