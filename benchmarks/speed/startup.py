"""How fast the command answers where no work is asked for, beside a bare Hydra application.

usage: python benchmarks/speed/startup.py [--rounds 15]

The bare application has one configuration file and prints its help. Rounds alternate; ratios are of medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import median, write_results

BARE = """
import hydra

@hydra.main(config_path=".", config_name="config", version_base="1.3")
def main(config):
    pass

main()
"""
CASES = {
    "help": ["--help"],
    "typo": ["method=ties_mergin"],
    "unknown key": ["method=ties_merging", "method.thresold=3"],
    "wrong value": ["method=ties_merging", "method.threshold=300"],
    "list": ["list", "methods"],
    "show": ["show", "ties_merging"],
}


def timed(command: list[str], folder: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text("a: 1\n")
        (Path(folder) / "bare.py").write_text(BARE)
        commands = {"bare Hydra --help": [sys.executable, "bare.py", "--help"]}
        commands |= {name: [sys.executable, "-m", "fusion_bench", *words] for name, words in CASES.items()}
        walls: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                walls[name].append(timed(command, folder))
    bare = median(walls["bare Hydra --help"])
    results: dict[str, object] = {"rounds": arguments.rounds, "target": 1.5}
    for name, taken in walls.items():
        ratio = round(median(taken) / bare, 2)
        results[name] = {"wall_s": median(taken), "ratio": ratio}
        print(f"{name:18} {median(taken):.3f} s  {ratio:.2f} x")
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
