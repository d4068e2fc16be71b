"""Methods that look at data, from the command line: declared, kept, continued, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fusion_bench.zoo
from fusion_bench import TensorData, fuse
from fusion_bench.errors import ConfigError, DataError, NonFiniteError
from fusion_bench.method import method_class

TWO = ("modelpool.select=[rte,sst2]", "taskpool.select=[rte,sst2]")
SMALL = (*TWO, "taskpool=mini-t5_glue_text_generation", "taskpool.split=validation", "taskpool.limit=4", "threads=1")
ADAPT = ("method=layer_wise_adamerging", "method.steps=3", "method.batch_size=4", "method.lr=0.01")


def report(place: Path) -> Any:
    return json.loads(place.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("method", "declared"),
    [
        (["method=fisher_merging", "method.examples=2"], "statistics of the train split of rte, sst2: 2 of 6,000"),
        (["method=regmean", "method.examples=4"], "right answers as the decoder's inputs; NOT the reported split"),
        (["method=regmean_plus_plus", "method.examples=4"], "statistics of the train split"),
        (["method=mats", "method.metric=gram", "method.examples=4"], "statistics of the train split"),
        (["method=mats", "method.metric=identity"], "data: none is looked at"),
        ([*ADAPT], "adapts on the train split of rte, sst2: 12 of 6,000 examples each, labels unused"),
        (["method=greedy_soup"], "chooses by the train split of rte, sst2: 4 examples each, with labels"),
    ],
)
def test_what_is_looked_at_is_declared(
    method: list[str], declared: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    ran = command(*method, *SMALL, "save_report=r.json")
    assert ran.status == 0, ran.err
    assert declared in ran.out
    told = report(tmp_path / "r.json")["run"]["fit"]
    assert declared in told["declared"]
    assert all(not fact["reported"] for fact in told["data"].values())


def test_the_reported_split_is_kept_apart(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command(*ADAPT, *SMALL, "taskpool.fit_split=validation")
    assert ran.status == 2
    assert "the split that is reported, too" in ran.err
    ran = command(*ADAPT, *SMALL, "protocol=paper", "dry_run=true")
    assert "THE REPORTED SPLIT" in ran.out


def test_mnli_calls_its_reported_split_by_two_names(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    place = tmp_path / "glue" / "mnli"
    place.mkdir(parents=True)
    rows = {"premise": ["a"] * 4, "hypothesis": ["b"] * 4, "label": [0, 1, 2, 0], "idx": [0, 1, 2, 3]}
    for split in ("validation_matched", "train"):
        parquet.write_table(pa.table(rows), place / f"{split}-00000-of-00001.parquet")
    given = (
        *ADAPT, "taskpool=flan-t5_glue_text_generation", f"taskpool.data_dir={tmp_path}", "taskpool.select=[mnli]",
        "modelpool.select=[mnli]", "dry_run=true",
    )  # fmt: skip
    for alias in ("validation", "validation_matched"):
        ran = command(*given, f"taskpool.fit_split={alias}")
        assert ran.status == 2, ran.out
        assert "the split that is reported, too" in ran.err
    assert command(*given).status == 0


def test_the_same_command_finds_its_model_and_what_was_learnt(command: Callable[..., Any], tmp_path: Path) -> None:
    given = (*ADAPT, *SMALL, "save_model=out", "save_report=r.json")
    assert command(*given).status == 0
    first = report(tmp_path / "r.json")["run"]["fit"]
    ran = command(*given)
    assert "nothing to do" in ran.err
    again = report(tmp_path / "r.json")["run"]["fit"]
    assert again["coefficients"] == first["coefficients"]
    assert again["curves"] == first["curves"]
    assert command("verify", "out").status == 0
    # Another split to look at makes another model.
    ran = command(*ADAPT, *SMALL, "taskpool.fit_split=test", "save_model=out")
    assert ran.status == 2
    assert "another command" in ran.err


def test_a_report_begins_another_run(command: Callable[..., Any], tmp_path: Path) -> None:
    assert command(*ADAPT, *SMALL, "save_report=r.json", "save_model=one").status == 0
    zero = ("method=layer_wise_adamerging", "method.steps=0", "method.init=r.json", *SMALL, "save_model=two")
    assert command(*zero).status == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    # What the file holds is part of what the model was made from.
    found = report(tmp_path / "r.json")
    found["run"]["fit"]["coefficients"]["others"] = [0.9, 0.9]
    (tmp_path / "r.json").write_text(json.dumps(found))
    ran = command(*zero)
    assert ran.status == 2
    assert "another command" in ran.err
    ran = command("method=task_wise_adamerging", "method.steps=0", "method.init=r.json", *SMALL)
    assert ran.status == 2
    assert "layer_wise_adamerging" in ran.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"models": ["rte", "sst2"], "others": [0.3], "by_tensor": {}}, "holds no coefficients"),
        ({"models": ["rte", "sst2"], "others": [0.3, 0.3], "by_tensor": []}, "holds no coefficients"),
        ({"models": ["rte", "sst2"], "others": [0.3, 0.3], "by_tensor": {"no.weight": [9, 9]}}, "no.weight"),
        ({"models": ["rte"], "others": [0.3], "by_tensor": {}}, "none for sst2"),
    ],
)
def test_files_that_are_no_coefficients(
    content: Any, message: str, command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "c.json").write_text(json.dumps(content))
    ran = command("method=layer_wise_adamerging", "method.steps=0", "method.init=c.json", *SMALL)
    assert ran.status == 2
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_a_changed_adapter_config_is_another_model(command: Callable[..., Any], tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(fusion_bench.zoo.MINI_T5, pool)
    given = ("method=regmean", "method.examples=2", "modelpool=folder", f"modelpool.path={pool}", *SMALL)
    assert command(*given, "save_report=a.json", "save_model=m").status == 0
    config = pool / "rte" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 1}))
    ran = command(*given, "save_report=b.json", "save_model=m")
    assert ran.status == 2
    assert "another command" in ran.err
    assert command(*given, "save_report=b.json").status == 0
    costs = [report(tmp_path / name)["run"]["fit"]["statistics"] for name in ("a.json", "b.json")]
    assert not costs[1]["rte"].get("from_cache")
    assert costs[1]["sst2"].get("from_cache")


def test_a_changed_config_is_another_forward(command: Callable[..., Any], tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(fusion_bench.zoo.MINI_T5, pool)
    given = ("method=regmean", "method.examples=2", "modelpool=folder", f"modelpool.path={pool}", *SMALL)
    assert command(*given, "save_report=a.json").status == 0
    config = pool / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "layer_norm_epsilon": 0.5}))
    assert command(*given, "save_report=b.json").status == 0
    assert not any(cost.get("from_cache") for cost in report(tmp_path / "b.json")["run"]["fit"]["statistics"].values())


def test_an_unusable_cache_costs_the_reuse_alone(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSION_BENCH_CACHE", str(tmp_path / "file"))
    for method in (ADAPT, ("method=regmean", "method.examples=2")):
        ran = command(*method, *SMALL)
        assert ran.status == 0, ran.err


def test_broken_states_are_no_states(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_BENCH_CACHE", str(tmp_path / "cache"))
    assert command(*ADAPT, *SMALL, "save_report=a.json").status == 0
    [state] = (tmp_path / "cache" / "adaptations").glob("*.json")
    whole = state.read_bytes()
    for broken in (b"{", b"[]", b'"x"', b'{"count": 1}', whole[:-5], whole.replace(b"first", b"fjrst")):
        state.write_bytes(broken)
        assert command(*ADAPT, *SMALL, "save_report=b.json").status == 0
        first, again = (report(tmp_path / name)["run"]["fit"] for name in ("a.json", "b.json"))
        assert first["coefficients"] == again["coefficients"]
        assert again["steps_found"] == 0
    assert command(*ADAPT, *SMALL, "save_report=b.json").status == 0
    assert report(tmp_path / "b.json")["run"]["fit"]["steps_found"] == 3


def test_refusals_before_work(command: Callable[..., Any]) -> None:
    for given, message in (
        ((*ADAPT, *SMALL, "save_adapter=a"), "looks at data"),
        (("method=regmean",), "taskpool=dummy has none"),
        (("method=regmean", "modelpool.select=[cola]", *SMALL[1:]), "no task for cola"),
        (("method=emr_merging", "seen=[rte]", "unseen=[sst2]", *SMALL[2:]), "one model a task"),
        (("method=regmean", "seen=[rte]", "unseen=[rte]", *SMALL[2:]), "both name rte"),
    ):
        ran = command(*given)
        assert ran.status == 2, given
        assert message in ran.err, ran.err


def test_averages_over_seen_and_unseen_tasks(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command(
        "method=regmean", "method.examples=2", "seen=[rte]", "unseen=[sst2]", *SMALL[2:], "save_report=r.json"
    )
    assert ran.status == 0, ran.err
    found = report(tmp_path / "r.json")
    assert found["seen_average"] == found["rte"]["accuracy"]
    assert found["unseen_average"] == found["sst2"]["accuracy"]
    assert set(found["run"]["inputs"]) == {"_pretrained_", "rte"}
    assert "seen" in ran.out


class Net(torch.nn.Module):
    def __init__(self, seed: int, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))
        return out


def images(name: str) -> TensorData:
    generator = torch.Generator().manual_seed(len(name))
    x = torch.randn(12, 3, 6, 6, generator=generator)
    return TensorData(name, x, torch.randint(0, 3, (12,), generator=generator))


def adapted(method: Any, form: Any = torch.contiguous_format, dropout: float = 0.0, data: Any = None) -> Any:
    base, models = (Net(0, dropout).to(memory_format=form), {n: Net(i, dropout) for i, n in enumerate(("a", "bb"), 1)})
    models = {name: model.to(memory_format=form) for name, model in models.items()}
    return fuse(method, models, base, data=data or {name: images(name) for name in models})


def test_the_layout_in_memory_does_not_matter() -> None:
    method = method_class("layer_wise_adamerging")(steps=4, batch_size=4, lr=0.1)  # type: ignore[call-arg]
    plain, turned = adapted(method), adapted(method, torch.channels_last)
    for one, other in zip(plain.parameters(), turned.parameters(), strict=True):
        torch.testing.assert_close(one, other.contiguous(), rtol=1e-5, atol=1e-6)


def test_dropout_draws_by_the_seed_of_the_run_alone() -> None:
    method = method_class("task_wise_adamerging")(  # type: ignore[call-arg]
        steps=4, batch_size=4, lr=0.1, train_mode=True
    )
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        result = adapted(method, dropout=0.5)
        torch.manual_seed(seed)
        adapted_again = adapted(method, dropout=0.5)
        found.append(result.head.weight)
        assert torch.equal(result.head.weight, adapted_again.head.weight)
    assert torch.equal(found[0], found[1])


def test_gradients_are_taken_under_no_grad() -> None:
    method = method_class("layer_wise_adamerging")(steps=2, batch_size=4, lr=0.1)  # type: ignore[call-arg]
    free = adapted(method)
    with torch.no_grad():
        bound = adapted(method)
    assert torch.equal(free.head.weight, bound.head.weight)


def test_nan_in_the_data_is_said_at_once() -> None:
    data = {name: images(name) for name in ("a", "bb")}
    data["a"]._inputs["x"][:] = float("nan")
    adaptation = method_class("layer_wise_adamerging")(steps=50, batch_size=4)  # type: ignore[call-arg]
    with pytest.raises(NonFiniteError, match=r"step 1: the entropy on the data of 'a'"):
        adapted(adaptation, data=data)
    with pytest.raises(NonFiniteError, match="a: the model's outputs are NaN"):
        adapted(method_class("greedy_soup")(), data=data)


def test_labels_beyond_the_classes() -> None:
    data = {name: TensorData(name, torch.randn(4, 3, 6, 6), [7, 7, 7, 7]) for name in ("a", "bb")}
    with pytest.raises(DataError, match="label 7, and the model has 3 classes"):
        adapted(method_class("greedy_soup")(), data=data)


def test_fitted_methods_say_what_they_need() -> None:
    with pytest.raises(ConfigError, match="looks at data"):
        fuse(method_class("regmean")(), [Net(1), Net(2)], Net(0))
