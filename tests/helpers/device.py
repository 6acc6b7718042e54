"""What a GPU would forbid or do, on a CPU: reads of a device's values, a step replayed from a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {  # operations whose result, or its shape, the host needs
    *("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "bincount"),
    *("unique_consecutive", "allclose", "item", "repeat_interleave.Tensor"),
}
HOST_METHODS = {
    getattr(Tensor, name)
    for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")
}
UNINITIALISED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def get_name(function: Any) -> str:
    """Return the name of an operation of torch, without its overload."""
    return str(function.overloadpacket.__name__)


class OperationRecorder(TorchDispatchMode):
    """Collects the names of the operations that run, those of gradients included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(get_name(function))
        is_mask = get_name(function).startswith("index") and any(x.dtype == torch.bool for x in list_tensors(args[1:2]))
        if get_name(function) in READS or str(function).removeprefix("aten.") in READS or is_mask:
            raise AssertionError(f"{function} would wait for the device")
        return function(*args, **(kwargs or {}))


class _HostMethodGuard(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in HOST_METHODS:
            raise AssertionError(f"{function} would wait for the device")
        return function(*args, **(kwargs or {}))


@contextmanager
def forbid_host_reads() -> Iterator[OperationRecorder]:
    """Fail where the host reads a value of a tensor, as if all tensors were on a GPU."""
    with _HostMethodGuard(), OperationRecorder() as recorder:
        yield recorder


class Recording(TorchDispatchMode):
    """The operations of a step in their order, with the tensors that they read and wrote, as a CUDA graph has them.

    What is computed on the host is not in it: a number that was read from there is the same in every replay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept: an address must not be used twice
        self.saved: dict[int, torch.UntypedStorage] = {}  # of tensors from before the recording

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for key, storage in self._find_new_storages((args, kwargs)):
            self.saved[key] = storage.clone()
        result = function(*args, **(kwargs or {}))
        self._find_new_storages(result)
        self.calls.append((function, args, kwargs or {}, list_tensors(result)))
        return result

    def _find_new_storages(self, values: Any) -> list[tuple[int, torch.UntypedStorage]]:
        storages = {storage._cdata: storage for storage in (value.untyped_storage() for value in list_tensors(values))}
        new = [(key, storage) for key, storage in storages.items() if key not in self.storages]
        self.storages |= dict(new)
        return new

    def undo(self) -> None:
        """Restore the tensors from before the recording: a capture runs nothing."""
        for key, storage in self.saved.items():
            self.storages[key].copy_(storage)

    @torch.no_grad()
    def replay(self) -> None:
        """Run all operations again, into the same tensors."""
        for function, args, kwargs, targets in self.calls:
            is_alias = any(value.alias_info for value in function._schema.returns)
            if get_name(function) in UNINITIALISED or (is_alias and not function._schema.is_mutable):
                continue  # a view, whose values follow
            results = list_tensors(function(*args, **kwargs))
            for target, value in zip(targets, results, strict=True):
                if not is_alias:
                    target.copy_(value)


def list_tensors(values: Any) -> list[Tensor]:
    """Return the tensors in nested containers."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def capture_on_cpu(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Record a step and leave no trace of having run it, as the capture of a CUDA graph."""
    random_state = torch.get_rng_state()
    with Recording() as recording:
        output = step()
    recording.undo()
    torch.set_rng_state(random_state)
    return recording.replay, output
