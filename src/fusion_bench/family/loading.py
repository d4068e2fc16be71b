"""A checkpoint's tensors inside a module of transformers, each accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fusion_bench.errors import CheckpointError
from fusion_bench.family.base import Advance
from fusion_bench.family.ties import Ties
from fusion_bench.parallel import ordered_map

if TYPE_CHECKING:
    import torch

    from fusion_bench.checkpoint.base import Checkpoint

Build = Callable[[Mapping[str, Any], dict[str, "torch.Tensor"], "torch.dtype"], Any]
"""From config.json, tensors by the names of the file, and the dtype they are in to a module that holds them."""

# BART-like files may leave it out; the architecture's value, zero, then holds.
_OPTIONAL = frozenset({"final_logits_bias"})
# The attribute of a module under which the names in its file are kept.
_NAMES = "fusion_bench_checkpoint_names"


def of_transformers(name: str) -> Build:
    """Makes the class of transformers called `name`."""

    def build(plain: Mapping[str, Any], state: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
        import transformers

        return _filled(getattr(transformers, name), _config(plain), state, dtype)

    return build


def of_mapping(name: str) -> Build:
    """Makes the class that a mapping of transformers, such as ``MODEL_FOR_..._MAPPING``, has for the config."""

    def build(plain: Mapping[str, Any], state: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
        import transformers

        config = _config(plain)
        kinds: Any = getattr(transformers, name)[type(config)]
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        asked = plain.get("architectures") or []
        return _filled(next((k for k in kinds if k.__name__ in asked), kinds[0]), config, state, dtype)

    return build


_SEQ2SEQ = of_mapping("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING")


def module_of(
    checkpoint: Checkpoint,
    ties: Ties,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
    advance: Advance | None,
    build: Build = _SEQ2SEQ,
) -> torch.nn.Module:
    """A module with the checkpoint's values; one copy of them exists at the end, and at no time two."""
    names = _own_names(checkpoint, ties)
    # A file may keep the shared embedding under the encoder's name; transformers asks for its own.
    state = {
        ties.always.get(name, name): tensor for name, tensor in _tensors(checkpoint, names, threads, advance, dtype)
    }
    module = build(checkpoint.config, state, dtype)
    _separate(module, state, ties)
    _note_names(module, state)
    del state
    _verify(module, checkpoint, names)
    loaded: torch.nn.Module = module.to(device).eval().requires_grad_(False)
    return loaded


def fill(module: Any, checkpoint: Checkpoint, ties: Ties, threads: int, advance: Advance | None) -> None:
    """Overwrites the values of a module that `module_of` made from a checkpoint of the same names and shapes."""
    import torch

    names = _own_names(checkpoint, ties)
    held = _verify(module, checkpoint, names)
    targets = {name: held[inside] for name, inside in _places(module, names).items() if inside in held}
    kept = [name for name in names if name in targets]
    with torch.no_grad():
        for name, tensor in _tensors(checkpoint, kept, threads, advance):
            targets[name].copy_(tensor)


def _own_names(checkpoint: Checkpoint, ties: Ties) -> list[str]:
    copies = ties.resolve(checkpoint.infos)
    return [name for name in checkpoint.infos if name not in copies]


def _tensors(
    checkpoint: Checkpoint,
    names: list[str],
    threads: int,
    advance: Advance | None,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    def read(name: str) -> torch.Tensor:
        tensor = checkpoint[name]
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    for name, tensor in zip(names, ordered_map(read, names, threads), strict=True):
        if advance is not None:
            advance(checkpoint.infos[name].nbytes)
        yield name, tensor


def _config(plain: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    values = {key: value for key, value in plain.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(str(plain.get("model_type")), **values)
    except Exception as fault:  # transformers validates configs with several exception types
        raise CheckpointError(f"transformers cannot read the model's config.json: {fault}") from fault


def _filled(kind: Any, config: Any, state: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    with _quiet():
        # Sizes that do not fit are let pass here and listed, every one, by _verify.
        return kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, ignore_mismatched_sizes=True)


def _separate(module: Any, state: Mapping[str, torch.Tensor], ties: Ties) -> None:
    """Undoes ties that transformers made between names which the file stores apart."""
    import torch

    for alias, target in ties.when_absent.items():
        if alias not in state or target not in state:
            continue
        if module.get_parameter(alias) is module.get_parameter(target):
            owner, _, leaf = alias.rpartition(".")
            setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(state[alias], requires_grad=False))
        # What readers of a model saved from this module go by. T5's output scale is a setting of its own.
        module.config.tie_word_embeddings = False


def checkpoint_names(module: torch.nn.Module) -> Mapping[str, str]:
    """Names inside a module that `module_of` made -> names in its checkpoint, for those that differ.

    transformers renames some files when it reads them, and back when it writes.
    """
    found: Mapping[str, str] = getattr(module, _NAMES, {})
    return found


def _note_names(module: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Keeps at the module which of its tensors those are that no longer go by the name in the file."""
    held: dict[str, torch.Tensor] = module.state_dict(keep_vars=True)
    moved = {tensor.data_ptr(): name for name, tensor in state.items() if name not in held and tensor.numel()}
    names = {name: moved[tensor.data_ptr()] for name, tensor in held.items() if tensor.data_ptr() in moved}
    if names:
        setattr(module, _NAMES, names)


def _places(module: torch.nn.Module, names: list[str]) -> dict[str, str]:
    """Name in the file -> name inside the module."""
    inside = {stored: name for name, stored in checkpoint_names(module).items()}
    return {name: inside.get(name, name) for name in names}


def _verify(module: Any, checkpoint: Checkpoint, names: list[str]) -> dict[str, torch.Tensor]:
    """The module's tensors by name, once it is certain that each has a value in the file and the other way round."""
    from fusion_bench.family import family_of

    held: dict[str, torch.Tensor] = module.state_dict(keep_vars=True)
    places = _places(module, names)
    reached = {id(held[place]) for place in places.values() if place in held}
    faults = [
        f"tensor {name!r} has no place in {type(module).__name__}"
        for name, place in places.items()
        if place not in held and name not in family_of(checkpoint.config).unread
    ]
    faults += [
        f"tensor {name!r} of {type(module).__name__} is missing"
        for name, tensor in held.items()
        if id(tensor) not in reached and name not in _OPTIONAL
    ]
    faults += [
        f"tensor {name!r} has the shape {checkpoint.infos[name].shape}, its place {tuple(held[place].shape)}"
        for name, place in places.items()
        if place in held and checkpoint.infos[name].shape != tuple(held[place].shape)
    ]
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise CheckpointError(f"the checkpoint is not what its config.json describes:\n{listed}")
    return held


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar and notes on standard error: what they warn of is checked here."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
