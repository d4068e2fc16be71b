"""Hyperparameters by tensor name: filters, gradients over depth, groups of their own."""

from __future__ import annotations

import pytest
import torch

from fusion_bench.api import fuse
from fusion_bench.build import build
from fusion_bench.errors import ConfigError
from fusion_bench.method import method_class

NAMES = [
    "embed_tokens.weight",
    *(f"layers.{i}.{part}.weight" for i in range(5) for part in ("mlp", "attn")),
    "norm.weight",
]


def state(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(6, 4, generator=generator, dtype=torch.float64) for name in NAMES}


BASE, MODELS = state(0), {"a": state(1), "b": state(2)}


def by_name(inner: object, *rules: dict[str, object]) -> object:
    return build(method_class("by_name"), {"inner": inner, "rules": list(rules)}, "method")


def arithmetic(name: str, factor: float) -> torch.Tensor:
    return BASE[name] + factor * sum(model[name] - BASE[name] for model in MODELS.values())


def test_first_rule_that_fits_counts() -> None:
    method = by_name(
        "task_arithmetic", {"filter": "layers.1.*", "scaling_factor": 2}, {"filter": "mlp", "scaling_factor": 0}
    )
    out = fuse(method, MODELS, BASE)
    for name in NAMES:
        factor = 2 if name.startswith("layers.1.") else 0 if "mlp" in name else 0.3
        torch.testing.assert_close(out[name], arithmetic(name, factor), rtol=1e-12, atol=1e-12)


def test_gradient_is_interpolated_over_depth() -> None:
    out = fuse(by_name("task_arithmetic", {"scaling_factor": [0, 1, 0.5]}), MODELS, BASE)
    for block, factor in enumerate([0, 0.5, 1, 0.75, 0.5]):
        name = f"layers.{block}.mlp.weight"
        torch.testing.assert_close(out[name], arithmetic(name, factor), rtol=1e-12, atol=1e-12)
    assert torch.equal(out["embed_tokens.weight"], BASE["embed_tokens.weight"])
    torch.testing.assert_close(out["norm.weight"], arithmetic("norm.weight", 0.5), rtol=1e-12, atol=1e-12)


def test_equal_hyperparameters_are_one_model() -> None:
    """A threshold over the whole model spans the tensors of its rule alone."""
    rule = {"filter": "mlp", "threshold": 50}
    out = fuse(by_name({"name": "ties_merging", "threshold": 10}, rule), MODELS, BASE)
    for word, threshold in (("mlp", 50), ("", 10)):
        names = [n for n in NAMES if ("mlp" in n) == bool(word)]
        alone = fuse(
            method_class("ties_merging")(threshold=threshold),  # type: ignore[call-arg]
            {key: {n: model[n] for n in names} for key, model in MODELS.items()},
            {n: BASE[n] for n in names},
        )
        assert all(torch.equal(out[n], alone[n]) for n in names)


def test_weights_by_name() -> None:
    method = by_name("weighted_average", {"filter": "attn", "weights": {"a": 1.0, "b": 3.0}})
    out = fuse(method, MODELS)
    torch.testing.assert_close(
        out["layers.0.attn.weight"],
        0.25 * MODELS["a"]["layers.0.attn.weight"] + 0.75 * MODELS["b"]["layers.0.attn.weight"],
    )
    torch.testing.assert_close(out["norm.weight"], 0.5 * (MODELS["a"]["norm.weight"] + MODELS["b"]["norm.weight"]))


def test_no_base_is_asked_for_unless_inside() -> None:
    with pytest.raises(ConfigError, match="base"):
        fuse(by_name("task_arithmetic"), MODELS)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"filter": "mpl", "scaling_factor": 1}, ["'mpl'", "layers.0"]),
        ({"filter": "mlp", "scaling_fator": 1}, ["method.rules.scaling_fator", "scaling_factor"]),
        ({"filter": "mlp", "scaling_factor": "much"}, ["method.rules.scaling_factor=much"]),
    ],
)
def test_mistakes(rule: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        fuse(by_name("task_arithmetic", rule), MODELS, BASE)
    assert all(word in str(caught.value) for word in words), caught.value
