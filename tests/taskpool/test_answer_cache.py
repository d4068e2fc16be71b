"""Answers survive interruptions, torn lines and other processes."""

from __future__ import annotations

from pathlib import Path

from fusion_bench.taskpool.answer_cache import AnswerCache, NoCache, prompt_digest


def test_what_was_added_is_read(tmp_path: Path) -> None:
    cache = AnswerCache({"weights": "a"}, tmp_path)
    assert cache.read() == {}
    cache.append([(prompt_digest("p"), 'an "answer"\nof ü lines'), (prompt_digest("q"), "")])
    AnswerCache({"weights": "a"}, tmp_path).append([(prompt_digest("r"), "x")])
    assert cache.read() == {
        prompt_digest("p"): 'an "answer"\nof ü lines',
        prompt_digest("q"): "",
        prompt_digest("r"): "x",
    }
    assert AnswerCache({"weights": "b"}, tmp_path).read() == {}


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    cache = AnswerCache({}, tmp_path)
    cache.append([("a", "1"), ("b", "2")])
    whole = cache.file.read_bytes()
    cache.file.write_bytes(whole[:-4])
    assert cache.read() == {"a": "1"}
    cache.append([("c", "3")])
    assert cache.read() == {"a": "1", "c": "3"}
    cache.file.write_bytes(cache.file.read_bytes() + b'[1]\n{"prompt": 1, "answer": 2}\n{"prompt": "d"}\n\xff\n')
    assert cache.read() == {"a": "1", "c": "3"}


def test_a_place_that_cannot_be_written_to_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = AnswerCache({}, tmp_path / "file" / "below")
    cache.append([("a", "1")])
    assert cache.read() == {}
    NoCache().append([("a", "1")])
    assert NoCache().read() == {}
