"""The `fusion_bench` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 2 for the user's mistakes, 1 for failures, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in arguments or bool(os.environ.get("FUSION_BENCH_TRACEBACK"))
    arguments = [argument for argument in arguments if argument != "--traceback"]
    from fusion_bench.errors import FusionError

    try:
        return _dispatch(arguments)
    except FusionError as error:
        if traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the last resort of a command: one line, unless more is asked for
        if traceback:
            raise
        print(f"error: {type(error).__name__}: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    from fusion_bench.cli.argv import split_verb

    verb, rest = split_verb(arguments)
    if verb is not None:
        from fusion_bench.cli.verbs import run_verb

        return run_verb(verb, rest)
    from fusion_bench.cli.app import run_app

    return run_app(arguments)
