"""The tensors of a whole pickled module, read without importing or running anything that its file names."""

from __future__ import annotations

import pickle
import sys
import tarfile
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fusion_bench.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# What a file may really make, beside storages: tensors and plain containers.
_REBUILDERS: Final = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
                      "_rebuild_parameter_with_state")  # fmt: skip
_CONTAINERS: Final[Mapping[str, type]] = {"set": set, "frozenset": frozenset, "dict": dict, "list": list}
# Names of the standard library that modules are pickled with. They become stand-ins like all other names; the rest of
# it (os, subprocess, sys, ...) has no place in a network, so a file that names it is refused.
_USUAL: Final = frozenset({"collections", "functools", "enum", "copyreg", "pathlib", "_codecs", "types"})
_HOSTILE_BUILTINS: Final = frozenset({
    "eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint", "globals", "locals", "vars",
    "setattr", "delattr", "apply", "file",
})  # fmt: skip


class StandIn:
    """In the place of an object whose class is not known: it takes every state and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Entries of unknown containers are not kept."""

    def append(self, item: Any) -> None:
        """Items of unknown containers are not kept."""

    def extend(self, items: Any) -> None:
        """Items of unknown containers are not kept."""

    def add(self, item: Any) -> None:
        """Items of unknown containers are not kept."""


def load_module_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of the module that was pickled whole into `path`.

    Classes and functions that the file names are never looked up: each becomes an inert stand-in, a call of it makes
    an empty object, and the names, shapes and values of the tensors are collected from the state that torch gave every
    module. Real are only tensors, OrderedDict, dict, list and sets. CheckpointError where the file names what could
    only do harm (``os.system``, ``builtins.eval``), is a TorchScript archive, or holds no module.
    """
    import torch

    _refuse_formats(path)
    unpickling: Any = ModuleType("restricted_pickle")
    unpickling.Unpickler, unpickling.load = _Restricted, lambda file, **_: _Restricted(file).load()
    try:
        # Files from before torch 1.6 are no archives and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        found = torch.load(path, map_location="cpu", weights_only=False, pickle_module=unpickling, mmap=mapped)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as a module ({type(error).__name__}: {first}).") from None
    state = dict(_tensors(found, "", ()))
    if not state:
        raise CheckpointError(f"{path}: holds a {_kind(found)}, in which there are no parameters of a module.")
    return state


class _Restricted(pickle.Unpickler):
    """Looks nothing up but the few names that make tensors and containers."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        # Older protocols name the standard library as Python 2 did.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        if module == "torch._utils" and name in _REBUILDERS and hasattr(torch._utils, name):
            rebuild = getattr(torch._utils, name)
            # A file can set attributes of what it is given: let them be those of a copy.
            return lambda *parts: rebuild(*parts)
        if (module, name) == ("torch", "Size"):
            return torch.Size
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "builtins" and name in _CONTAINERS:
            return _CONTAINERS[name]
        _refuse_hostile(module, name)
        return type(name, (StandIn,), {"__module__": module})


def _refuse_hostile(module: str, name: str) -> None:
    top = module.partition(".")[0]
    library = top in sys.stdlib_module_names or top in ("nt", "posix")
    if name in _HOSTILE_BUILTINS if top == "builtins" else library and top not in _USUAL:
        _refuse(f"{module}.{name}")


def _refuse(name: str) -> NoReturn:
    raise CheckpointError(
        f"names {name}, which no network needs and an attack would. It was not run; nothing is read from this file. "
        "Take the weights from a source you trust, as safetensors."
    )


def _refuse_formats(path: Path) -> None:
    """Files that torch reads by other ways than a pickle: TorchScript is a program, archives of tar are unpacked."""
    if tarfile.is_tarfile(path):
        raise CheckpointError(f"{path}: is a tar archive, as torch wrote before version 0.1.10. It is not unpacked.")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("constants.pkl") for name in archive.namelist()):
            raise CheckpointError(f"{path}: is a TorchScript archive, which is a program. It is not run.")


def _tensors(found: Any, prefix: str, above: tuple[int, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name -> tensor, in the order of ``state_dict()``: parameters, lasting buffers, then the modules inside."""
    state = found.state if isinstance(found, StandIn) else None
    if not isinstance(state, Mapping) or "_parameters" not in state or id(found) in above:
        return
    passing = state.get("_non_persistent_buffers_set") or ()
    for group, left_out in (("_parameters", ()), ("_buffers", passing)):
        for name, tensor in _entries(state.get(group), prefix + group).items():
            if tensor is not None and name not in left_out:
                yield prefix + name, _tensor(tensor, prefix + name)
    for name, inner in _entries(state.get("_modules"), f"{prefix}_modules").items():
        yield from _tensors(inner, f"{prefix}{name}.", (*above, id(found)))


def _entries(group: Any, where: str) -> Mapping[str, Any]:
    if group is None:
        return {}
    if not isinstance(group, Mapping) or not all(isinstance(name, str) for name in group):
        raise CheckpointError(f"the module's {where} is a {_kind(group)}, not a mapping from name to tensor or module.")
    return group


def _tensor(value: Any, name: str) -> torch.Tensor:
    import torch

    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{name} is a {_kind(value)}, not a tensor.")
    return value.detach()


def _kind(found: Any) -> str:
    kind = type(found)
    return f"{kind.__module__}.{kind.__name__}" if isinstance(found, StandIn) else kind.__name__
