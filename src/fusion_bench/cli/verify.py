"""The sub-verb `verify`: whether outputs are as they were written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusion_bench.checkpoint.verify import Verdict, outputs_in, verify
from fusion_bench.errors import ConfigError, OutputError, unknown
from fusion_bench.progress import Progress
from fusion_bench.settings import Settings

_USAGE = """\
usage: fusion_bench verify DIR [DIR ...] [threads=N] [progress=false]

Reads every file of outputs that save_model wrote and compares it with the digests in fusion_bench.json. Prints one line
for each output, and the damaged tensors and files by name.

exit status: 0 all whole, 1 damaged or unfinished, 2 not an output of fusion_bench"""

_SHOWN = 50


def run_verify(arguments: Sequence[str]) -> int:
    """Checks each folder; returns the worst exit status."""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(_USAGE)
        return 0
    folders, threads, shows = _parsed(arguments)
    workers = Settings(threads=threads).workers
    status = 0
    for folder in [output for given in folders for output in outputs_in(given)]:
        try:
            verdict = verify(folder, workers, Progress(shows))
        except OutputError as error:
            print(str(error).removesuffix("."), flush=True)
            status = 2
            continue
        print(_told(verdict), flush=True)
        status = max(status, 0 if verdict.whole else 1)
    return status


def _told(verdict: Verdict) -> str:
    if verdict.unfinished:
        return f"{verdict.folder}: unfinished; the command that began it continues it"
    if verdict.whole:
        return f"{verdict.folder}: whole ({verdict.tensors} tensors, {verdict.nbytes / 1e9:.2f} GB)"
    lines = [f"{verdict.folder}: damaged", *(f"  {fault}" for fault in verdict.faults[:_SHOWN])]
    more = len(verdict.faults) - _SHOWN
    return "\n".join(lines + ([f"  and {more} more"] if more > 0 else []))


def _parsed(arguments: Sequence[str]) -> tuple[list[str], int, bool]:
    folders: list[str] = []
    threads, shows = 0, True
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-"):
            raise ConfigError(unknown("option", argument, ("--help",)))
        if key == "progress" and equals and value.lower() in ("true", "false"):
            shows = value.lower() == "true"
        elif key == "threads" and equals and value.isdigit():
            threads = int(value)
        elif equals and key in ("progress", "threads"):
            raise ConfigError(f"{argument}: expected {'true or false' if key == 'progress' else 'a number'}.")
        else:
            folders.append(str(Path(argument).expanduser()))
    if not folders:
        raise ConfigError(f"verify what? {_USAGE.splitlines()[0]}")
    return folders, threads, shows
