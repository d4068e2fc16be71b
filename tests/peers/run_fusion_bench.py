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


def minimised(base, models, learning_rate, momentum, iter_num):
    """The objective of WUDI as the package states it, descended by SGD instead of Adam until nothing moves."""
    adam = torch.optim.Adam
    torch.optim.Adam = lambda parameters, **_: torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)
    try:
        return wudi(base, models, iter_num)
    finally:
        torch.optim.Adam = adam


def descended(base, models, time, iter_num):
    """The gradient flow of that objective, followed for a time: two step sizes, extrapolated to none."""
    # The gradient is twice the right side of the flow.
    coarse, fine = (minimised(base, models, time / (2 * n), 0.0, n) for n in (iter_num, 2 * iter_num))
    return 2 * fine - coarse


def cart(base, models, share, scaling_factor):
    """The package's truncations, as of TSV-C, of what leaves the mean."""
    from fusion_bench.method.task_singular_vector.utils.TSVC_utils import compute_svd_and_compress

    mean = sum(models) / len(models)
    for model in models:
        _, left, values, right = compute_svd_and_compress("w", model - sum(models) / len(models), share)
        mean = mean + scaling_factor * (left * values) @ right
    return mean


def _masks(base, models, scale):
    from fusion_bench.method.tall_mask.utils import generate_task_masks

    flat = torch.stack([model.reshape(-1) for model in models])
    deltas = flat - base.reshape(1, -1)
    masks = generate_task_masks(deltas, flat, base.reshape(1, -1).expand_as(flat), tall_mask_lambda=scale)
    return masks.reshape(len(models), *base.shape), deltas.sum(0).reshape(base.shape)


def tall_mask(base, models, scale):
    masks, total = _masks(base, models, scale)
    return torch.stack([base + mask * total for mask in masks])


def consensus(base, models, scale, k, scaling_factor):
    from fusion_bench.method.tall_mask import utils

    masks, total = _masks(base, models, scale)
    # It takes the masks from a file.
    utils.load_tall_mask = lambda *_: {str(i): {"w": mask} for i, mask in enumerate(masks)}
    kept = utils.construct_consensus_mask({"w": base}, k, None).reshape(base.shape) * total
    return base + scaling_factor * kept


def whole(function):
    """Marks a function of state dicts."""
    function.whole = True
    return function


def _pool(base, models):
    def module(state):
        holder = torch.nn.Module()
        for name, tensor in state.items():
            holder.register_parameter(name, torch.nn.Parameter(tensor.clone(), requires_grad=False))
        return holder

    return {"_pretrained_": module(base), **{f"m{i}": module(model) for i, model in enumerate(models)}}


@whole
def emr_merging(base, models):
    from fusion_bench.method.emr_merging.emr_merging import EMRMerging

    usual, found = torch.get_default_dtype(), []
    # Its factors are of the default dtype.
    torch.set_default_dtype(next(iter(base.values())).dtype)
    try:
        for task in range(len(models)):
            merged = EMRMerging().run(_pool(base, models))
            merged.set_task(f"m{task}")
            found.append(merged.backbone.state_dict())
    finally:
        torch.set_default_dtype(usual)
    return {name: torch.stack([state[name] for state in found]) for name in base}


@whole
def magmax(base, models, scaling_factor):
    from fusion_bench.method.magmax.magmax import MagMaxAlgorithm

    return MagMaxAlgorithm(scaling_factor=scaling_factor).run(_pool(base, models)).state_dict()


@whole
def expo(base, models, extrapolation_factor):
    from fusion_bench.method.linear.expo import ExPOAlgorithm

    return ExPOAlgorithm(extrapolation_factor).run(_pool(base, models)).state_dict()


def quietly(function, *arguments, **parameters):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function(*arguments, **parameters)


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
        if getattr(function, "whole", False):
            try:
                models = [places[model] for model in case["models"]]
                fused = quietly(function, places["base"], models, **case["parameters"])
                out.update({f"{case['id']}|{name}": tensor.detach() for name, tensor in fused.items()})
            except Exception as error:
                errors.update({f"{case['id']}|{name}": f"{type(error).__name__}: {error}" for name in places["base"]})
            continue
        for name in places[case["models"][0]]:
            models = [places[model][name].clone() for model in case["models"]]
            base = places["base"][name].clone() if case["base"] == "base" else None
            try:
                out[f"{case['id']}|{name}"] = quietly(function, base, models, **case["parameters"]).detach()
            except Exception as error:
                errors[f"{case['id']}|{name}"] = f"{type(error).__name__}: {error}"
    save_file({key: tensor.contiguous().clone() for key, tensor in out.items()}, folder / "out.safetensors")
    versions = {package: version(package) for package in ("fusion-bench", "torch", "transformers")}
    (folder / "notes.json").write_text(json.dumps({"versions": versions, "errors": errors}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
