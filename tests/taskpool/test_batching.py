"""Batches hold every prompt once, within their bounds, neighbours in length together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusion_bench.taskpool.batching import BatchSize, plan

sizes = st.builds(
    BatchSize,
    batch_tokens=st.integers(1, 300),
    batch_rows=st.integers(1, 9),
    group_tokens=st.integers(1, 900),
    group_rows=st.integers(1, 20),
)


@given(st.lists(st.integers(1, 120), max_size=60), sizes)
def test_plan(lengths: list[int], size: BatchSize) -> None:
    groups = plan(lengths, size)
    flat = [place for group in groups for batch in group for place in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[place] for place in flat] == sorted(lengths, reverse=True)
    for group in groups:
        for batch in group:
            assert 0 < len(batch) <= size.batch_rows
            assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= size.batch_tokens
        rows = sum(map(len, group))
        assert len(group) == 1 or (rows <= size.group_rows and rows * lengths[group[0][0]] <= size.group_tokens)


def test_a_batch_size_that_is_asked_for_is_kept() -> None:
    groups = plan([5, 900, 7, 8, 2], BatchSize.choose(2, "cpu"))
    assert groups == [[[1, 3]], [[2, 0]], [[4]]]
