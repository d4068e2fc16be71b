"""Answers cases with mergekit, or PEFT's merge utilities. Run by the peer interpreter: run_mergekit.py FOLDER."""

import json
import logging
import sys
import tempfile
import warnings
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import torch
from click.testing import CliRunner
from mergekit.merge_methods import merge_state_dicts, merge_tensors
from mergekit.scripts.run_yaml import main as run_yaml
from peft.utils import merge_utils
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
logging.disable(logging.INFO)
torch.set_num_threads(1)
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16, "hidden_size": 8,
    "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
    "tie_word_embeddings": False,
}  # fmt: skip


def with_masks(masks, call):
    """`call()` while `torch.bernoulli` hands out `masks` in turn."""
    left, drawn = list(masks), torch.bernoulli

    def bernoulli(probabilities, *args, **kwargs):
        return left.pop(0).reshape(probabilities.shape).to(probabilities.dtype)

    torch.bernoulli = bernoulli
    try:
        out = call()
        assert not left, f"{len(left)} masks were not asked for"
        return out
    finally:
        torch.bernoulli = drawn


def by_mergekit(case, places, name):
    ids = [*([case["base"]] if case["base"] == "base" else []), *case["models"]]
    parameters = {
        key: dict(zip([i for i in ids if i != "base"], value, strict=True)) if isinstance(value, list) else value
        for key, value in case["parameters"].items()
    }
    base = ids.index(case["base"]) if case["base"] else None

    def call():
        tensors = [places[i][name].clone() for i in ids]
        return merge_tensors(tensors, case["function"], parameters=parameters, ids=ids, base_index=base)

    masks = [places[f"mask/{model}"][name] for model in case["models"] if f"mask/{model}" in places]
    return with_masks(masks, call) if masks else call()


def whole_by_mergekit(case, places):
    """Every tensor at once, as mergekit batches them."""
    ids = [*([case["base"]] if case["base"] == "base" else []), *case["models"]]
    parameters = {
        key: dict(zip([i for i in ids if i != "base"], value, strict=True)) if isinstance(value, list) else value
        for key, value in case["parameters"].items()
    }
    return merge_state_dicts({i: places[i] for i in ids}, case["function"], parameters=parameters, base=case["base"])


def by_yaml(case, places):
    """A configuration over checkpoints in folders: its values may depend on the names of tensors and on depth."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for place, state in places.items():
            layers = len({name.split(".")[2] for name in state if name.startswith("model.layers.")})
            dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
            (folder / place).mkdir()
            save_file(state, folder / place / "model.safetensors", metadata={"format": "pt"})
            config = {**LLAMA, "num_hidden_layers": layers, "dtype": dtype}
            (folder / place / "config.json").write_text(json.dumps(config))
        asked = {
            "merge_method": case["function"].removeprefix("yaml."),
            "base_model": str(folder / "base"),
            "models": [{"model": str(folder / model)} for model in case["models"]],
            "parameters": case["parameters"],
        }
        (folder / "asked.yml").write_text(json.dumps(asked))
        flags = ["--quiet", "--no-write-model-card"]
        ran = CliRunner().invoke(run_yaml, [str(folder / "asked.yml"), str(folder / "out"), *flags])
        if ran.exit_code:
            raise RuntimeError(ran.exception)
        return load_file(folder / "out" / "model.safetensors")


def drawn_from(case, places, name):
    """The probabilities that one model's entries are kept with."""
    asked, drawn = [], torch.bernoulli

    def bernoulli(probabilities, *args, **kwargs):
        asked.append(probabilities.clone())
        return torch.ones_like(probabilities)

    torch.bernoulli = bernoulli
    try:
        by_mergekit({**case, "function": case["function"].removeprefix("probabilities.")}, places, name)
    finally:
        torch.bernoulli = drawn
    (probabilities,) = asked
    return probabilities.reshape(places["base"][name].shape).double()


def by_peft(case, places, name):
    values = dict(case["parameters"])
    weights = values.pop("weight")
    deltas = [places[model][name] - places["base"][name] for model in case["models"]]
    function = getattr(merge_utils, case["function"].removeprefix("peft."))
    merged = function(deltas, torch.tensor(weights, dtype=deltas[0].dtype), **values)
    return places["base"][name] + merged


def main(folder):
    cases = json.loads((folder / "cases.json").read_text())
    tensors = defaultdict(lambda: defaultdict(dict))
    for key, tensor in load_file(folder / "in.safetensors").items():
        case, run, place = key.split("|")
        where, name = place.rsplit("/", 1)
        tensors[f"{case}|{run}"][where][name] = tensor
    out, errors = {}, {}
    for case in cases:
        places = tensors[case["id"]]
        family = case["function"].split(".")[0]
        if family == "yaml":
            out.update({f"{case['id']}|{name}": tensor for name, tensor in by_yaml(case, places).items()})
            continue
        answer = {"peft": by_peft, "probabilities": drawn_from}.get(family, by_mergekit)
        if answer is by_mergekit and not any(place.startswith("mask/") for place in places):
            try:
                merged = whole_by_mergekit(case, places)
                out.update({f"{case['id']}|{name}": tensor for name, tensor in merged.items()})
                continue
            except Exception:
                pass  # One tensor spoils the whole: ask for each.
        for name in places[case["models"][0]]:
            try:
                out[f"{case['id']}|{name}"] = answer(case, places, name)
            except Exception as error:
                errors[f"{case['id']}|{name}"] = f"{type(error).__name__}: {error}"
    save_file({key: tensor.contiguous().clone() for key, tensor in out.items()}, folder / "out.safetensors")
    versions = {package: version(package) for package in ("mergekit", "peft", "torch", "transformers", "scipy")}
    (folder / "notes.json").write_text(json.dumps({"versions": versions, "errors": errors}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
