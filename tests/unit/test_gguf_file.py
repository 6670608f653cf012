"""The GGUF reader against the gguf package, which reads SmolLM2 and writes random files; the life of its mapping."""

from __future__ import annotations

import math
import mmap
import os
import subprocess
import sys
from pathlib import Path

import gguf
import hypothesis
import numpy as np
import pytest
from gguf_bytes import ARCHITECTURE, Kind, entry, gguf_bytes, opened, tensor, text, u32, u64, written
from hypothesis import strategies as st

from hetrun.errors import ModelFileError
from hetrun.model.gguf_file import ModelFile
from hetrun.model.metadata import MAX_ARRAY_DEPTH, MetadataArray


def plain(value):
    return value.to_list() if isinstance(value, MetadataArray) else value


# --- a real model, against GGUFReader


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
    with ModelFile.open(smollm2_path) as file:
        yield file


@pytest.fixture(scope="module")
def oracle(smollm2_path):
    return gguf.GGUFReader(smollm2_path)


def test_smollm2_metadata_equals_the_gguf_packages(smollm2, oracle):
    theirs = {key: field.contents() for key, field in oracle.fields.items() if not key.startswith("GGUF.")}
    assert {key: plain(value) for key, value in smollm2.metadata.items()} == theirs
    assert list(smollm2.metadata) == list(theirs)


def test_smollm2_value_kinds_equal_the_gguf_packages(smollm2, oracle):
    for key, value in smollm2.metadata.items():
        types = oracle.fields[key].types
        if isinstance(value, MetadataArray):
            assert (types[0], value.element_kind) == (Kind.ARRAY, types[1].name.lower()), key
        else:
            assert isinstance(value, {Kind.STRING: str, Kind.BOOL: bool, Kind.FLOAT32: float}.get(types[0], int)), key


def test_smollm2_tensors_equal_the_gguf_packages(smollm2, oracle):
    ours = [(w.name, w.type.name, w.shape, w.nbytes) for w in smollm2.tensors.values()]
    assert ours == [(t.name, t.tensor_type.name, tuple(t.shape.tolist()[::-1]), t.n_bytes) for t in oracle.tensors]


def test_smollm2_blocks_equal_the_gguf_packages(smollm2, oracle):
    for theirs in oracle.tensors:
        ours = np.frombuffer(smollm2.blocks(theirs.name), dtype=np.uint8)
        assert np.array_equal(ours, theirs.data.reshape(-1).view(np.uint8)), theirs.name


def test_smollm2_header(smollm2, smollm2_path):
    assert (smollm2.version, smollm2.alignment, smollm2.architecture) == (3, 32, "llama")
    assert (smollm2.path, smollm2.size_bytes) == (Path(smollm2_path), os.path.getsize(smollm2_path))


def test_opening_imports_neither_numpy_nor_gguf(smollm2_path):
    code = (
        "import sys; from hetrun.model.gguf_file import ModelFile; f = ModelFile.open(sys.argv[1]);"
        "f.metadata['tokenizer.ggml.tokens'].to_list(); f.blocks('token_embd.weight');"
        "print([m for m in ('numpy', 'gguf', 'rich', 'jinja2') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, smollm2_path], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# --- whatever GGUFWriter writes is read back equal

INTEGERS = {f"{sign}int{bits}": bits for sign in ("u", "") for bits in (8, 16, 32, 64)}


def elements(kind):
    if kind in INTEGERS:
        bits = INTEGERS[kind]
        low, high = (0, 2**bits - 1) if kind[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return st.integers(low, high)
    if kind == "bool":
        return st.booleans()
    if kind == "string":
        return st.text(max_size=20)
    return st.floats(width=int(kind[5:]), allow_nan=False)


SCALAR_KINDS = [*INTEGERS, "bool", "string", "float32", "float64"]
KEYS = st.text(min_size=1, max_size=30).filter(lambda key: not key.startswith("general."))


def kind_and(values):
    return st.sampled_from(SCALAR_KINDS).flatmap(lambda kind: st.tuples(st.just(kind), values(kind)))


SCALARS = st.dictionaries(KEYS, kind_and(elements), max_size=12)
ARRAYS = st.dictionaries(KEYS, kind_and(lambda kind: st.lists(elements(kind), min_size=1, max_size=40)), max_size=8)
# The writer gives the innermost arrays of a nested one the kind of Python's own types.
NESTED = st.recursive(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4)
    | st.lists(st.text(max_size=6), min_size=1, max_size=4)
    | st.lists(st.booleans(), min_size=1, max_size=4),
    lambda inner: st.lists(inner, min_size=1, max_size=4),
    max_leaves=12,
).filter(lambda value: depth(value) <= MAX_ARRAY_DEPTH)


def depth(value):
    return 1 + max(map(depth, value)) if isinstance(value, list) else 0


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(SCALARS)
def test_scalars_written_by_the_gguf_package(values):
    def fill(writer):
        for key, (kind, value) in values.items():
            writer.add_key_value(key, value, Kind[kind.upper()])

    with opened(written(fill)) as file:
        expected = {"general.architecture": "llama"} | {key: value for key, (_, value) in values.items()}
        assert dict(file.metadata) == expected
        assert [type(v) for v in file.metadata.values()] == [type(v) for v in expected.values()]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(ARRAYS)
def test_arrays_written_by_the_gguf_package(values):
    def fill(writer):
        for key, (kind, value) in values.items():
            writer.add_key_value(key, value, Kind.ARRAY, sub_type=Kind[kind.upper()])

    with opened(written(fill)) as file:
        for key, (kind, value) in values.items():
            array = file.metadata[key]
            assert (array.element_kind, len(array), array.to_list(), list(array)) == (kind, len(value), value, value)
            assert [array[i] for i in range(-len(value), len(value))] == value + value
            assert array[1::2] == value[1::2]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(NESTED)
def test_nested_arrays_written_by_the_gguf_package(value):
    with opened(written(lambda writer: writer.add_array("nested", value))) as file:
        assert file.metadata["nested"].to_list() == value


@st.composite
def tensors(draw):
    name = draw(st.sampled_from([t.name for t in gguf.GGMLQuantizationType]))
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    shape = (*draw(st.lists(st.integers(1, 3), max_size=3)), block * draw(st.integers(1, 2)))
    n_bytes = math.prod(shape) // block * size
    return name, shape, draw(st.binary(min_size=n_bytes, max_size=n_bytes))


@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(
    st.dictionaries(st.text(min_size=1, max_size=20), tensors(), max_size=6), st.sampled_from([8, 32, 256])
)
def test_tensors_written_by_the_gguf_package(weights, alignment):
    def fill(writer):
        for name, (type_name, shape, data) in weights.items():
            kind = gguf.GGMLQuantizationType[type_name]
            array = np.frombuffer(data, np.uint8).reshape(gguf.quant_shape_to_byte_shape(shape, kind))
            writer.add_tensor(name, array, raw_dtype=kind)

    with opened(written(fill, alignment)) as file:
        assert file.alignment == alignment
        assert [(w.name, w.type.name, w.shape) for w in file.tensors.values()] == [
            (name, type_name, shape) for name, (type_name, shape, _) in weights.items()
        ]
        assert [bytes(file.blocks(name)) for name in weights] == [data for _, _, data in weights.values()]
        for name in weights:
            assert np.frombuffer(file.blocks(name), np.uint8).ctypes.data % alignment == 0


def test_long_number_arrays_are_read_across_chunks():
    value = list(range(10_001))
    with opened(written(lambda writer: writer.add_array("x", value))) as file:
        assert list(file.metadata["x"]) == value


# --- life of the mapping


@pytest.fixture
def small(tmp_path):
    words = entry("words", Kind.ARRAY, u32(Kind.STRING) + u64(2) + text("a") + text("b"))
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([ARCHITECTURE, words], [tensor("w", [8])], bytes(range(32))))
    return path


def test_blocks_are_a_read_only_view_without_a_copy(small):
    with ModelFile.open(small) as file:
        view = file.blocks("w")
        assert (view.readonly, view.format, view.nbytes, bytes(view)) == (True, "B", 32, bytes(range(32)))
        assert view.obj is file.blocks("w").obj and isinstance(view.obj, mmap.mmap)


def test_a_tensor_that_is_not_there_is_named(small):
    with (
        ModelFile.open(small) as file,
        pytest.raises(ModelFileError, match=r"holds no tensor 'blk\.0\.attn_q\.weight'"),
    ):
        file.blocks("blk.0.attn_q.weight")


def test_what_was_handed_out_outlives_close(small):
    file = ModelFile.open(small)
    view, words = file.blocks("w"), file.metadata["words"]
    file.close()
    assert bytes(view) == bytes(range(32))
    assert words.to_list() == ["a", "b"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_the_mapping_goes_with_the_last_view(small):
    def mapped():
        return str(small) in Path("/proc/self/maps").read_text()

    file = ModelFile.open(small)
    view = file.blocks("w")
    file.close()
    assert mapped()
    del view
    assert not mapped()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_a_refused_file_is_unmapped(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([], [tensor("w", [0])], bytes(64)))
    with pytest.raises(ModelFileError) as raised:
        ModelFile.open(path)
    assert raised.value and str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("use", [lambda f: f.metadata, lambda f: f.architecture, lambda f: f.blocks("w")])
def test_a_closed_file_says_so(small, use):
    file = ModelFile.open(small)
    file.close()
    file.close()
    with pytest.raises(ValueError, match=r"model\.gguf is closed"):
        use(file)


def test_the_maps_cannot_be_changed(small):
    with ModelFile.open(small) as file:
        for mapping in (file.metadata, file.tensors):
            with pytest.raises(TypeError):
                mapping["x"] = 1


@pytest.mark.parametrize("index", [2, -3, 1 << 64])
def test_an_index_outside_an_array_is_refused(small, index):
    with ModelFile.open(small) as file, pytest.raises(IndexError, match=f"index {index} in an array of 2"):
        _ = file.metadata["words"][index]


def test_raw_bytes_of_numbers_are_refused():
    array = opened(gguf_bytes([entry("a", Kind.ARRAY, u32(Kind.UINT8) + u64(1) + b"\0")])).metadata["a"]
    with pytest.raises(TypeError, match="this one holds uint8"):
        array.raw(0)
