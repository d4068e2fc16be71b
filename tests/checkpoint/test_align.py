"""Whether checkpoints fit together, and the message where they do not."""

from __future__ import annotations

import pytest
import torch

from fusion_bench.checkpoint.align import MAX_LINES, align
from fusion_bench.checkpoint.base import Checkpoint
from fusion_bench.checkpoint.memory import MemoryCheckpoint
from fusion_bench.errors import AlignmentError


def checkpoint(**tensors: torch.Tensor) -> Checkpoint:
    return MemoryCheckpoint(tensors)


F, G, I = torch.zeros(3, 2), torch.zeros(2), torch.zeros(2, dtype=torch.int64)  # noqa: E741  kinds of tensors


def test_same_tensors() -> None:
    base = checkpoint(w=F, b=G, n=I)
    alignment = align(base, {"one": checkpoint(w=F, b=G, n=I), "two": checkpoint(w=F, b=G, n=I)})
    assert alignment.names == ("b", "n", "w")
    assert alignment.floating == ("b", "w")
    assert alignment.integer == ("n",)
    assert alignment.reference == "base"
    assert alignment.dtypes == {}


def test_without_a_base_the_first_model_is_the_reference() -> None:
    alignment = align(None, {"one": checkpoint(w=F.bfloat16()), "two": checkpoint(w=F)})
    assert alignment.reference == "one"
    assert alignment.infos["w"].dtype == "BF16"
    assert alignment.dtypes == {"two": {"F32": 1}}


def test_no_models() -> None:
    with pytest.raises(AlignmentError, match="no models"):
        align(checkpoint(w=F), {})


def test_every_misfit_of_every_model_is_listed_at_once() -> None:
    base = checkpoint(w=F, b=G, n=I)
    models = {
        "cola": checkpoint(w=F, n=I),
        "mnli": checkpoint(w=torch.zeros(4, 4), n=I, extra=G),
        "mrpc": checkpoint(w=F, b=I.clone(), n=I),
        "good": checkpoint(w=F, b=G, n=I),
    }
    with pytest.raises(AlignmentError) as caught:
        align(base, models)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "b [cola, mnli]" in lines
    assert "extra [mnli]" in lines
    assert "w: [4, 4] instead of [3, 2] [mnli]" in lines
    assert "b: I64 instead of F32 [mrpc]" in lines
    assert "good" not in str(caught.value)


def test_vocabulary_sizes_get_a_hint() -> None:
    with pytest.raises(AlignmentError, match="resize_token_embeddings"):
        align(checkpoint(shared=torch.zeros(8, 2)), {"one": checkpoint(shared=torch.zeros(7, 2))})
    with pytest.raises(AlignmentError) as caught:
        align(checkpoint(shared=torch.zeros(8, 2)), {"one": checkpoint(shared=torch.zeros(8, 3))})
    assert "resize_token_embeddings" not in str(caught.value)


def test_long_lists_are_cut() -> None:
    many = MemoryCheckpoint({f"t{i:03d}": torch.zeros(1) for i in range(100)})
    with pytest.raises(AlignmentError, match=f"and {100 - MAX_LINES} more") as caught:
        align(checkpoint(w=F), {"one": many})
    assert len(str(caught.value).splitlines()) < 30


def test_a_name_tied_in_some_and_separate_in_others_is_read_from_all() -> None:
    tied = checkpoint(shared=F, head=F)
    untied = checkpoint(shared=F.clone(), head=F.clone())
    for base, model in ((tied, untied), (untied, tied)):
        alignment = align(base, {"one": model})
        assert alignment.names == ("head", "shared")
        assert all(name in model and name in base for name in alignment.names)


def test_ties_stored_under_different_names_are_one_tensor() -> None:
    first = checkpoint(shared=F, head=F)
    second = checkpoint(head=F, shared=F)
    assert first.aliases != second.aliases
    assert align(first, {"one": second}).names == ("shared",)


def test_a_tied_name_missing_in_the_reference_is_extra() -> None:
    with pytest.raises(AlignmentError, match="extra"):
        align(checkpoint(shared=F), {"one": checkpoint(shared=F.clone(), head=F.clone())})
