"""Models known by their sizes alone. Oracles: published byte counts of the files, and a real file's header."""

from __future__ import annotations

import pytest

from hetrun.errors import ConfigError, UsageError
from hetrun.model.architectures import GraphOptions, architectures, build_graph
from hetrun.model.gguf_file import ModelFile
from hetrun.model.shape import load_shape
from hetrun.toml_table import shipped


def graph_of(shape):
    return build_graph(shape.architecture, shape.metadata, shape.tensors, GraphOptions(n_ctx=512), architectures())


@pytest.mark.parametrize("name", shipped("shapes"))
def test_every_shipped_shape_is_a_model(name):
    shape = load_shape(name)
    graph = graph_of(shape)
    assert set(graph.weights) == set(shape.tensors)
    assert len(graph.kv_specs) == shape.metadata[f"{shape.architecture}.block_count"]


def streamed_bytes(shape):
    """Read once a token: everything but the embedding's table (and the norms, which the published sums leave out)."""
    return sum(w.nbytes for n, w in shape.tensors.items() if n != "token_embd.weight" and len(w.shape) > 1)


def test_the_secda_llm_file_has_its_published_bytes():
    shape = load_shape("tinyllama-q2_k")
    assert sum(w.nbytes for w in shape.tensors.values()) == 481_406_976  # a public load log of the file
    assert streamed_bytes(shape) == pytest.approx(459.5e6, abs=0.05e6)  # the same, summed by tensor
    types = [w.type.name for w in shape.tensors.values()]
    assert [types.count(t) for t in ("Q2_K", "Q3_K", "Q6_K", "F32")] == [45, 110, 1, 45]


def test_the_mix_that_fits_the_board_streams_382_mb():
    assert streamed_bytes(load_shape("tinyllama-382mb")) == pytest.approx(382.4e6, abs=0.05e6)


@pytest.mark.parametrize(("name", "n_billion"), [("llama2-7b", 6.74), ("tinyllama", 1.10)])
def test_parameters_are_as_published(name, n_billion):
    n = sum(w.n_elements for w in load_shape(name).tensors.values())
    assert n / 1e9 == pytest.approx(n_billion, abs=0.005)


def test_a_shape_with_a_files_sizes_makes_its_graph(smollm2_path, tmp_path):
    with ModelFile.open(smollm2_path) as file:
        keys = [k for k, v in file.metadata.items() if k.startswith("llama.") and not isinstance(v, str)]
        lines = ['description = "x"', 'architecture = "llama"', "[metadata]"]
        lines += [f'"{k.removeprefix("llama.")}" = {file.metadata[k]!r}' for k in keys]
        lines.append("[tensors]")
        lines += [f'"{n}" = {{ shape = {list(w.shape)}, type = "{w.type}" }}' for n, w in file.tensors.items()]
        path = tmp_path / "smol.toml"
        path.write_text("\n".join(lines))
        options = GraphOptions(n_ctx=512)
        expected = build_graph(file.architecture, file.metadata, file.tensors, options, architectures())
    assert graph_of(load_shape(path)) == expected


def test_every_matrix_takes_the_type_asked_for():
    shape = load_shape("tinyllama").quantised("q8_0")
    assert {w.type.name for w in shape.tensors.values() if len(w.shape) > 1} == {"Q8_0"}
    assert shape.tensors["output_norm.weight"].type.name == "F32"


def test_a_type_that_cannot_be_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no tensor type 'Q4_X'.*Q4_"):
        load_shape("tinyllama").quantised("Q4_X")
    path = write(tmp_path, '"t" = { shape = [8, 96], type = "F16" }')
    with pytest.raises(UsageError, match="rows of 96, no multiple of Q4_K"):
        load_shape(path).quantised("Q4_K")


def write(folder, tensors, sizes="block_count = 2"):
    path = folder / "mine.toml"
    path.write_text(f'description = "x"\narchitecture = "llama"\n[metadata]\n{sizes}\n[tensors]\n{tensors}\n')
    return path


@pytest.mark.parametrize(
    ("tensors", "sizes", "message"),
    [
        ('"t" = { shape = [8, 33], type = "Q8_0" }', "block_count = 2", "rows of 33"),
        ('"t" = { shape = [], type = "F32" }', "block_count = 2", r"\[\] is no list"),
        ('"t" = { shape = [8, -1], type = "F32" }', "block_count = 2", "no list of positive"),
        ('"t" = { shape = [8], type = "F31" }', "block_count = 2", "unknown tensor type 'F31'.*did you mean F32"),
        ('"t" = { shape = [8], type = "F32", kind = 1 }', "block_count = 2", "kind: unknown key"),
        ('"t" = { shape = [8], type = "F32" }', "block_count = 0", "0 is no number of layers"),
        ('"t" = { shape = [8], type = "F32" }', "block_count = 1000000", "no number of layers"),
        ('"t" = { shape = [8], type = "F32" }', "", "None is no number of layers"),
    ],
)
def test_a_shape_that_makes_no_sense_is_named_with_its_file(tensors, sizes, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"mine\.toml.*{message}"):
        load_shape(write(tmp_path, tensors, sizes))


def test_an_unknown_shape_gets_near_matches():
    with pytest.raises(ConfigError, match=r"no shape 'lama2-7b'.*did you mean llama2-7b"):
        load_shape("lama2-7b")
