"""A whole small model on the reference device against an independent forward pass that shares no code with hetrun."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest

from hetrun import ops
from hetrun.device import Batch, Bindings, Segment
from hetrun.ops import KvSpec
from hetrun.reference.driver import ReferenceDriver
from hetrun.tensor import Weight, tensor_type_of_id

N_VOCAB, N_EMBD, N_FF, N_LAYERS, N_HEADS, N_HEADS_KV, HEAD_DIM = 50, 64, 96, 3, 4, 2, 16
EPS, ROPE_BASE, N_CTX, CHUNK = 1e-5, 1000.0, 64, 8

MATRICES = {
    "attn_q": (N_HEADS * HEAD_DIM, N_EMBD),
    "attn_k": (N_HEADS_KV * HEAD_DIM, N_EMBD),
    "attn_v": (N_HEADS_KV * HEAD_DIM, N_EMBD),
    "attn_output": (N_EMBD, N_HEADS * HEAD_DIM),
    "ffn_gate": (N_FF, N_EMBD),
    "ffn_up": (N_FF, N_EMBD),
    "ffn_down": (N_EMBD, N_FF),
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A random llama of three layers, its matrices in Q8_0 and F16."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYERS)
    writer.add_embedding_length(N_EMBD)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_HEADS_KV)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPS)

    def add(name, shape, type_name):
        values = rng.standard_normal(shape).astype(np.float32) * (0.3 if len(shape) == 2 else 1)
        kind = gguf.GGMLQuantizationType[type_name]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", (N_VOCAB, N_EMBD), "Q8_0")
    add("output_norm.weight", (N_EMBD,), "F32")
    for layer in range(N_LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{norm}.weight", (N_EMBD,), "F32")
        for name, shape in MATRICES.items():
            add(f"blk.{layer}.{name}.weight", shape, "F16" if name == "ffn_up" else "Q8_0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def independent_logits(checkout, monkeypatch, path, ids):
    monkeypatch.syspath_prepend(str(checkout / "benchmarks" / "accuracy"))
    import forward_numpy

    return forward_numpy.Llama(path, np.float64).logits(ids)


class TinyLlama:
    """The model's ops as one segment on an open device."""

    def __init__(self, path, n_slots=1):
        data, weights = {}, {}
        for t in gguf.GGUFReader(path).tensors:
            shape = tuple(int(n) for n in reversed(t.shape))
            weights[t.name] = Weight(t.name, tensor_type_of_id(int(t.tensor_type)), shape)
            data[t.name] = memoryview(np.ascontiguousarray(t.data)).cast("B").toreadonly()
        chain = list(self.chain(weights, n_slots))
        segment = Segment("tiny", tuple(chain), (), (chain[-1].output,), CHUNK, CHUNK)
        driver = ReferenceDriver()
        (info,) = driver.probe({})
        self.device = driver.open(info)
        self.logits = self.device.alloc(segment.value_bytes(chain[-1].output))
        states = {op.kv.name: self.device.state(op.kv) for op in chain if isinstance(op, ops.Attention)}
        bindings = Bindings({chain[-1].name: self.logits}, states)
        self.executable = self.device.load(driver.compile(info, segment), data, bindings)

    @staticmethod
    def chain(w, n_slots):
        frequencies = tuple(ROPE_BASE ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2))
        embedding = ops.Embedding("embedding", w["token_embd.weight"])
        yield embedding
        h = embedding.output
        for layer in range(N_LAYERS):
            b = f"blk.{layer}."
            norm = ops.RmsNorm(b + "attn_norm", h, w[b + "attn_norm.weight"], EPS)
            q, k, v = (ops.MatMul(b + n, norm.output, w[f"{b}{n}.weight"]) for n in ("attn_q", "attn_k", "attn_v"))
            q_rope = ops.Rope(b + "q_rope", q.output, HEAD_DIM, "interleaved", frequencies)
            k_rope = ops.Rope(b + "k_rope", k.output, HEAD_DIM, "interleaved", frequencies)
            kv = KvSpec(b + "kv", n_slots, N_CTX, N_HEADS_KV, HEAD_DIM, format="f32")
            attention = ops.Attention(b + "attn", q_rope.output, k_rope.output, v.output, kv, HEAD_DIM**-0.5)
            output = ops.MatMul(b + "attn_output", attention.output, w[b + "attn_output.weight"])
            middle = ops.Add(b + "attn_add", h, output.output)
            ffn_norm = ops.RmsNorm(b + "ffn_norm", middle.output, w[b + "ffn_norm.weight"], EPS)
            gate, up = (ops.MatMul(b + n, ffn_norm.output, w[f"{b}{n}.weight"]) for n in ("ffn_gate", "ffn_up"))
            act = ops.GatedActivation(b + "ffn_act", gate.output, up.output)
            down = ops.MatMul(b + "ffn_down", act.output, w[b + "ffn_down.weight"])
            add = ops.Add(b + "ffn_add", middle.output, down.output)
            yield from (norm, q, k, v, q_rope, k_rope, attention, output, middle, ffn_norm, gate, up, act, down, add)
            h = add.output
        rows = ops.SelectRows("rows", h)
        final = ops.RmsNorm("output_norm", rows.output, w["output_norm.weight"], EPS)
        yield from (rows, final, ops.MatMul("output", final.output, w["token_embd.weight"]))

    def step(self, tokens, positions, slots, outputs):
        self.executable.run(Batch.of(tokens, positions, slots, outputs))
        result = np.empty((len(outputs), N_VOCAB), np.float32)
        self.logits.read(result.data)
        return result


IDS = np.random.default_rng(7).integers(0, N_VOCAB, 19).tolist()


@pytest.mark.parametrize("chunk", [1, 5, 8])
def test_logits_are_those_of_the_independent_pass(checkout, monkeypatch, model_path, chunk):
    model = TinyLlama(model_path)
    parts = []
    for start in range(0, len(IDS), chunk):
        part = IDS[start : start + chunk]
        rows = range(len(part))
        parts.append(model.step(part, range(start, start + len(part)), [0] * len(part), rows))
    expected = independent_logits(checkout, monkeypatch, model_path, IDS)
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=2e-4 * np.abs(expected).max())


def test_sequences_of_one_batch_do_not_see_each_other(checkout, monkeypatch, model_path):
    model = TinyLlama(model_path, n_slots=2)
    sequences = (IDS[:6], IDS[6:12])
    for start in (0, 3):
        tokens = [t for pair in zip(*(s[start : start + 3] for s in sequences), strict=True) for t in pair]
        positions = [p for p in range(start, start + 3) for _ in sequences]
        last = model.step(tokens, positions, [0, 1] * 3, [4, 5])
    for row, sequence in zip(last, sequences, strict=True):
        expected = independent_logits(checkout, monkeypatch, model_path, sequence)[-1]
        np.testing.assert_allclose(row, expected, atol=2e-4 * np.abs(expected).max())
