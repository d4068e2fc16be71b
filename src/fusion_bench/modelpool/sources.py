"""Where pools come from: a folder of models, a list of names, the package itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fusion_bench.build import hyper
from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.hub import resolve
from fusion_bench.checkpoint.open import is_adapter_folder, is_model_folder
from fusion_bench.errors import CheckpointError, ConfigError, MissingModelError, unknown
from fusion_bench.family.parts import PartName
from fusion_bench.modelpool.base import BASE, ModelPool, Opened
from fusion_bench.modelpool.members import Member, Reading, adapter_base_of, headless, member, open_member, with_ties

Select = tuple[str, ...] | None
# Member -> its folder in the published task vectors.
_TASK_FOLDERS = {
    "sun397": "SUN397", "stanford-cars": "Cars", "resisc45": "RESISC45", "eurosat": "EuroSAT", "svhn": "SVHN",
    "gtsrb": "GTSRB", "mnist": "MNIST", "dtd": "DTD",
}  # fmt: skip
_PART = "what of full models is fused: vision takes the image encoder of a CLIP; null takes everything"
_HEADS = "leave the classification heads out of the fusion: each task keeps its own"


@dataclass(frozen=True)
class FolderPool:
    """A folder that holds ``base/`` and one folder per expert, full models or adapters; names are the folders', sorted.

    A member is a sub-folder with config.json and weights, or with adapter_config.json; hidden folders are none.
    Without ``base/``, adapters bring the base they name, and full models form a pool without a base.
    """

    path: str = hyper("", "the folder")
    select: Select = hyper(None, "the members to take, in this order; null takes all")
    tokenizer: str | None = hyper(None, "folder or Hub name of the tokenizer; null takes the models' own")
    part: PartName = hyper(None, _PART)
    own_heads: bool = hyper(False, _HEADS)

    def open(self) -> ModelPool:
        if not self.path:
            raise ConfigError("modelpool.path is missing: the folder that holds base/ and one folder per expert.")
        root = Path(self.path).expanduser()
        if not root.is_dir():
            kind = "a file" if root.exists() else "missing"
            raise ConfigError(f"modelpool.path={self.path}: {kind}. Give a folder that holds base/ and the experts.")
        reading = Reading(self.part, self.own_heads)
        return ModelPool(**_open_folder(root, self.select, self.tokenizer, str(root), reading))


@dataclass(frozen=True)
class EmbeddedPool:
    """A miniature pool that the package brings along, to be used offline."""

    name: Literal["mini_t5_glue_lora16", "mini_clip_vision"] = hyper("mini_t5_glue_lora16", "which one")
    select: Select = hyper(None, "the members to take, in this order; null takes all")
    tokenizer: str | None = hyper(None, "folder or Hub name of the tokenizer; null takes the pool's own")
    part: PartName = hyper(None, _PART)
    own_heads: bool = hyper(False, _HEADS)

    def open(self) -> ModelPool:
        import fusion_bench.zoo

        root = Path(fusion_bench.zoo.__file__).parent / self.name
        if not root.is_dir():
            raise ConfigError(f"modelpool.name={self.name}: this installation does not bring the pool along.")
        reading = Reading(self.part, self.own_heads)
        return ModelPool(**_open_folder(root, self.select, self.tokenizer, self.name, reading))


@dataclass(frozen=True)
class ListedPool:
    """Models by name, each a path or Hub name; the base is called ``_pretrained_``.

    `models` is a mapping from name to path (or to ``{path, revision}``), or a list of ``{name, path}``.
    """

    models: Any = hyper(None, "name -> path or {path, revision}; or a list of {name, path}")
    select: Select = hyper(None, "the members to take, in this order; null takes all")
    tokenizer: str | None = hyper(None, "folder or Hub name of the tokenizer; null takes the models' own")
    part: PartName = hyper(None, _PART)
    own_heads: bool = hyper(False, _HEADS)

    def open(self) -> ModelPool:
        return ModelPool(**self.arguments())

    def arguments(self) -> dict[str, Any]:
        """What :class:`ModelPool` is made with."""
        members = _members(self.models)
        base = members.pop(BASE, None)
        chosen = _select(members, self.select)
        if not chosen and base is None:
            raise ConfigError("modelpool.models is empty: give at least one model, as in {cola: PATH}.")
        reading = Reading(self.part, self.own_heads)
        return _pool(chosen, base, "modelpool.models", self.tokenizer, None, reading)


@dataclass(frozen=True)
class TaskVectorsPool:
    """OpenCLIP image encoders in the layout of the published task vectors (arXiv 2212.04089).

    ``<path>/<model>/zeroshot.pt`` is the base, ``<path>/<model>/SUN397/finetuned.pt`` and so on are the experts: state
    dicts, or whole pickled modules where `pickled_modules` allows it; the same as ``.safetensors`` comes first. What
    the files hold for texts is left out.
    """

    path: str = hyper("", "the folder that holds ViT-B-32/, ViT-B-16/ or ViT-L-14/")
    model: Literal["ViT-B-32", "ViT-B-16", "ViT-L-14"] = hyper("ViT-B-32", "which architecture")
    select: Select = hyper(None, "the members to take, in this order; null takes all eight")
    hidden_act: Literal["quick_gelu", "gelu"] = hyper("quick_gelu", "activation; no file tells; OpenAI's: quick_gelu")
    pickled_modules: bool = hyper(False, "read the tensors of whole pickled modules; their code is never run")

    def open(self) -> ModelPool:
        if not self.path:
            raise ConfigError("modelpool.path is missing: the folder that holds ViT-B-32/ and the like.")
        root = Path(self.path).expanduser()
        if not root.is_dir():
            kind = "a file" if root.exists() else "missing"
            raise ConfigError(f"modelpool.path={self.path}: {kind}. Give the folder that holds {self.model}/.")
        folder = root / self.model
        chosen = _select({name: Member(str(folder / place)) for name, place in _TASK_FOLDERS.items()}, self.select)
        return ModelPool(
            {name: partial(self._tower, Path(entry.path), "finetuned") for name, entry in chosen.items()},
            partial(self._tower, folder, "zeroshot"),
            name=str(folder),
            folder=folder,
        )

    def _tower(self, folder: Path, stem: str) -> Checkpoint:
        from fusion_bench.checkpoint.pickle import PickleCheckpoint
        from fusion_bench.checkpoint.safetensors import SafetensorsCheckpoint
        from fusion_bench.family.open_clip import MODEL_TYPE

        config = {"model_type": MODEL_TYPE, "hidden_act": self.hidden_act}
        safe, pickled = folder / f"{stem}.safetensors", folder / f"{stem}.pt"
        if safe.is_file():
            return with_ties(SafetensorsCheckpoint(safe, config=config))
        if pickled.is_file():
            return with_ties(PickleCheckpoint(pickled, config=config, pickled_modules=self.pickled_modules))
        raise CheckpointError(
            f"{folder}: holds neither {safe.name} nor {pickled.name}. Fetch it, or choose others with modelpool.select."
        )


def _members(models: Any) -> dict[str, Member]:
    if isinstance(models, Mapping):
        found = {str(name): member(value, f"modelpool.models.{name}") for name, value in models.items()}
    elif isinstance(models, Sequence) and not isinstance(models, str):
        found = {}
        for index, item in enumerate(models):
            where = f"modelpool.models.{index}"
            if not isinstance(item, Mapping):
                item = {"path": item}
            name = str(item.get("name") or Path(str(item.get("path", index))).name)
            if name in found:
                raise ConfigError(f"{where}.name={name}: the name is taken. Each model needs its own.")
            found[name] = member({key: value for key, value in item.items() if key != "name"}, where)
    else:
        raise ConfigError("modelpool.models is missing: a mapping from name to path, or a list of {name, path}.")
    for name, entry in found.items():
        if not entry.path:
            raise ConfigError(f"modelpool.models.{name}.path is missing: a folder, a file or a Hub name.")
    return found


def _open_folder(root: Path, select: Select, tokenizer: str | None, name: str, reading: Reading) -> dict[str, Any]:
    members: dict[str, Member] = {}
    broken = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if is_model_folder(folder) or is_adapter_folder(folder):
            members[folder.name] = Member(str(folder))
        elif (folder / "config.json").is_file() and (select is None or folder.name in (*select, "base")):
            broken.append(folder.name)
    if broken:
        raise CheckpointError(
            f"{root}: {', '.join(broken)} hold a config.json but no weights (model.safetensors, its shards, or "
            "pytorch_model.bin). Fetch them again, or move these folders out of the pool."
        )
    base = members.pop("base", None)
    if not members and base is None:
        raise ConfigError(
            f"modelpool.path={root}: no models in it. A pool holds base/ and one folder per expert, each with "
            "config.json and weights, or with adapter_config.json."
        )
    return _pool(_select(members, select), base, name, tokenizer, root, reading)


def _select(members: Mapping[str, Member], select: Select) -> dict[str, Member]:
    if select is None:
        return dict(members)
    strangers = [name for name in select if name not in members]
    if strangers:
        raise ConfigError("\n".join(unknown("member", name, members, "modelpool.select") for name in strangers))
    twice = sorted({name for name in select if select.count(name) > 1})
    if twice:
        raise ConfigError(f"modelpool.select: {', '.join(twice)} more than once. Name each member once.")
    return {name: members[name] for name in select}


def _pool(
    members: Mapping[str, Member],
    base: Member | None,
    name: str,
    tokenizer: str | None,
    folder: Path | None,
    reading: Reading,
) -> dict[str, Any]:
    """The arguments of the ModelPool: adapters open over the pool's one base, which is opened at most once."""
    from fusion_bench.family.parts import check_same_kind

    base = _named_by_adapters(members) if base is None else base
    opened = Opened({} if base is None else {BASE: partial(_open_base, base, reading)})
    under = partial(opened.__getitem__, BASE) if opened else None

    def opener(key: str, entry: Member) -> Checkpoint:
        model = open_member(entry.path, entry.revision, under, reading.part)
        if under is not None:
            check_same_kind(model, under)
        return headless(key, model) if reading.own_heads else model

    def base_opener(whole: Callable[[], Checkpoint]) -> Checkpoint:
        return headless("the base", whole()) if reading.own_heads else whole()

    return {
        "models": {key: partial(opener, key, entry) for key, entry in members.items()},
        "base": None if under is None else partial(base_opener, under),
        "name": name,
        "tokenizer": tokenizer,
        "folder": folder,
    }


def _named_by_adapters(members: Mapping[str, Member]) -> Member | None:
    """The base that the adapters among the members name; None where there are none."""
    named: dict[tuple[str, str | None], list[str]] = {}
    for name, entry in members.items():
        try:
            found = Path(resolve(entry.path, entry.revision).folder)
        except CheckpointError:
            continue  # said when the member is opened, with all others that are missing
        if found.is_dir() and is_adapter_folder(found) and not is_model_folder(found):
            named.setdefault(adapter_base_of(found), []).append(name)
    if len(named) > 1:
        lines = [f"  {path}: {', '.join(names)}" for (path, _), names in named.items()]
        raise ConfigError(
            "the adapters of the pool name different bases:\n" + "\n".join(lines) + "\nPut the right one into the pool "
            "as base/ (or as `_pretrained_`), or choose members with modelpool.select."
        )
    if not named:
        return None
    (path, revision), _ = next(iter(named.items()))
    return Member(path, revision)


def _open_base(entry: Member, reading: Reading) -> Checkpoint:
    try:
        return open_member(entry.path, entry.revision, part=reading.part)
    except MissingModelError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"base: {error}") from error
