"""The table a run prints: a row a model, a column a task, never truncated."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from fusion_bench.report.schema import average, primary, tasks


@dataclass(frozen=True)
class Row:
    """One line: a label, and results by task (only some tasks where others were not evaluated).

    `base`: the base's results under the same conditions, which marks are set against; None where it was not measured.
    """

    label: str
    results: Mapping[str, Any]
    reference: bool = False
    base: Mapping[str, Any] | None = None


def print_table(rows: Sequence[Row], title: str = "", stream: IO[str] | None = None) -> None:
    """Prints scores times 100, then n and the standard error of the last row.

    Outside a terminal the width follows the content; inside one, a table that is too wide is printed at its full
    width rather than cut.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    stream = stream or sys.stdout
    columns = list(dict.fromkeys(task for row in rows for task in tasks(row.results)))
    if not columns:
        return
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    parts = [key for key in ("seen_average", "unseen_average") if any(key in row.results for row in rows)]
    for column in [*columns, "average", *(key.removesuffix("_average") for key in parts)]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row, column) for column in columns]
        means = [f"{100 * row.results[key]:.1f}" if key in row.results else "" for key in parts]
        table.add_row(row.label, *cells, _average(row, columns), *means, end_section=row is rows[-1])
    if any("majority" in row.results.get(column, {}) for row in rows for column in columns):
        shares = [_fact(rows, column, "majority", "{:.1f}", 100) for column in columns]
        table.add_row("majority class", *shares, "", style="dim")
    table.add_row("n", *[_fact(rows, column, "n", "{:d}") for column in columns], "", style="dim")
    errors = [_fact(rows, column, "stderr", "±{:.1f}", 100) for column in columns]
    table.add_row("standard error", *errors, _average_error(rows, columns), style="dim")
    width = Console(width=10_000).measure(table).maximum
    console = Console(file=stream)
    if stream.isatty():
        width = max(width, console.width)
    Console(file=stream, width=width, soft_wrap=stream.isatty()).print(table, crop=False, overflow="ignore")
    for line in remarks(rows):
        print(line, file=stream)


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the scores alone do not tell: failed tasks, outputs that are no answers, predictions of one class."""
    lines = []
    for row in rows:
        results = {task: row.results[task] for task in tasks(row.results)}
        invalid = {task: result.get("invalid_rate") or 0 for task, result in results.items()}
        shares = [f"{task} {100 * rate:.0f} %" for task, rate in invalid.items() if rate >= 0.005]
        if shares:
            lines.append(f"{row.label}: outputs that are no answer: {', '.join(shares)}")
        collapsed = [task for task, result in results.items() if result.get("collapsed") or result.get("constant")]
        if collapsed:
            lines.append(f"{row.label}: all answers fall into one class: {', '.join(collapsed)}")
        lines += [f"{row.label}: {task} failed: {r['error']}" for task, r in results.items() if "error" in r]
    if any("↓" in _cell(row, task) for row in rows for task in tasks(row.results)):
        lines.append("↓ below the base")
    return lines


def _cell(row: Row, task: str) -> str:
    result = row.results.get(task)
    if result is None:
        return ""
    score = primary(result)
    if score is None:
        return "failed"
    text = f"{100 * score:.1f}"
    before = primary(row.base.get(task, {})) if row.base is not None and not row.reference else None
    # Negative transfer: below the pre-trained model.
    return f"{text}↓" if before is not None and score < before - 1e-12 else text


def _average(row: Row, columns: Sequence[str]) -> str:
    scores = [primary(row.results[c]) for c in columns if c in row.results]
    known = [score for score in scores if score is not None]
    if len(known) < len(columns):
        return "-"
    mean = average(known)
    return "-" if mean is None else f"{100 * mean:.1f}"


def _fact(rows: Sequence[Row], task: str, key: str, form: str, factor: float = 1) -> str:
    for row in reversed(rows):
        value = row.results.get(task, {}).get(key)
        if value is not None:
            return form.format(value * factor if factor != 1 else value)
    return ""


def _average_error(rows: Sequence[Row], columns: Sequence[str]) -> str:
    errors = [rows[-1].results.get(column, {}).get("stderr") for column in columns]
    if any(error is None for error in errors) or not errors:
        return ""
    return f"±{100 * sum(e * e for e in errors) ** 0.5 / len(errors):.1f}"
