"""Headers of every family whose metadata and tensors disagree: refused by the name of the tensor or key."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from families import CASES, header

from hetrun.errors import HetrunError, ModelFileError, UnsupportedModelError
from hetrun.model.architectures import FAMILIES, GraphOptions, architectures, build_graph

# Nothing in these files says that they had it: such a tensor may be missing from all layers of a sound file.
OPTIONAL = {"llama-biases": (".bias",), "llama-llama3": ("rope_freqs",)}
# The counterpart of what these contexts take.
UNUSED = ("rope_factors_short.weight",)


def built(arch, metadata, tensors):
    return build_graph(arch, metadata, tensors, GraphOptions(), architectures())


@pytest.mark.parametrize("case", CASES)
def test_the_header_itself_builds(case):
    assert built(*header(case)).n_vocab == 96


def test_every_family_has_a_tiny_model():
    assert {f.name for f in FAMILIES} == {header(case)[0] for case in CASES}


def is_optional(case, name):
    return name in UNUSED or name == "output.weight" or any(part in name for part in OPTIONAL.get(case, ()))


@pytest.mark.parametrize("case", CASES)
def test_a_missing_tensor_is_named(case):
    arch, metadata, tensors = header(case)
    for name in tensors:
        rest = {n: w for n, w in tensors.items() if n != name}
        if name.startswith("blk.") or not is_optional(case, name):
            with pytest.raises(UnsupportedModelError, match=re.escape(name)):
                built(arch, metadata, rest)


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_missing_from_all_layers_is_named(case):
    arch, metadata, tensors = header(case)
    for part in {n.split(".", 2)[2] for n in tensors if n.startswith("blk.")}:
        if not is_optional(case, part):
            with pytest.raises(UnsupportedModelError, match=rf"blk\.\d\.{re.escape(part)}|tensors blk"):
                built(arch, metadata, {n: w for n, w in tensors.items() if not n.endswith(part)})


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_of_another_shape_is_named_with_what_was_expected(case):
    arch, metadata, tensors = header(case)
    for name, weight in tensors.items():
        for axis in range(len(weight.shape)):
            shape = tuple(n + 1 if i == axis else n for i, n in enumerate(weight.shape))
            with pytest.raises(HetrunError) as found:
                built(arch, metadata, {**tensors, name: replace(weight, shape=shape)})
            told = str(found.value)
            if name == "token_embd.weight" and axis == 0:
                assert "97 rows" in told and "96 tokens" in told
            else:
                assert name in told and str(list(shape)) in told, told


# Keys that tensors contradict when they are changed.
CHECKED = (
    "vocab_size", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "expert_count", "expert_feed_forward_length",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_key_that_the_tensors_contradict_is_told(case):
    arch, metadata, tensors = header(case)
    dense = any("ffn_up." in name for name in tensors)
    for key in (f"{arch}.{key}" for key in CHECKED if f"{arch}.{key}" in metadata):
        if key.endswith(".feed_forward_length") and not dense:
            continue  # experts have a length of their own
        for value in (metadata[key] * 2, metadata[key] // 2 or 3, metadata[key] + 1):
            with pytest.raises((ModelFileError, UnsupportedModelError)) as found:
                built(arch, {**metadata, key: value}, tensors)
            told = str(found.value)
            assert key in told or "metadata asks for" in told or "is missing" in told, told


@pytest.mark.parametrize("case", CASES)
def test_a_missing_key_is_named(case):
    arch, metadata, tensors = header(case)
    needed = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"]
    needed += ["attention.layer_norm_rms_epsilon"] + ["expert_used_count"] * (f"{arch}.expert_count" in metadata)
    needed += ["attention.sliding_window"] * (arch == "gemma3")
    for key in (f"{arch}.{key}" for key in needed):
        with pytest.raises(ModelFileError, match=re.escape(key)):
            built(arch, {k: v for k, v in metadata.items() if k != key}, tensors)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("value", [-1, 0, 1 << 40, "many", 2.5, float("nan"), True, [1]])
def test_a_value_that_makes_no_sense_is_an_error_never_a_crash(case, value):
    arch, metadata, tensors = header(case)
    for key in (k for k in metadata if k.startswith(f"{arch}.")):
        try:
            built(arch, {**metadata, key: value}, tensors)
        except HetrunError as error:
            assert error.message
