"""Mixes of tensor types that a model which does not fit is offered. Oracle: the shipped shapes, and plain sums."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hetrun.cli.mixes import mixes
from hetrun.model.shape import Shape, load_shape
from hetrun.tensor import TENSOR_TYPES


def nbytes(shape: Shape) -> int:
    return sum(w.nbytes for w in shape.tensors.values())


def test_the_papers_file_has_the_boards_mix() -> None:
    paper, board = load_shape("tinyllama-q2_k"), load_shape("tinyllama-382mb")
    found = {label: shape for shape, label in mixes(paper)}
    wanted = found["gate and up in Q2_K, output in Q3_K"]
    assert dict(wanted.tensors) == dict(board.tensors)
    assert list(found)[-1] == "gate and up in Q2_K, output in Q3_K"  # nothing smaller


@pytest.mark.parametrize("name", ["tinyllama", "tinyllama-q2_k", "smollm2-135m", "llama2-7b"])
def test_mixes_get_smaller_and_never_raise_a_type(name: str) -> None:
    shape = load_shape(name)
    sizes = [nbytes(shape), *(nbytes(mix) for mix, _ in mixes(shape))]
    assert sizes == sorted(set(sizes), reverse=True)
    for mix, label in mixes(shape):
        assert mix.metadata is shape.metadata
        for name_, weight in mix.tensors.items():
            before = shape.tensors[name_]
            assert weight.shape == before.shape
            if not label.startswith("the types of"):
                assert weight.nbytes <= before.nbytes
                changed = weight.type is not before.type
                assert not changed or name_ == "output.weight" or ".ffn_gate." in name_ or ".ffn_up." in name_


def test_rows_that_are_no_whole_blocks_keep_their_type() -> None:
    shape = load_shape("tinyllama")
    odd = {n: replace(w, type=TENSOR_TYPES["Q4_0"], shape=(w.shape[0], 96)) for n, w in shape.tensors.items()}
    assert mixes(replace(shape, tensors=odd)) == []


def test_a_model_in_the_lowest_types_has_none() -> None:
    assert mixes(load_shape("tinyllama").quantised("Q2_K")) == []
