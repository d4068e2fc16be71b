"""What many small tensors cost: a linear merge of 10,000 tensors of 1,000 entries beside the same bytes in ten tensors.

usage: python benchmarks/speed/many_tensors.py [--models 8] [--rounds 5] [--method simple_average] [--out FILE]

Both pools are made in a temporary folder. Each round runs the whole command on one, then on the other; the difference
of the medians is what the number of tensors costs (target: at most 1 s).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Measured, median, run, write_results


def make_pool(folder: Path, tensors: int, entries: int, models: int) -> None:
    import torch
    from safetensors.torch import save_file

    for number in range(models):
        generator = torch.Generator().manual_seed(number)
        member = folder / f"expert_{number}"
        member.mkdir(parents=True)
        values = {f"layer.{i}.weight": torch.randn(entries, generator=generator) for i in range(tensors)}
        save_file(values, member / "model.safetensors", {"format": "pt"})
        (member / "config.json").write_text("{}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="simple_average")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "many_tensors.json")
    arguments = parser.parse_args()
    shapes = {"many": (10_000, 1_000), "few": (10, 1_000_000)}
    runs: dict[str, list[Measured]] = {kind: [] for kind in shapes}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, (tensors, entries) in shapes.items():
            make_pool(Path(scratch) / kind, tensors, entries, arguments.models)
        for _ in range(arguments.rounds):
            for kind in shapes:
                out = Path(scratch) / "merged"
                command = [
                    "fusion_bench", f"method={arguments.method}", "modelpool=folder",
                    f'modelpool.path="{Path(scratch) / kind}"', f'save_model="{out}"', "progress=false",
                ]  # fmt: skip
                runs[kind].append(run(command, Path(scratch)))
                shutil.rmtree(out)
    walls = {kind: median([m.wall for m in measured]) for kind, measured in runs.items()}
    extra = round(walls["many"] - walls["few"], 3)
    print(f"many {walls['many']:.2f} s, few {walls['few']:.2f} s, extra {extra:.2f} s (target 1)")
    memory = {kind: round(max(m.anonymous_mb for m in measured)) for kind, measured in runs.items()}
    results = {"method": arguments.method, "models": arguments.models, "rounds": arguments.rounds, "wall_s": walls}
    write_results(arguments.out, {**results, "extra_s": extra, "target_s": 1.0, "peak_anonymous_mb": memory})


if __name__ == "__main__":
    main()
