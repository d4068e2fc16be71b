"""Peak anonymous memory and wall time of every method of the registry on one pool, from disk to disk.

usage: python benchmarks/memory/methods.py POOL [--methods ties_merging …] [--budget 800MB] [--out FILE]

POOL holds base/ and full models. Each method runs once with its defaults and must stay under the budget. Methods for a
few models take the first of the pool.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import run, write_results

# They need more than a name: layers of models, and rules.
SKIPPED = ("passthrough", "by_name", "dummy")


def main() -> None:
    from fusion_bench.cli.job import size_bytes
    from fusion_bench.method import method_class, method_modules

    parser = argparse.ArgumentParser()
    parser.add_argument("pool", type=Path)
    parser.add_argument("--methods", nargs="+", default=[key for key in method_modules() if key not in SKIPPED])
    parser.add_argument("--budget", default="800MB")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "methods.json")
    arguments = parser.parse_args()
    pool = arguments.pool.absolute()
    budget = size_bytes(arguments.budget, "budget") / 1e6
    names = sorted(p.name for p in pool.iterdir() if p.is_dir() and p.name != "base")
    rows = {}
    with tempfile.TemporaryDirectory(dir=pool.parent) as scratch:
        out = Path(scratch) / "merged"
        for method in arguments.methods:
            few = method_class(method).model_counts[1]
            command = [
                "fusion_bench", f"method={method}", "modelpool=folder", f'modelpool.path="{pool}"',
                f"modelpool.select=[{','.join(names[:few])}]", f'save_model="{out}"', "progress=false",
                f"memory_budget={arguments.budget}",
            ]  # fmt: skip
            measured = run(command, Path(scratch))
            size = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
            shutil.rmtree(out)
            rows[method] = {
                "wall_s": round(measured.wall, 2),
                "cpu_s": round(measured.cpu, 2),
                "peak_anonymous_mb": round(measured.anonymous_mb),
                "bytes_written": size,
            }
            verdict = "" if measured.anonymous_mb <= budget else "  OVER THE BUDGET"
            print(f"{method:16} {measured.wall:7.2f} s {measured.anonymous_mb:6.0f} MB{verdict}", flush=True)
    over = [method for method, row in rows.items() if float(row["peak_anonymous_mb"]) > budget]
    write_results(arguments.out, {"models": len(names), "budget_mb": budget, "over_budget": over, "methods": rows})


if __name__ == "__main__":
    main()
