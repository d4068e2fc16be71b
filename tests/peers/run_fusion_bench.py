"""Answers cases with the original fusion-bench. Run by the peer interpreter: run_fusion_bench.py FOLDER."""

import contextlib
import io
import json
import sys
import warnings
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
torch.set_num_threads(1)


def ties_merging(base, models, threshold, merge_func):
    from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging

    flat = torch.stack([(model - base).reshape(-1) for model in models])
    return base + ties_merging(flat, reset_thresh=threshold, merge_func=merge_func).reshape(base.shape)


def slerp(base, models, t):
    from fusion_bench.method.slerp.slerp_utils import slerp

    return slerp(t, models[0], models[1])


def _on_task_vectors(function, base, models, **parameters):
    merged = function([{"w": model - base} for model in models], accelerator="cpu", **parameters)
    return base + merged["w"].detach()


def tsv_merging(base, models, scaling_factor=1.0):
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction

    return base + scaling_factor * (_on_task_vectors(compute_and_sum_svd_mem_reduction, base, models) - base)


def iso_c(base, models):
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c

    return _on_task_vectors(iso_c, base, models)


def iso_cts(base, models, common_space_fraction):
    from fusion_bench.method.isotropic_merging.iso_utils import iso_cts

    return _on_task_vectors(iso_cts, base, models, common_space_fraction=common_space_fraction)


def wudi(base, models, iter_num):
    from fusion_bench.method.wudi.wudi import wudi_merging

    return _on_task_vectors(wudi_merging, base, models, iter_num=iter_num)


def svc(base, models, alpha, scaling_factor=1.0):
    """Calibrates task arithmetic."""
    from fusion_bench.method.singular_value_calibration.svc import subspace_consistency_spectral_calibration_accelerated

    merged = base + scaling_factor * sum(model - base for model in models)
    if base.dim() != 2:
        return merged
    return subspace_consistency_spectral_calibration_accelerated(
        base_weight=base, task_weights=models, merged_weight=merged, alpha=alpha, accelerator="cpu"
    )


def main(folder):
    cases = json.loads((folder / "cases.json").read_text())
    tensors = defaultdict(lambda: defaultdict(dict))
    for key, tensor in load_file(folder / "in.safetensors").items():
        case, run, place = key.split("|")
        where, name = place.rsplit("/", 1)
        tensors[f"{case}|{run}"][where][name] = tensor
    out, errors = {}, {}
    for case in cases:
        places, function = tensors[case["id"]], globals()[case["function"]]
        for name in places[case["models"][0]]:
            models = [places[model][name].clone() for model in case["models"]]
            base = places["base"][name].clone() if case["base"] == "base" else None
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    out[f"{case['id']}|{name}"] = function(base, models, **case["parameters"]).detach()
            except Exception as error:
                errors[f"{case['id']}|{name}"] = f"{type(error).__name__}: {error}"
    save_file({key: tensor.contiguous().clone() for key, tensor in out.items()}, folder / "out.safetensors")
    versions = {package: version(package) for package in ("fusion-bench", "torch", "transformers")}
    (folder / "notes.json").write_text(json.dumps({"versions": versions, "errors": errors}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
