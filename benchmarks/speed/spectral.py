"""Wall time of merges on singular vectors, beside that of the singular value decompositions alone.

usage: python benchmarks/speed/spectral.py POOL [--rounds 1] [--out FILE]

POOL holds base/ and full models. The decompositions: those that the method's definition asks for, of the shapes of the
pool's linear layers, on float32 matrices in memory, with torch.linalg.svd, one worker a core and one torch thread each.
TSV-M asks for one a model and matrix and two for the polar factors of the stacked vectors; Iso-C for one a matrix. The
same number of decompositions by the library's own routine is given beside it. The ratio is (wall - start-up) / SVDs
alone; start-up is the wall time of the command with dry_run=true. The ratio of CPU times says the same on a machine
that does other work meanwhile.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Measured, median, run, write_results

TARGET = 1.3
METHODS = ("tsv_merging", "iso_c")
Shape = tuple[int, int]


def linear_layers(pool: Path) -> list[Shape]:
    """The shapes of the base's linear layers."""
    from fusion_bench.checkpoint.open import open_checkpoint
    from fusion_bench.family.layers import structure_of

    base = open_checkpoint(pool / "base")
    names = sorted(structure_of(base.config, base.infos).linear)
    return [(base.info(name).shape[0], base.info(name).shape[1]) for name in names]


def asked_for(method: str, layers: list[Shape], models: int) -> list[Shape]:
    """The shapes of the decompositions that the method's definition asks for."""
    if method == "iso_c":
        return layers
    found: list[Shape] = []
    for rows, columns in layers:
        stacked = min(rows, columns) // models * models
        found += [(rows, columns)] * models + [(rows, stacked), (columns, stacked)]
    return found


def alone(shapes: list[Shape], decompose: Callable[[Any], Any]) -> tuple[float, float]:
    """Seconds of wall and CPU time for all decompositions. One random matrix of each shape serves for all of them."""
    import torch

    generator = torch.Generator().manual_seed(0)
    matrices = {shape: torch.randn(shape, generator=generator) / 100 for shape in set(shapes)}
    for matrix in matrices.values():
        decompose(matrix)
    started, before = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=lambda: torch.set_num_threads(1)) as workers:
        # Results are dropped at once: all of them together would fill the memory.
        for _ in workers.map(lambda shape: len(decompose(matrices[shape])), shapes):
            pass
    return time.perf_counter() - started, time.process_time() - before


def plain(matrix: Any) -> Any:
    """The decomposition that torch offers."""
    import torch

    return torch.linalg.svd(matrix, full_matrices=False)


def own(matrix: Any) -> Any:
    """All singular vectors as the library finds them."""
    from fusion_bench.ops import spectral

    return spectral.factors(matrix)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pool", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "spectral.json")
    arguments = parser.parse_args()
    pool = arguments.pool.absolute()
    models = sum(folder.name != "base" for folder in pool.iterdir() if folder.is_dir())
    layers = linear_layers(pool)
    results: dict[str, object] = {"models": models, "linear_layers": len(layers), "rounds": arguments.rounds}
    for method in arguments.methods:
        shapes = asked_for(method, layers, models)
        svds: list[tuple[float, float]] = []
        owns: list[tuple[float, float]] = []
        runs: list[Measured] = []
        dry: list[Measured] = []
        with tempfile.TemporaryDirectory(dir=pool.parent) as scratch:
            out = Path(scratch) / "merged"
            command = [
                "fusion_bench", f"method={method}", "modelpool=folder", f'modelpool.path="{pool}"',
                f'save_model="{out}"', "progress=false",
            ]  # fmt: skip
            for _ in range(arguments.rounds):
                dry.append(run([*command, "dry_run=true"], Path(scratch)))
                runs.append(run(command, Path(scratch)))
                shutil.rmtree(out)
                svds.append(alone(shapes, plain))
                owns.append(alone(shapes, own))
        wall, start = median([m.wall for m in runs]), median([m.wall for m in dry])
        cpu, start_cpu = median([m.cpu for m in runs]), median([m.cpu for m in dry])
        (svd, svd_cpu), (mine, mine_cpu) = ([median(side) for side in zip(*all_, strict=True)] for all_ in (svds, owns))
        ratio, ratio_cpu = round((wall - start) / svd, 2), round((cpu - start_cpu) / svd_cpu, 2)
        results[method] = {
            "decompositions": len(shapes),
            "svds_alone_s": svd,
            "svds_alone_cpu_s": svd_cpu,
            "own_decompositions_alone_s": mine,
            "own_decompositions_alone_cpu_s": mine_cpu,
            "wall_s": wall,
            "start_up_s": start,
            "cpu_s": cpu,
            "start_up_cpu_s": start_cpu,
            "ratio": ratio,
            "ratio_of_cpu_times": ratio_cpu,
            "target": TARGET,
            "peak_anonymous_mb": round(max(m.anonymous_mb for m in runs)),
        }
        print(
            f"{method:12} wall {wall:6.1f} s, start-up {start:.2f}, SVDs alone {svd:.1f} (own {mine:.1f}), "
            f"ratio {ratio:.2f}, of CPU times {ratio_cpu:.2f} (target {TARGET:g})"
        )
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
