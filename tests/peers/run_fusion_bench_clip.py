"""Fuses CLIP pools with the original fusion-bench. Run by the peer interpreter: run_fusion_bench_clip.py FOLDER.

FOLDER holds cases.json, a list of {"id", "pool", "method", "parameters"}; the answers are FOLDER/<id>/ as the package
saves them, synced to the disk, and notes.json. Its own pool and algorithm classes run unchanged; of the images only the
reading is replaced: they come as the tensors that their processor would make.
"""

import contextlib
import io
import json
import os
import resource
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open

warnings.filterwarnings("ignore")

METHODS = {
    "simple_average": "SimpleAverageAlgorithm",
    "task_arithmetic": "TaskArithmeticAlgorithm",
    "ties_merging": "TiesMergingAlgorithm",
    "regmean": "RegMeanAlgorithmForCLIP",
}


class Images(torch.utils.data.Dataset):
    """The images of a task; `asked` keeps the order in which they are taken."""

    def __init__(self, file, task):
        with safe_open(file, "pt") as opened:
            self.pixels = opened.get_tensor(task)
        self.asked = []

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        self.asked.append(index)
        return {"image": self.pixels[index], "label": 0}


class Ready:
    """Hands images on as they are, and texts to the processor of the pool."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, image=None, **arguments):
        return self.processor(**arguments) if image is None else image


def opened(folder):
    """The pool, and what its data sets were asked for."""
    from fusion_bench.modelpool import CLIPVisionModelPool

    tasks = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "base")
    models = {"_pretrained_": str(folder / "base"), **{task: str(folder / task) for task in tasks}}
    pool, asked = CLIPVisionModelPool(models, processor=str(folder / "base")), {}
    load_processor = pool.load_processor

    def load_train_dataset(task):
        images = Images(folder / "images.safetensors", task)
        asked[task] = images.asked
        return images

    pool.load_train_dataset = load_train_dataset
    pool.load_processor = lambda: Ready(load_processor())
    return pool, asked


def two_classes(pool):
    """Declares classes for the heads that RegMean builds, and does not use."""
    from fusion_bench.tasks.clip_classification import CLIPTemplateFactory

    classes = {"classnames": ["one", "two"], "templates": [lambda name: f"a photo of a {name}"]}
    for task in pool.model_names:
        # Given alone, the two lists are kept under a misspelt key and not found again.
        CLIPTemplateFactory.register_dataset(task, dataset_info=classes, **classes)


def answer(case, out):
    """Runs a case; seconds, and for each task the places of the images in the order in which they were asked for."""
    import fusion_bench.method

    began = time.perf_counter()
    pool, asked = opened(Path(case["pool"]))
    if case["method"] == "regmean":
        two_classes(pool)
    torch.manual_seed(0)
    merged = getattr(fusion_bench.method, METHODS[case["method"]])(**case["parameters"]).run(pool)
    fused = time.perf_counter()
    pool.save_model(merged, out)
    for file in out.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    return {
        "fuse_s": fused - began,
        "save_s": time.perf_counter() - fused,
        "asked": asked,
    }


def main(folder):
    notes = {}
    for case in json.loads((folder / "cases.json").read_text()):
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                notes[case["id"]] = answer(case, folder / case["id"])
        except Exception as error:
            notes[case["id"]] = {"error": f"{METHODS[case['method']]}: {type(error).__name__}: {error}"}
    versions = {package: version(package) for package in ("fusion-bench", "torch", "transformers")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    (folder / "notes.json").write_text(json.dumps({"versions": versions, "cases": notes, "peak_rss_mb": peak}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
