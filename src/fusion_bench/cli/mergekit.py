"""The sub-verb `mergekit`: runs a configuration written for mergekit."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_bench.build import build, hyper
from fusion_bench.errors import ConfigError, unknown

if TYPE_CHECKING:
    from fusion_bench.mergekit.document import Document
    from fusion_bench.mergekit.run import Prepared

_USAGE = """\
usage: fusion_bench mergekit CONFIG.yml OUT [key=value ...]

Runs a configuration of mergekit (YAML) and writes the model to the folder OUT, with the configuration beside it as
mergekit_config.yml. Paths of models are relative to the current folder. The same command continues what was cut short.

  overwrite=true       replace what is in OUT once the new model is whole
  dry_run=true         check everything, print what would be done, compute nothing
  seed=42              of every draw (dare_*, della*)
  threads=0            worker threads; 0: one a core
  memory_budget=800MB  anonymous memory that the merge may take
  shard_size=5GB       largest weights file
  progress=true        show progress

merge_method: {methods}

exit status: 0 done, 2 a mistake in what was asked, 1 a failure, 130 interrupted"""

_CONFIG = "mergekit_config.yml"


@dataclass(frozen=True)
class Options:
    """The keys of the verb; they mean what they mean in a run."""

    overwrite: bool = hyper(False, "replace what is in OUT once the new model is whole")
    dry_run: bool = hyper(False, "check everything, print what would be done, compute nothing")
    seed: int = hyper(42, "of every draw that a method makes", low=0)
    threads: int = hyper(0, "worker threads; 0: one a core", low=0)
    memory_budget: str = hyper("800MB", "anonymous memory that a merge may take")
    shard_size: str = hyper("5GB", "largest weights file")
    progress: bool = hyper(True, "show progress of long work")


def run_mergekit(arguments: Sequence[str]) -> int:
    """Merges as the configuration says; returns the exit status."""
    if any(argument in ("-h", "--help") for argument in arguments):
        from fusion_bench.mergekit.methods import supported

        print(_USAGE.format(methods=", ".join(supported())))
        return 0
    file, out, options = _parsed(arguments)
    from fusion_bench.cli.job import size_bytes
    from fusion_bench.mergekit.schema import read

    document = read(_text(file), str(file))
    budget, shards = size_bytes(options.memory_budget, "memory_budget"), size_bytes(options.shard_size, "shard_size")
    _merge(document, out, options, budget, shards)
    return 0


def _merge(document: Document, out: Path, options: Options, budget: int, shards: int) -> None:
    from fusion_bench.checkpoint.output import check_space, check_writable
    from fusion_bench.checkpoint.writer import save
    from fusion_bench.cli.job import outside
    from fusion_bench.cli.stopping import continuable
    from fusion_bench.mergekit.run import Means, prepare
    from fusion_bench.mergekit.tokenizers import tokenizer_folder
    from fusion_bench.progress import Progress
    from fusion_bench.settings import Settings

    workers = Settings(threads=options.threads).workers
    progress = Progress(options.progress)
    prepared = prepare(document, Means(workers, budget, options.seed, progress))
    tokenizer = tokenizer_folder(document, prepared.models)
    files_from = tokenizer or prepared.donor.folder
    outside(out, [folder for folder in map(_folder, prepared.models.values()) if folder is not None], "OUT")
    origin = _origin(prepared, files_from, options.seed, shards)
    if check_writable(out, options.overwrite, origin) != "complete":
        check_space(out, sum(info.nbytes for info in prepared.checkpoint.infos.values()))
    if options.dry_run:
        print(_described(prepared, out))
        return
    extra: dict[str, str | bytes | Path] = {_CONFIG: document.text}
    with continuable(out):
        saved = save(
            prepared.checkpoint,
            out,
            threads=workers,
            shard_bytes=shards,
            progress=progress,
            files_from=files_from,
            extra_files=extra,
            origin=origin,
            overwrite=options.overwrite,
            card=_card(prepared),
        )
    if saved.how == "complete":
        print(f"{out}: complete, written by this command before; nothing to do", file=sys.stderr)
        return
    there = f" ({saved.reused / 1e9:.2f} GB of it were there)" if saved.reused else ""
    print(f"saved {out}{there}", file=sys.stderr)
    for remark in [*_donated(prepared), *prepared.remarks()]:
        print(remark, file=sys.stderr)


def _parsed(arguments: Sequence[str]) -> tuple[Path, Path, Options]:
    import yaml

    places: list[str] = []
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):
            raise ConfigError(unknown("option", argument, ("--help",)) + " Settings are written key=value.")
        if equals and "/" not in key:
            try:
                values[key] = yaml.safe_load(value)
            except yaml.YAMLError:
                values[key] = value
        else:
            places.append(str(Path(argument).expanduser()))
    options = build(Options, values, "")
    if len(places) != 2:
        what = "CONFIG.yml and OUT are both needed" if len(places) < 2 else f"what is {places[2]!r}"
        raise ConfigError(f"{what}: {_USAGE.splitlines()[0]}")
    return Path(places[0]), Path(places[1]), options


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{file}: cannot be read: {reason}. Give the YAML file of a merge.") from None


def _origin(prepared: Prepared, files_from: Path | None, seed: int, shards: int) -> dict[str, Any]:
    """Everything that decides the bytes of the result: by it a command knows its own output."""
    from fusion_bench import __version__
    from fusion_bench.checkpoint.companions import companion_files
    from fusion_bench.checkpoint.digests import digest
    from fusion_bench.checkpoint.sealed import plain
    from fusion_bench.cli.job import canonical
    from fusion_bench.cli.plan import placed

    document, labels = prepared.document, prepared.document.labels()
    files = {name: digest(path.read_bytes()).hex() for name, path in companion_files(files_from).items()}
    inputs = [{"name": labels[model], **placed(each.identity)} for model, each in prepared.models.items()]
    found: dict[str, Any] = plain(
        {
            "fusion_bench": __version__,
            "method": {"name": f"mergekit {document.merge_method}"},
            "configuration": digest(document.text.encode()).hex(),
            "seed": seed,
            "shard_bytes": shards,
            "inputs": inputs,
            "config": digest(canonical(dict(prepared.checkpoint.config)).encode()).hex(),
            "files": files,
        }
    )
    return found


def _described(prepared: Prepared, out: Path) -> str:
    """What would be done, for ``dry_run=true``."""
    document, labels = prepared.document, prepared.document.labels()
    infos = prepared.checkpoint.infos
    size, entries = sum(i.nbytes for i in infos.values()), sum(i.numel for i in infos.values())
    passes = max((merged.method.passes(merged.inputs) for merged in prepared.merged), default=1)
    methods = sorted({method.key() for each in prepared.merged for method in _inner(each.method)})
    variants = sum(len(getattr(each.method, "distinct", ())) for each in prepared.merged)
    slices = f", {len(prepared.merged)} slices" if document.sliced else ""
    settings = "1 setting" if variants == 1 else f"{variants} settings"
    lines = [
        f"method     {document.merge_method}: {', '.join(methods)}; {settings}{slices}",
        f"models     {', '.join(labels[model] for model in prepared.models)}",
        f"tensors    {len(infos)} of {entries:,} entries, {passes} {'pass' if passes == 1 else 'passes'}",
        *(f"note       {line}" for line in _donated(prepared)),
        *(f"note       {line}, so it has no effect" for line in document.unused),
        f"writes     {out} ({size / 1e9:,.2f} GB)",
        "dry run: nothing was computed or written",
    ]
    return "\n".join(lines)


def _inner(method: Any) -> list[Any]:
    """The methods that tensors fall to; what is wrapped for weights and densities by what is inside."""
    found = []
    for each in getattr(method, "distinct", ()):
        while type(each).__module__.startswith("fusion_bench.mergekit."):
            each = each.inner
        found.append(each)
    return found


def _donated(prepared: Prepared) -> list[str]:
    document = prepared.document
    if document.base is not None:
        return []
    donor = document.labels()[document.donor]
    return [f"config and tokenizer are those of {donor}, the first model listed, since there is no base_model"]


def _card(prepared: Prepared) -> str:
    """The model card, without paths of this machine."""
    import yaml

    from fusion_bench import __version__
    from fusion_bench.report.card import origin_text as told

    document, labels = prepared.document, prepared.document.labels()
    front = yaml.safe_dump({"library_name": "transformers", "tags": ["merge", "fusion_bench"]}, sort_keys=False)
    models = "\n".join(f"- {labels[model]}: {told(each.identity)}" for model, each in prepared.models.items())
    return (
        f"---\n{front}---\n\n# {document.merge_method} of {', '.join(labels.values())}\n\nMerged with fusion_bench "
        f"{__version__} from `{_CONFIG}`, a configuration of mergekit.\n\n## Models\n\n{models}\n"
    )


def _folder(checkpoint: Any) -> Path | None:
    folder: Path | None = checkpoint.folder
    return folder
