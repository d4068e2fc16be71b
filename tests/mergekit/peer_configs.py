"""Configurations that both must merge to the same tensors."""

# ruff: noqa: E501  (a configuration is easier to read on one line)

from __future__ import annotations

import textwrap

FILTERS = """\
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - filter: layers.1.
      value: 0.9
    - value: 0.5
"""


def whole(method: str, *models: str, base: str | None = None, top: str = "", dtype: str | None = "float32") -> str:
    """A configuration over whole models, each ``name`` or ``name weight: 1, density: 0.5``."""
    lines = [f"merge_method: {method}"]
    if dtype:
        lines.append(f"dtype: {dtype}")
    if base:
        lines.append(f"base_model: {base}")
    lines.append("models:")
    for model in models:
        name, _, parameters = model.partition(" ")
        lines.append(f"  - model: {name}")
        if parameters:
            lines.append(f"    parameters: {{{parameters}}}")
    if top:
        lines.append("parameters:" if "\n" in top else f"parameters: {{{top}}}")
    return "\n".join(lines) + "\n" + (textwrap.indent(textwrap.dedent(top), "  ") if "\n" in top else "")


WEIGHED = ("r1 weight: 0.7", "r2 weight: [0.1, 0.9]", "r3 'weight': -0.4")
DENSE = ("r1 weight: 0.7, density: 0.5", "r2 weight: [0.1, 0.9], density: [0.9, 0.2]", "r3 weight: 1, density: 0.29")
SLICED = """\
merge_method: {method}
{base}dtype: float32
slices:
  - sources:
      - {{model: r0, layer_range: [0, 3]{first}}}
      - {{model: r1, layer_range: [1, 4]{first}}}
    parameters: {{{slice}}}
  - sources:
      - {{model: r1, layer_range: [2, 4]{second}}}
      - {{model: r0, layer_range: [0, 2]{second}}}
{top}"""

CONFIGS: dict[str, str] = {
    "linear": whole("linear", *WEIGHED),
    "linear_plain": whole("linear", *WEIGHED, top="normalize: false"),
    "linear_filters": whole(
        "linear",
        "r1 weight: [{filter: q_proj, value: 2}, {filter: layers.2., value: [0, 3]}, {filter: mlp, value: [0.2, 0.8, 1]}]",
        "r2 weight: 1",
        top="weight: 0.3",
    ),
    "linear_base_listed": whole("linear", "r0 weight: 1", "r1 weight: 2", base="r0"),
    "linear_base_unlisted": whole("linear", "r1 weight: 2", base="r0", top="weight: 0.5"),
    "linear_one": whole("linear", "r1 weight: 3"),
    "slerp": whole("slerp", "r0", "r1", base="r0", top="t: 0.3"),
    "slerp_base_second": whole("slerp", "r1", "r0", base="r0", top="t: 0.3"),
    "slerp_base_unlisted": whole("slerp", "r1", base="r0", top="t: [0, 1]"),
    "slerp_near": whole("slerp", "r1", base="near", top="t: [0.2, 0.7]"),
    "slerp_filters": whole("slerp", "r0", "r1", base="r0") + "parameters:\n" + FILTERS,
    "slerp_slices": SLICED.format(
        method="slerp", base="base_model: r0\n", first="", second="", slice="t: [0, 0.4, 1]", top="parameters:\n" + FILTERS
    ),
    "linear_slices": SLICED.format(
        method="linear", base="", first=", parameters: {weight: [{filter: layers.1., value: 2}, {value: 0.5}]}",
        second="", slice="normalize: false", top="parameters: {weight: [1, 3]}",
    ),
    "arithmetic_slices": SLICED.format(
        method="task_arithmetic", base="base_model: r0\n", first=", parameters: {weight: [0.5, 1]}",
        second=", parameters: {weight: 0.25}", slice="lambda: [0, 2]", top="",
    ),
    "nuslerp_slices": SLICED.format(
        method="nuslerp", base="", first=", parameters: {weight: [0.5, 1]}", second="", slice="", top="parameters: {weight: 0.25}"
    ),
    "task_arithmetic": whole("task_arithmetic", *WEIGHED, base="r0", top="lambda: 0.6"),
    "task_arithmetic_normalized": whole("task_arithmetic", *WEIGHED, base="r0", top="normalize: true, lambda: [0.2, 1]"),
    "task_arithmetic_zero_sum": whole(
        "task_arithmetic", "r1 weight: 1", "r2 weight: -1", base="r0", top="normalize: true"
    ),
    "task_arithmetic_one": whole("task_arithmetic", "r0 weight: 5", "r1 weight: 0.5", base="r0"),
    "ties": whole("ties", *DENSE, base="r0"),
    "ties_equal": whole("ties", "r1", "r2", "r3", base="r0", top="weight: 1, density: 0.2, lambda: 0.3, int8_mask: true"),
    "ties_plain": whole("ties", *DENSE, base="r0", top="normalize: false"),
    "ties_extremes": whole(
        "ties", "r1 weight: 1, density: 0", "r2 weight: 1, density: 1.5", "r3 weight: 0, density: 0.001", base="r0"
    ),
    "ties_filters": whole(
        "ties",
        "r1 weight: [{filter: mlp, value: 0.5}, {value: 0}], density: [1, 0.7, 0.1]",
        "r2 weight: 0.3, density: 0.5",
        base="r0",
        top="normalize: true, lambda: [{filter: self_attn, value: [0, 1]}, {value: 0.8}]",
    ),
    "ties_rescaled": whole("ties", *DENSE, base="r0", top="rescale: true"),
    "breadcrumbs_rescaled": whole("breadcrumbs", *DENSE, base="r0", top="rescale: true"),
    "breadcrumbs_ties_rescaled": whole("breadcrumbs_ties", "r1", "r2", base="r0", top="rescale: true, weight: 1, density: 0.6"),
    "dare_linear": whole("dare_linear", *WEIGHED, base="r0"),
    "dare_ties": whole("dare_ties", *WEIGHED, base="r0", top="lambda: 0.5"),
    "dare_ties_normalized": whole("dare_ties", *WEIGHED, base="r0", top="normalize: true"),
    "dare_zero": whole("dare_linear", "r1 weight: 1, density: 0", "r2 weight: 2", base="r0", top="normalize: true"),
    "della": whole("della", *WEIGHED, base="r0", top="lambda: 0.5"),
    "della_linear": whole("della_linear", *WEIGHED, base="r0"),
    "breadcrumbs": whole("breadcrumbs", *DENSE, base="r0"),
    "breadcrumbs_gamma": whole("breadcrumbs", *DENSE, base="r0", top="gamma: [0, 0.3], lambda: 0.5"),
    "breadcrumbs_ties": whole("breadcrumbs_ties", *DENSE, base="r0", top="gamma: 0.1"),
    "breadcrumbs_equal": whole("breadcrumbs_ties", "r1", "r2", base="r0", top="weight: 1, density: 0.7, gamma: 0.1"),
    "sce": whole("sce", "r1", "r2", "r3", base="r0", top="select_topk: 0.4"),
    "sce_gradient": whole("sce", "r1 weight: 3", "r2", base="r0", top="select_topk: [1, 0.1]"),
    "model_stock": whole("model_stock", "r1", "r2", "r3", base="r0"),
    "model_stock_rows": whole("model_stock", "r1", "r2", base="r0", top="filter_wise: true"),
    "model_stock_mixed": whole("model_stock", "r1", "r2", base="r0", top="filter_wise: [true, false]"),
    "nuslerp": whole("nuslerp", "r1 weight: [0.1, 1]", "r2 weight: 0.5"),
    "nuslerp_base": whole("nuslerp", "r1 weight: 1", "r2 weight: 0.5", base="r0"),
    "nuslerp_rows": whole("nuslerp", "r1 weight: 1", "r2 weight: 2", top="nuslerp_flatten: false, nuslerp_row_wise: true"),
    "nuslerp_columns": whole("nuslerp", "r1 weight: 1", "r2 weight: 2", base="r0", top="nuslerp_flatten: false"),
    "multislerp": whole("multislerp", "r1 weight: [0.1, 1]", "r2 weight: 0.5", "r3 weight: 1"),
    "multislerp_base": whole("multislerp", "r1 weight: 1", "r2 weight: 0.5", "r3 weight: 2", base="r0"),
    "multislerp_sum_one": whole("multislerp", "r1 weight: 0.75", "r2 weight: 0.25", top="normalize_weights: false"),
    "karcher": whole("karcher", "r1", "r2", "r3"),
    "karcher_base": whole("karcher", "r1", "r2", base="r0", top="max_iter: 3, tol: 1e-4"),
    "nearswap": whole("nearswap", "r1", base="r0", top="t: [0.01, 0.5]"),
    "ram": whole("ram", "near", "r2", base="r0", top="epsilon: 0.2"),
    "passthrough": whole("passthrough", "r1"),
    "passthrough_scaled": whole("passthrough", "r1 scale: [{filter: o_proj, value: 0}, {filter: mlp, value: [1, 2]}]"),
    "frankenmerge": """\
merge_method: passthrough
dtype: float32
slices:
  - sources: [{model: r0, layer_range: [0, 3]}]
  - sources: [{model: deep, layer_range: [2, 6], parameters: {scale: [{filter: down_proj, value: [0.5, 1]}]}}]
  - sources: [{model: r1, layer_range: [3, 4]}]
""",
    "one_slice": """\
merge_method: linear
slices:
  - sources:
      - {model: deep, layer_range: [0, 4], parameters: {weight: 1}}
      - {model: r1, layer_range: [0, 4], parameters: {weight: 3}}
base_model: r1
""",
    "tied": whole("linear", "t0 weight: 1", "t1 weight: 2"),
    "tied_and_untied": whole("linear", "t0 weight: 1", "r1 weight: 2", base="r1", top="weight: 1"),
    "tied_slices": """\
merge_method: passthrough
slices:
  - sources: [{model: t0, layer_range: [0, 2]}]
  - sources: [{model: t1, layer_range: [1, 4]}]
""",
    "t5": whole("linear", "t5_0 weight: [0.3, 1]", "t5_1 weight: 0.5"),
    "gpt2": whole("task_arithmetic", "gpt2_1 weight: [0.3, 1]", base="gpt2_0"),
    "bert": whole("slerp", "bert_1", base="bert_0", top="t: [0, 1]"),
    "bert_slices": """\
merge_method: passthrough
slices:
  - sources: [{model: bert_0, layer_range: [0, 2]}]
  - sources: [{model: bert_1, layer_range: [1, 2]}]
""",
    "half_inputs": whole("linear", "h1 weight: 1", "h2 weight: 2", dtype="float32"),
    "promoted": whole("linear", "h1 weight: 1", "r2 weight: 2", dtype=None),
    "mixed_halves": whole("passthrough", "h1", dtype=None),
    "out_dtype": whole("task_arithmetic", *WEIGHED, base="r0") + "out_dtype: bfloat16\n",
    "tokenizer_base": whole("linear", "w0 weight: 1", "w1 weight: 2", base="w0") + "tokenizer_source: base\n",
    "tokenizer_model": whole("linear", "w0 weight: 1", "w1 weight: 2") + "tokenizer: {source: w1}\n",
}  # fmt: skip
