"""A job that is checked and ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.cli.adapters import adapter_lines, adapter_values
from fusion_bench.cli.data_use import data_line, data_values, facts_of, files_read
from fusion_bench.cli.job import Job, canonical, place, shard_bytes, size_bytes
from fusion_bench.cli.preflight import forecast
from fusion_bench.errors import ConfigError

if TYPE_CHECKING:
    from fusion_bench.checkpoint.base import Checkpoint, TensorInfo
    from fusion_bench.method.base import Fused, Inputs, ModelFusionAlgorithm
    from fusion_bench.modelpool.base import ModelPool
    from fusion_bench.progress import Progress
    from fusion_bench.taskpool.base import TaskPool

_FILE_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}


@dataclass(frozen=True)
class Plan:
    """A job with its method, its pool and its task pool, all checked."""

    job: Job
    overrides: Sequence[str]
    method: ModelFusionAlgorithm
    pool: ModelPool
    taskpool: TaskPool
    pool_key: str
    task_key: str

    def __post_init__(self) -> None:
        if self.job.dtype == "float16" and self.taskpool.tasks:
            raise ConfigError(
                "dtype=float16: evaluation overflows in float16 (text-to-text models do). Take float32 or bfloat16; "
                "to write a float16 model, use taskpool=dummy."
            )

    @property
    def references(self) -> bool:
        """Whether the base and the experts are to be measured beside the fused model."""
        return bool(getattr(self.taskpool, "references", False))

    @property
    def output_dtype(self) -> str | None:
        """Floating dtype of the fused model, in safetensors spelling; None keeps the base's."""
        return _FILE_DTYPES.get(self.job.dtype)

    @property
    def label(self) -> str:
        """The row's name: what was swept, else the method and what of it was changed."""
        if self.overrides:
            short = [o.lstrip("+").removeprefix("method=").removeprefix("method.") for o in self.overrides]
            return " ".join(word for word in short if not word.startswith("save_"))
        default = {f.name: f.default for f in fields(self.method)}
        changed = [
            f"{name}={_short(value)}"
            for name, value in self.method.plain().items()
            if name != "name" and (name == "scaling_factor" or getattr(self.method, name) != default[name])
        ]
        return " ".join([self.method.key(), *changed])

    @cached_property
    def data_facts(self) -> dict[str, dict[str, Any]]:
        """What the method looks at, by task; nothing for methods that look at no data."""
        return facts_of(self)

    def tokenizers(self) -> list[str | Path]:
        """Where the tokenizer is looked for, best first: the pool's own choice, else the model's folder, the base's."""
        if self.pool.tokenizer:
            return [self.pool.tokenizer]
        members = [self.pool.reference] if not self.method.reads_models else []
        if self.pool.base is not None:
            members.append(self.pool.base)
        if self.method.reads_models:
            members += list(self.pool.models.values())
        return [member.folder for member in members if member.folder is not None]

    @property
    def heads(self) -> Mapping[str, Checkpoint] | None:
        """The models' own heads where the pool keeps them apart from what is fused."""
        return self.pool.heads if self.job.modelpool.get("own_heads") else None

    def device(self) -> str:
        """Where evaluation runs: ``auto`` resolved."""
        if not self.taskpool.tasks:
            return "cpu"
        from fusion_bench.taskpool.placement import device_of

        return str(device_of(self.job.settings))

    @property
    def merge_device(self) -> str:
        """Where slices are computed: a GPU only where it is asked for by name, since its sums round differently."""
        return self.job.device if self.job.device.partition(":")[0] in ("cuda", "mps") else "cpu"

    @property
    def budget(self) -> int:
        """Bytes of anonymous memory that the merge may take."""
        return size_bytes(self.job.memory_budget, "memory_budget")

    def merge_inputs(self) -> Inputs:
        """What the method is given, checked against the method and the memory budget. Reads headers only."""
        from fusion_bench.api import inputs_of

        job = self.job
        return inputs_of(
            self.method, self.pool, job.seed, job.threads, self.output_dtype, None, self.budget, self.merge_device
        )

    def fuse(self, progress: Progress) -> Fused:
        """The fusion, lazy where it can be."""
        from fusion_bench.api import fuse_pool

        job = self.job
        return fuse_pool(
            self.method, self.pool, seed=job.seed, threads=job.threads, dtype=self.output_dtype, progress=progress,
            budget=self.budget, device=self.merge_device,
        )  # fmt: skip

    def result_bytes(self) -> int:
        """The size of the fused tensors."""
        from fusion_bench.checkpoint.base import DTYPE_BYTES

        size = DTYPE_BYTES[self.output_dtype] if self.output_dtype else None
        infos = self._result_infos().values()
        return sum(i.numel * size if size and i.floating else i.nbytes for i in infos)

    def _result_infos(self) -> Mapping[str, TensorInfo]:
        """Header facts of the result: the reference's, unless the method picks or changes whole checkpoints."""
        from fusion_bench.method.base import CheckpointMethod

        if not isinstance(self.method, CheckpointMethod):
            return self.pool.reference.infos
        return self.method.transform(self.merge_inputs()).infos

    def inputs(self, digests: bool = True) -> dict[str, Any]:
        """What tells these inputs from others: Hub commit, or size, time and header digest of each file."""
        members: dict[str, Any] = {}
        if self.pool.base is not None:
            members["_pretrained_"] = self.pool.base.identity
        if self.method.reads_models:
            members.update({name: model.identity for name, model in self.pool.models.items()})
        elif self.pool.base is None:
            members[next(iter(self.pool.models))] = self.pool.reference.identity
        if self.job.digests and digests:
            from fusion_bench.report.digests import with_digests

            members = with_digests(members)
        return members

    def origin(self) -> dict[str, Any]:
        """Everything that decides the bytes of the saved model: by it a command knows its own output."""
        from fusion_bench import __version__
        from fusion_bench.checkpoint.companions import companion_files
        from fusion_bench.checkpoint.digests import digest
        from fusion_bench.checkpoint.sealed import plain

        reference = self.pool.reference
        files = {name: digest(path.read_bytes()).hex() for name, path in companion_files(reference.folder).items()}
        found: dict[str, Any] = plain(
            {
                "fusion_bench": __version__,
                "method": self.method.plain(),
                "seed": self.job.seed,
                "device": self.merge_device,
                "dtype": self.output_dtype,
                "shard_bytes": shard_bytes(self.job.shard_size),
                "inputs": [{"name": name, **placed(each)} for name, each in self.inputs(digests=False).items()],
                "config": digest(canonical(dict(reference.config)).encode()).hex(),
                "files": files,
                **adapter_values(self.job),
                **data_values(self),
                **files_read(self.method.plain()),
            }
        )
        return found

    def input_paths(self) -> list[Path]:
        """The local folders and files that the run reads, adapters' bases included."""
        found: list[Path] = []

        def visit(node: Any) -> None:
            if isinstance(node, Mapping):
                if isinstance(node.get("path"), str):
                    found.append(Path(node["path"]))
                for value in node.values():
                    visit(value)

        visit(self.inputs(digests=False))
        return found

    def describe(self) -> str:
        """What would be done, for ``dry_run=true``."""
        method = {key: value for key, value in self.method.plain().items() if key != "name"}
        lines = [f"method     {self.method.key()} {_shown(method)}".rstrip()]
        base = "with a base" if self.pool.base is not None else "without a base"
        lines.append(f"modelpool  {self.pool.name}: {len(self.pool.models)} models, {base}")
        if self.method.reads_models:
            alignment = self.pool.alignment
            entries = sum(alignment.infos[name].numel for name in alignment.names)
            lines.append(f"tensors    {len(alignment.names)} of {entries:,} entries, all models align")
        lines.append(f"taskpool   {', '.join(self.taskpool.tasks) or 'dummy (counts parameters)'}")
        if self.data_facts:
            lines.append(data_line(self).replace("data: ", "data       "))
        lines += forecast(self)
        lines += adapter_lines(self)
        report = place(self.job.save_report)
        if report is not None:
            lines.append(f"would save {report}")
        lines.append("dry run: nothing was computed or written")
        return "\n".join(lines)


def placed(identity: Any) -> Any:
    """An identity without the paths of this machine, since outputs are published: a model of the Hub is known by name
    and commit, a folder by its name and a digest of where it lies."""
    from fusion_bench.checkpoint.digests import digest

    if isinstance(identity, (list, tuple)):
        return [placed(each) for each in identity]
    if not isinstance(identity, Mapping):
        return identity
    found = {key: placed(value) for key, value in identity.items() if key != "path"}
    if not isinstance(identity.get("path"), str):
        return found
    real = Path(identity["path"]).resolve()
    cached = next((part for part in real.parts if part.startswith("models--")), None)
    if cached is None or not identity.get("commit"):
        return {"folder": real.name, "place": digest(str(real).encode()).hex(), **found}
    files = [{key: value for key, value in file.items() if key != "mtime_ns"} for file in found.get("files", ())]
    return {"model": cached.removeprefix("models--").replace("--", "/"), **found, "files": files}


def _short(value: Any) -> str:
    """A hyperparameter in a label; a method inside by its name."""
    return str(value["name"]) if isinstance(value, Mapping) and "name" in value else str(value)


def _shown(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items() if value not in (None, (), {}))
