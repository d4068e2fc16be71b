"""The pages that are written from the code: methods, configuration, results of the miniature suite.

The hook of mkdocs asks for them at every build. Run as a script, this lists them; with a folder, it writes them there:

    python docs/generate.py [FOLDER]
"""

from __future__ import annotations

import html
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fusion_bench
from fusion_bench.cli.app import CONFIGS
from fusion_bench.cli.job import Job
from fusion_bench.cli.verbs import hyperparameters
from fusion_bench.method import method_class, method_modules
from fusion_bench.method.fitted import FittedMethod
from fusion_bench.modelpool import pool_types
from fusion_bench.taskpool import TYPES

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "accuracy"


def pages() -> dict[str, str]:
    """Every generated page by its place under docs/."""
    found = {"methods/index.md": methods_index()}
    found |= {f"methods/{key}.md": method_page(key) for key in method_modules()}
    found["reference/configuration.md"] = configuration_page()
    found["reference/mini-suite.md"] = suite_page(RESULTS)
    found["reference/mini-vision-suite.md"] = vision_suite_page(RESULTS)
    return found


def methods_index() -> str:
    """The methods with the columns of Table 1 of the FusionBench paper: category, requirement, source."""
    rows = []
    for key in method_modules():
        cls = method_class(key)
        rows.append(
            [f"[`{key}`]({key}.md)", cls.category, _requirement(cls), _yes(cls.needs_base), _linked(cls.source)]
        )
    return (
        "# Methods\n\n"
        "Every method is one file under `src/fusion_bench/method/`; this page and those of the methods are made from "
        "the classes. The columns are those of Table 1 of the FusionBench paper "
        "([arXiv 2406.03280](https://arxiv.org/abs/2406.03280)): what a method combines, and what it asks for beside "
        "the models.\n\n"
        "*Ensembling* combines outputs, *merging* parameters, *mixing* parts of models. On the command line "
        "`fusion_bench list methods` prints this list and `fusion_bench show ties_merging` one of them in full.\n\n"
        + _table(["method", "category", "requirement", "needs a base", "source"], rows)
    )


def method_page(key: str) -> str:
    """One method: facts, definition, hyperparameters, use."""
    cls = method_class(key)
    facts = [
        ["category", cls.category],
        ["requirement", _requirement(cls)],
        ["source", _linked(cls.source)],
        ["needs a base", _yes(cls.needs_base)],
        ["order of the models matters", _yes(not cls.symmetric)],
        ["draws random numbers", _yes(cls.random)],
    ]
    rows = [[f"`method.{name}`", _cell(kind), f"`{default}`", _cell(doc)] for name, kind, default, doc in _rows(cls)]
    table = _table(["key", "type and range", "default", "meaning"], rows) if rows else "None.\n"
    plain = bool(rows) and rows[0][2] != "`null`" and not set("{[") & set(rows[0][2])
    first = f" method.{rows[0][0][8:-1]}={rows[0][2].strip('`')}" if plain else ""
    # Methods for a few models take the first of the embedded eight.
    few = cls.model_counts[1]
    members = ["cola", "mnli", "mrpc", "qnli"][:few] if few else []
    select = f" 'modelpool.select=[{','.join(members)}]'" if few else ""
    chosen = f', "select": {members}'.replace("'", '"') if few else ""
    looks = issubclass(cls, FittedMethod)
    data = " taskpool=mini-t5_glue_text_generation" if looks else ""
    python = _ON_DATA if looks else _ON_POOL
    return f"""# {key}

{_table(["fact", ""], facts)}
## Definition

{_linked(_docstring(cls))}

## Hyperparameters

{table}
## Use

On the command line, with the embedded models:

```bash
fusion_bench method={key}{first}{select}{data} dry_run=true
```

{python.format(name=cls.__name__, chosen=chosen)}"""


_ON_POOL = """In Python, on a pool, checkpoints, state dicts or modules:

```python
from fusion_bench import {name}, fuse, open_modelpool

pool = open_modelpool({{"type": "embedded"{chosen}}})
fused = fuse({name}(), pool)  # lazy: computed when a tensor is read
```
"""

_ON_DATA = """See [Let a method look at data](../how-to/data-driven.md). In Python, on modules, with the data of each:

```python
import torch

from fusion_bench import {name}, TensorData, fuse

base = torch.nn.Linear(4, 3)
experts = {{"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)}}
data = {{name: TensorData(name, torch.randn(32, 4), torch.randint(0, 3, (32,))) for name in experts}}
fused = fuse({name}(), experts, base, data=data)
```
"""


def configuration_page() -> str:
    """Every key of the command line, from the dataclasses and the files under configs/."""
    parts = [
        "# Configuration\n",
        "`fusion_bench` is a [Hydra](https://hydra.cc) application: `key=value` overrides a key, a group takes the "
        "name of a configuration (`modelpool=folder`), and `--cfg job` prints what was composed without running it. "
        "This page is made from the classes that check the values.\n",
        "## Top-level keys\n",
        _table(["key", "type and range", "default", "meaning"], _job_rows()),
        "## Model pools\n",
        "`modelpool=NAME` takes one of these configurations, `modelpool=./my.yaml` a file of your own. "
        "See [Fuse your own models](../how-to/own-pool.md).\n",
        *_configs("modelpool"),
        "## Types of model pool\n",
        *_types("modelpool", pool_types()),
        "## Task pools\n",
        "`taskpool=NAME` takes one of these configurations, `taskpool=./my.yaml` a file of your own. "
        "See [Evaluate](../how-to/evaluate.md).\n",
        *_configs("taskpool"),
        "## Types of task pool\n",
        *_types("taskpool", {name: load() for name, load in TYPES.items()}),
        _ENVIRONMENT,
    ]
    return "\n".join(parts)


_ENVIRONMENT = """## Environment

| variable | meaning |
| --- | --- |
| `FUSION_BENCH_DATA` | folder of `glue/` and image data sets, used where `taskpool.data_dir` is not set |
| `FUSION_BENCH_CACHE` | folder of answers, statistics and adaptations; else `fusion_bench` in the user's cache folder |
| `FUSION_BENCH_TRACEBACK` | set to anything: errors show where they came from, as `--traceback` does |
| `HF_HOME`, `HF_HUB_CACHE` | where the client of the Hub keeps models and data |
| `HF_HUB_OFFLINE` | `1`: use that cache alone, ask no network |
| `HF_TOKEN` | access to models that are restricted on the Hub |
"""


def suite_page(results: Path) -> str:
    """The miniature suite, with the tables of every result file that is there."""
    text = """# The miniature suite

The package brings a pool (`modelpool=mini-t5_glue_lora16`) and tasks (`taskpool=mini-t5_glue_text_generation`) that
need neither network nor downloads: a tiny T5, eight LoRA r=16 experts on it, and eight generated tasks that have the
columns, labels, prompts and metrics of GLUE. They run through the same code as the real ones, in seconds on one core.
The scores say something about fusion methods on these models, nothing about GLUE.

Splits: `train`, `validation` (to choose hyperparameters by) and `test` (reported; the default). They are disjoint by
input text, deterministic, and the same on every machine. The recipe that makes the weights is part of the package:
`python -m fusion_bench.zoo.text.build OUT --seed 0`.
"""
    tables = [table for file in sorted(results.glob("*.json")) if (table := _suite_tables(file))]
    if not tables:
        text += "\nNo result files were found when this page was built: run `make demo` to see the suite at work.\n"
    return text + "".join(tables)


def _suite_tables(file: Path) -> str:
    data = json.loads(file.read_text(encoding="utf-8"))
    seeds = data.get("seeds") if isinstance(data, Mapping) else None
    if not isinstance(seeds, Mapping) or not all("experts" in result for result in seeds.values()):
        return ""  # results of another kind
    rows: dict[str, list[Mapping[str, float]]] = {}
    for result in seeds.values():
        own = {task: scores[task] for task, scores in result["experts"].items()}
        own["average"] = sum(own.values()) / len(own)
        found = {"base": result["base"], "individual": own, "simple_average": result["simple_average"]}
        found |= {f"task_arithmetic λ={scale}": row for scale, row in result["task_arithmetic"].items()}
        found |= {
            name.replace("ties_merging_", "ties_merging λ="): row
            for name, row in result.items()
            if name.startswith("ties_merging_")
        }
        for name, row in found.items():
            rows.setdefault(name, []).append(row)
    columns = [*(task for task in sorted(next(iter(rows.values()))[0]) if task != "average"), "average"]
    body = [[name, *(_mean(row[column] for row in found) for column in columns)] for name, found in rows.items()]
    spread = [[name, *(_mean([row["average"]]) for row in found)] for name, found in rows.items()]
    return (
        f"\n## Results of the recipe\n\nMean of {len(seeds)} runs of the recipe (seeds {', '.join(seeds)}), split "
        f"`{data.get('split')}`, {data.get('n_per_task')} examples a task, in points (accuracy; Spearman's ρ for "
        "stsb).\n\n"
        + _table(["", *columns], body)
        + "\nThe averages by seed:\n\n"
        + _table(["", *(f"seed {seed}" for seed in seeds)], spread)
    )


def vision_suite_page(results: Path) -> str:
    """The miniature vision suite: what its folder says of itself, and the tables of the results that are there."""
    readme = Path(fusion_bench.__file__).parent / "zoo" / "mini_clip_vision" / "README.md"
    _, _, told = readme.read_text(encoding="utf-8").partition("\n")
    text = (
        "# The miniature vision suite\n\n`modelpool=mini-clip_vision` with `taskpool=mini-clip_vision`: offline, in "
        f"seconds.\n{told.rstrip()}\n"
    )
    for file in sorted(results.glob("*vision*.json")):
        text += _ladder_tables(json.loads(file.read_text(encoding="utf-8")))
    return text


def _ladder_tables(data: Any) -> str:
    pools = data.get("pools") if isinstance(data, Mapping) else None
    if not isinstance(pools, Mapping) or not all("claimed_order" in pool for pool in pools.values()):
        return ""  # results of another kind
    first = next(iter(pools.values()))["rows"]
    tasks = [key for key in next(iter(first.values())) if key not in ("average", "n", "seconds")]
    body = [
        [label, *(_mean(pool["rows"][label][key] for pool in pools.values()) for key in [*tasks, "average"])]
        for label in first
    ]
    spread = [[label, *(_mean([pool["rows"][label]["average"]]) for pool in pools.values())] for label in first]
    gaps = [
        [pair, *(f"{100 * pool['claimed_order'][pair][0]:+.2f} ± {100 * pool['claimed_order'][pair][1]:.2f}"
                 for pool in pools.values())]
        for pair in next(iter(pools.values()))["claimed_order"]
    ]  # fmt: skip
    return (
        f"\n## Results: {data['suite']}, split `{data['split']}`\n\nMean of {len(pools)} pools ({', '.join(pools)}), "
        f"accuracies in points, n = {first['pretrained']['n']} a task.\n\n"
        + _table(["", *tasks, "average"], body)
        + "\nThe averages by pool:\n\n"
        + _table(["", *pools], spread)
        + "\nPaired differences of averages, with their standard errors:\n\n"
        + _table(["", *pools], gaps)
    )


def _mean(values: Iterable[float]) -> str:
    given = list(values)
    return f"{100 * sum(given) / len(given):.1f}"


def _job_rows() -> list[list[str]]:
    text = (CONFIGS / "fusion_bench.yaml").read_text(encoding="utf-8")
    rows = []
    for name, kind, default, doc in _rows(Job):
        group = re.search(rf"^  - {name}: (\S+)", text, re.MULTILINE)
        rows.append([f"`{name}`", "name of a configuration" if group else _cell(kind),
                     f"`{group[1] if group else default}`", _cell(doc)])  # fmt: skip
    return rows


def _configs(group: str) -> list[str]:
    parts = []
    for file in sorted((CONFIGS / group).glob("*.yaml")):
        parts.append(f"### {group}={file.stem}\n\n```yaml\n{file.read_text(encoding='utf-8').rstrip()}\n```\n")
    return parts


def _types(group: str, types: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, cls in types.items():
        rows = [
            [f"`{group}.{key}`", _cell(kind), f"`{default or chr(34) * 2}`", _cell(doc)]
            for key, kind, default, doc in _rows(cls)
            if key != "type"
        ]
        table = _table(["key", "type and range", "default", "meaning"], rows) if rows else "No keys beside `type`.\n"
        parts.append(f"### {group} type: {name}\n\n{_docstring(cls)}\n\n{table}")
    return parts


def _rows(cls: Any) -> list[tuple[str, str, str, str]]:
    plain = {"True": "true", "False": "false"}
    return [
        (name, kind.replace("False", "false"), plain.get(default, default), doc)
        for name, kind, default, doc in hyperparameters(cls)
        if not name.startswith("_")
    ]


def _docstring(cls: type) -> str:
    head, _, rest = (cls.__doc__ or "").partition("\n")
    return (head.strip() + "\n" + textwrap.dedent(rest)).strip()


def _requirement(cls: Any) -> str:
    return "none" if cls.requirement == "-" else str(cls.requirement)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _linked(text: str) -> str:
    return re.sub(r"arXiv[ :](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _cell(text: str) -> str:
    """`text` as it stands, safe inside a table."""
    safe = html.escape(text, quote=False)
    for mark in "|*_`":
        safe = safe.replace(mark, f"&#{ord(mark)};")
    return safe


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Lists the pages, or writes them into the folder that is given."""
    for name, text in pages().items():
        if arguments:
            place = Path(arguments[0]) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text, encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
