"""The verbs that look, measure and fetch: `tokenize`, `inspect`, `perplexity`, `bench`, `plan`, `devices`, `pull`."""

from __future__ import annotations

import functools
import http.server
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from command import hetrun, make_plugin, require_device
from gguf_bytes import ARCHITECTURE, entry, gguf_bytes, tensor, text
from models import CHAT_TEMPLATE, tiny_llama

import hetrun as package

VERBS = (
    "generate", "chat", "pull", "inspect", "tokenize", "perplexity", "devices", "plan", "calibrate", "bench", "profile",
    "explore", "build",
)  # fmt: skip
TEXT = "the ring and the king is on it, in the inn of the north and the south"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_an_example_and_json(verb: str, tmp_path: Path) -> None:
    done = hetrun(tmp_path, verb, "-h")
    assert (done.code, done.err) == (0, "")
    assert "--json" in done.out and "--debug" in done.out
    assert f"  Example:\n    hetrun {verb}" in done.out


def test_no_arguments_show_the_help(tmp_path: Path) -> None:
    assert hetrun(tmp_path).out == hetrun(tmp_path, "-h").out


def test_version(tmp_path: Path) -> None:
    assert hetrun(tmp_path, "--version").out == f"hetrun {package.__version__}\n"


def test_tokenize_prints_ids_and_pieces(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "tokenize", "--model", tiny, "--text", "the x")
    rows = [line.split(maxsplit=1) for line in done.out.splitlines()]
    tokens = gguf.GGUFReader(tiny).fields["tokenizer.ggml.tokens"].contents()
    assert [(tokens[int(i)].replace("\u0120", " "), piece) for i, piece in rows] == [
        ("the", "'the'"), (" ", "' '"), ("x", "'x'"),
    ]  # fmt: skip


def test_tokenize_reads_stdin(tiny: Path, tmp_path: Path) -> None:
    given = hetrun(tmp_path, "tokenize", "--model", tiny, "--text", "the x", "--json").json
    assert hetrun(tmp_path, "tokenize", "--model", tiny, "--json", stdin="the x\n").json == given
    assert "".join(given["tokens"]) == "the x" and len(given["ids"]) == 3


def test_tokenize_takes_a_file_that_holds_only_a_vocabulary(tmp_path: Path) -> None:
    vocab = tiny_llama(tmp_path / "v.gguf", vocab_only=True)
    result = hetrun(tmp_path, "tokenize", "--model", vocab, "--text", "<|im_end|>", "--special", "--json").json
    assert result["tokens"] == ["<|im_end|>"] and len(result["ids"]) == 1


def test_inspect_tells_what_the_gguf_package_reads(tiny: Path, tmp_path: Path) -> None:
    result = hetrun(tmp_path, "inspect", "--model", tiny, "--json").json
    reader = gguf.GGUFReader(tiny)
    assert [(t["name"], t["type"], t["bytes"]) for t in result["tensors"]] == [
        (t.name, t.tensor_type.name, t.n_bytes) for t in reader.tensors
    ]
    assert [t["shape"] for t in result["tensors"]] == [t.shape.tolist()[::-1] for t in reader.tensors]
    assert sum(t["bytes"] for t in result["types"].values()) == sum(t.n_bytes for t in reader.tensors)
    assert result["metadata"]["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert result["metadata"]["tokenizer.ggml.tokens"]["length"] == 280
    assert result["supported"] is True and result["unsupported_reason"] is None


def test_inspect_says_why_a_file_cannot_be_run(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m.gguf", architecture="lama")
    done = hetrun(tmp_path, "inspect", path, "--json")
    assert done.code == 0
    assert "architecture 'lama' is not supported" in done.json["unsupported_reason"]


def test_inspect_shows_no_control_characters_of_the_file(tmp_path: Path) -> None:
    named = entry("general.name", gguf.GGUFValueType.STRING, text("red\x1b[31m"))
    odd = tensor("t\x1b[31m[bold]\x07", (4,))
    (tmp_path / "m.gguf").write_bytes(gguf_bytes([ARCHITECTURE, named], [odd], bytes(32)))
    done = hetrun(tmp_path, "inspect", "m.gguf")
    assert "t\\x1b[31m[bold]\\x07" in done.out and "red\\x1b[31m" in done.out
    assert "\x1b" not in done.out and "\x07" not in done.out


def perplexity_of(tiny: Path, n_ctx: int) -> tuple[int, float]:
    """(tokens scored, sum of -ln p) from the API's logits, chunk by chunk."""
    n_scored, nll = 0, 0.0
    with package.load(tiny, devices=["reference"]) as model:
        ids = model.tokenize(TEXT)
        for start in range(0, len(ids), n_ctx):
            chunk = ids[start : start + n_ctx]
            logits = model.logits(chunk).astype(np.float64)
            for row, token in zip(logits[:-1], chunk[1:], strict=True):
                nll += float(np.logaddexp.reduce(row) - row[token])
                n_scored += 1
    return n_scored, nll


@pytest.mark.parametrize("n_ctx", [7, 16, 512])
def test_perplexity_is_the_exp_of_the_mean_surprise(n_ctx: int, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    args = ("perplexity", "--model", tiny, "--file", "t.txt", "--ctx", str(n_ctx), "--device", "reference", "--json")
    result = hetrun(tmp_path, *args).json
    n_scored, nll = perplexity_of(tiny, n_ctx)
    assert result["tokens"] == n_scored
    assert result["nll"] == pytest.approx(nll, rel=1e-5)
    assert result["ppl"] == pytest.approx(math.exp(nll / n_scored), rel=1e-5)


def test_perplexity_reads_stdin_and_prints_one_number(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "perplexity", "--model", tiny, "--device", "reference", stdin=TEXT)
    n_scored, nll = perplexity_of(tiny, 512)
    assert float(done.out) == pytest.approx(math.exp(nll / n_scored), rel=1e-3)


def test_bench_lists_prefill_and_decode(tiny: Path, tmp_path: Path) -> None:
    args = ("bench", "--model", tiny, "--prompt-tokens", "9", "--gen-tokens", "5", "--repetitions", "3")
    results = hetrun(tmp_path, *args, "--device", "reference", "--threads", "1", "--json").json
    assert [(r["test"], r["n"], r["model"], r["device"]) for r in results] == [
        ("pp9", 9, "tiny", "reference:0"), ("tg5", 5, "tiny", "reference:0"),
    ]  # fmt: skip
    assert all(0 < r["tps_min"] <= r["tps_median"] <= r["tps_max"] for r in results)


def test_bench_leaves_out_what_is_zero(tiny: Path, tmp_path: Path) -> None:
    args = ("bench", "--model", tiny, "--pp", "0", "--tg", "2", "-r", "1", "--device", "reference", "--json")
    assert [r["test"] for r in hetrun(tmp_path, *args).json] == ["tg2"]


PLAN = ("--device", "model:cortex-a9", "--device", "model:pynq-z1")


def test_plan_gives_every_op_its_device_cost_and_refusals(tiny: Path, tmp_path: Path) -> None:
    result = hetrun(tmp_path, "plan", "--model", tiny, *PLAN, "--json").json
    decode = {a["op"]: a for a in result["assignment"] if a["phase"] == "decode"}
    assert len(decode) * 2 == len(result["assignment"])
    norm = decode["blk.1.attn_norm"]
    assert (norm["kind"], norm["layer"], norm["device"]) == ("rms_norm", 1, "model:cortex-a9")
    assert norm["cost"]["seconds"] > 0 and norm["cost"]["basis"].startswith("analytic:")
    assert "rms_norm" in norm["refusals"]["model:pynq-z1"] and norm["runner_up"] is None
    assert sum(s["ops"] for s in result["segments"]) == len(result["assignment"])
    predicted = result["predicted"]["decode"]
    assert predicted["total_s"] == pytest.approx(predicted["ops_s"] + predicted["launch_s"] + predicted["copy_s"])
    assert result["predicted"]["answer_s"] == pytest.approx(
        result["predicted"]["prefill"]["total_s"] + 128 * predicted["total_s"]
    )
    assert result["memory"]["host"] > 0


def test_plan_names_the_runner_up(tiny: Path, tmp_path: Path) -> None:
    args = ("plan", "--model", tiny, "--device", "model:cortex-a9", "--device", "model:cortex-a76", "--json")
    first = hetrun(tmp_path, *args).json["assignment"][0]
    assert (first["device"], first["runner_up"]["device"]) == ("model:cortex-a76", "model:cortex-a9")


def test_plan_map_shows_layers_by_device(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "plan", "--model", tiny, *PLAN, "--pin", "*=model:cortex-a9")
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    assert any(row.startswith("0 to 1 all 16 ops") for row in rows)
    assert any("predicted, not measured" in row for row in rows)


def test_plan_of_a_system_counts_with_its_memory(tmp_path: Path) -> None:
    # 4 layers of 1 MB of cache a thousand tokens: more than the 413 MiB of a PYNQ-Z1.
    sizes = {"embedding_length": 256, "attention.head_count_kv": 4, "context_length": 1 << 20}
    model = tiny_llama(tmp_path / "m.gguf", n_layers=4, quant="Q4_0", metadata=sizes)
    args = ("plan", "--model", model, "--system", "pynq-z1", "--ctx")
    assert hetrun(tmp_path, *args, "1000").code == 0
    done = hetrun(tmp_path, *args, str(1 << 20))
    assert done.code == 6 and "host memory holds 433 MB" in done.errors[0]
    assert f"--ctx {1 << 16} (" in done.hints[0] and "--system laptop" in done.hints[0]


def test_explain_shows_what_each_device_would_take(tiny: Path, tmp_path: Path) -> None:
    args = ("plan", "--model", tiny, *PLAN, "--explain", "blk.0.attn_norm")
    done = hetrun(tmp_path, *args)
    assert done.out.startswith("blk.0.attn_norm (rms_norm)\n")
    assert "model:cortex-a9 (chosen)" in done.out and "refuses" in done.out
    record = hetrun(tmp_path, *args, "--json").json
    assert record["decode"]["device"] == "model:cortex-a9" and "model:pynq-z1" in record["decode"]["refusals"]


def test_plan_is_saved_whole(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "plan", "--model", tiny, *PLAN, "--save", "p.json", "--json")
    saved = json.loads((tmp_path / "p.json").read_text())
    assert saved["model"] == done.json["fingerprint"]
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_devices_computes_on_each_that_is_here(tmp_path: Path) -> None:
    done = hetrun(tmp_path, "devices", "--json")
    assert done.code == 0
    devices = {d["id"]: d for d in done.json["devices"]}
    reference = devices["reference:0"]
    assert (reference["state"], reference["self_check"]["outcome"]) == ("ok", "pass")
    assert reference["self_check"]["ops"] == ["rms_norm F32", "matmul F32", "add"]
    assert (reference["plugin"]["name"], reference["plugin"]["distribution"]) == ("reference", "hetrun")
    modelled = devices["model:pynq-z1"]
    assert (modelled["state"], modelled["backing"], modelled["self_check"]) == ("unavailable", "modelled", None)
    assert modelled["reason"] and modelled["remedy"]


def test_cpu_passes_its_self_check(tmp_path: Path) -> None:
    require_device("cpu")
    (cpu,) = hetrun(tmp_path, "devices", "--device", "cpu", "--json").json["devices"]
    assert cpu["self_check"]["outcome"] == "pass"


def test_devices_table_shows_state_and_check(tmp_path: Path) -> None:
    done = hetrun(tmp_path, "devices", "--device", "reference")
    (row,) = [line for line in done.out.splitlines() if "reference:0" in line]
    assert " ok " in row and "PASS" in row and "hetrun" in row


def test_devices_without_check_computes_nothing(tmp_path: Path) -> None:
    (device,) = hetrun(tmp_path, "devices", "-d", "reference", "--no-check", "--json").json["devices"]
    assert (device["state"], device["self_check"]) == ("ok", None)


def test_devices_tells_of_a_board_that_is_not_here(tmp_path: Path) -> None:
    """What would be shown and what is missing, where it was asked for; a plugin's fault in it hides no device."""
    (tmp_path / "board.toml").write_text(
        'description = "a board"\ndevices = ["pynq-z1:0", "pynq-z1:stream"]\n[drivers.pynq-z1]\n'
        f'overlay = "{tmp_path}/engine.bit"\nstaging_bytes = 1_048_576\nwait = "interrupt"\n'
        "reserved = { base = 0x10000000, bytes = 0x4000000 }\n"
    )
    done = hetrun(tmp_path, "devices", "--system", "board.toml", "--json")
    assert done.code == 0
    board, stream = done.json["devices"]
    assert (board["id"], stream["id"]) == ("pynq-z1:0", "pynq-z1:stream")
    rows = {row["name"]: row for row in board["details"]}
    assert list(rows) == [
        "overlay", "loaded", "engine", "register map", "clock", "contiguous memory (CMA)", "reserved memory",
        "staging area", "wait", "permissions",
    ]  # fmt: skip
    assert f"{tmp_path}/engine.bit and {tmp_path}/engine.hwh not found" in rows["overlay"]["missing"]
    assert "VERSION 0x" in rows["engine"]["value"] and rows["clock"]["missing"] is None
    assert rows["reserved memory"]["value"] == "67108864 bytes, 0x10000000 to 0x14000000"
    table = hetrun(tmp_path, "devices", "--system", "board.toml").out
    assert "register map" in table and "engine.hwh not found" in table
    assert "register map" not in hetrun(tmp_path, "devices", "--no-check").out


WRONG = """
import dataclasses
from hetrun.hookspecs import hookimpl
from hetrun.reference.driver import ReferenceDriver

class Wrong(ReferenceDriver):
    name = "wrong"
    def probe(self, config):
        return [dataclasses.replace(info, id="wrong:0") for info in super().probe(config)]
    def estimate(self, info, op, workload):
        from hetrun.device import Unsupported
        {estimate}
        return super().estimate(info, op, workload)
    def open(self, info):
        device = super().open(info)
        {open}
        return device

@hookimpl
def hetrun_drivers():
    return [Wrong()]
"""

# A device that reads no float weights, and one that runs nothing that is checked.
ONLY = """
        if op.kind != "matmul" or op.weights[0].type.name != "{type}":
            return Unsupported("not here")
"""
# A device that adds one to an element of what it hands out, one that fails, and one that gives nothing back at all.
FAULTS = {
    "wrong": (
        """
        alloc = device.alloc
        def wrong(nbytes):
            buffer = alloc(nbytes)
            read = buffer.read
            def one_off(out, offset=0):
                read(out, offset)
                out.cast("B").cast("f")[5] += 1.0
            buffer.read = one_off
            return buffer
        device.alloc = wrong
""",
        "wrong result: error",
    ),
    "raises": ("""raise OSError("no such card")""", "OSError: no such card"),
    "unavailable": (
        """
        from hetrun.errors import DeviceError
        raise DeviceError("wrong:0: the overlay is not loaded", remedy="load it")
""",
        "the overlay is not loaded",
    ),
    "not-a-number": (
        """
        alloc = device.alloc
        def wrong(nbytes):
            buffer = alloc(nbytes)
            buffer.read = lambda out, offset=0: out.cast("B").cast("f").__setitem__(0, float("nan"))
            return buffer
        device.alloc = wrong
""",
        "wrong result: error nan",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_device_that_computes_wrongly_fails(fault: str, tmp_path: Path) -> None:
    code, said = FAULTS[fault]
    plugins = make_plugin(tmp_path / "site", "wrong", WRONG.format(estimate="", open=code))
    done = hetrun(tmp_path, "devices", "--json", plugins=[plugins])
    assert done.code == 7
    assert len(done.errors) == 1 and said in done.errors[0] and "wrong:0" in done.errors[0]
    devices = {d["id"]: d for d in done.json["devices"]}
    assert (devices["wrong:0"]["state"], devices["wrong:0"]["self_check"]["outcome"]) == ("broken", "fail")
    assert devices["reference:0"]["state"] == "ok"
    assert "FAIL" in hetrun(tmp_path, "devices", "--device", "wrong", plugins=[plugins]).out


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_device_is_checked_in_a_type_that_it_reads(name: str, tmp_path: Path) -> None:
    plugins = make_plugin(tmp_path / "site", "wrong", WRONG.format(estimate=ONLY.format(type=name), open=""))
    (device,) = hetrun(tmp_path, "devices", "-d", "wrong", "--json", plugins=[plugins]).json["devices"]
    assert (device["self_check"]["outcome"], device["self_check"]["ops"]) == ("pass", [f"matmul {name}"])


def test_device_that_runs_none_of_the_checked_ops_is_no_failure(tmp_path: Path) -> None:
    plugins = make_plugin(tmp_path / "site", "wrong", WRONG.format(estimate=ONLY.format(type="IQ1_S"), open=""))
    done = hetrun(tmp_path, "devices", "-d", "wrong", "--json", plugins=[plugins])
    assert done.code == 0 and done.json["devices"][0]["self_check"]["outcome"] == "none"


def test_devices_shows_plugins_that_failed(tmp_path: Path) -> None:
    plugins = [make_plugin(tmp_path / "site", "mine", "def load():\n    raise RuntimeError('boom')\nload()\n")]
    done = hetrun(tmp_path, "devices", "--json", plugins=plugins)
    assert done.code == 0
    (broken,) = done.json["broken"]
    assert (broken["name"], broken["distribution"], broken["version"]) == ("mine", "mine", "1.2.3")
    assert broken["error"] == "RuntimeError: boom"
    assert "in load" in broken["detail"]
    assert "reference" in [p["name"] for p in done.json["plugins"]]
    shown = hetrun(tmp_path, "devices", "--debug", plugins=plugins)
    assert "RuntimeError: boom" in shown.out and "in load" in shown.err


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of the folder "served", where m.gguf is."""
    (tmp_path / "served").mkdir()
    tiny_llama(tmp_path / "served" / "m.gguf")
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def catalogue(folder: Path, url: str) -> dict[str, str]:
    path = folder / "models.toml"
    path.write_text(f'[models.mine]\ndescription = "A test"\nfile = "m.gguf"\nurl = "{url}/m.gguf"\n')
    return {"HETRUN_MODELS": str(path), "no_proxy": "127.0.0.1"}


def test_pull_fetches_with_plain_progress_and_prints_the_path(server: str, tmp_path: Path) -> None:
    env = catalogue(tmp_path, server)
    done = hetrun(tmp_path, "pull", "mine", env=env)
    path = tmp_path / "cache" / "m.gguf"
    assert (done.code, done.out) == (0, f"{path}\n")
    assert path.read_bytes() == (tmp_path / "served" / "m.gguf").read_bytes()
    assert "m.gguf: 0.2 of 0.2 MB" in done.err and "\x1b" not in done.err


def test_pull_again_fetches_nothing(server: str, tmp_path: Path) -> None:
    env = catalogue(tmp_path, server)
    first = hetrun(tmp_path, "pull", "mine", "--json", env=env).json
    (tmp_path / "served" / "m.gguf").unlink()
    second = hetrun(tmp_path, "pull", "mine", "--json", env=env).json
    assert (first["was_present"], second["was_present"]) == (False, True)
    assert first["path"] == second["path"]


def test_force_fetches_anew(server: str, tmp_path: Path) -> None:
    env = catalogue(tmp_path, server)
    hetrun(tmp_path, "pull", "mine", env=env)
    tiny_llama(tmp_path / "served" / "m.gguf", seed=1)
    hetrun(tmp_path, "pull", "mine", "--force", env=env)
    cache = tmp_path / "cache"
    assert (cache / "m.gguf").read_bytes() == (tmp_path / "served" / "m.gguf").read_bytes()
    assert not [p.name for p in cache.iterdir() if p.name.endswith((".old", ".part"))]


def test_force_that_fails_keeps_what_was_there(server: str, tmp_path: Path) -> None:
    env = catalogue(tmp_path, server)
    hetrun(tmp_path, "pull", "mine", env=env)
    before = (tmp_path / "cache" / "m.gguf").read_bytes()
    (tmp_path / "served" / "m.gguf").unlink()
    done = hetrun(tmp_path, "pull", "mine", "--force", env=env)
    assert (done.code, len(done.errors), done.out) == (4, 1, "")
    assert (tmp_path / "cache" / "m.gguf").read_bytes() == before


def test_list_tells_what_is_cached(server: str, tmp_path: Path) -> None:
    env = catalogue(tmp_path, server)
    args = ("pull", "--list", "--json")
    assert {m["name"]: m["cached"] for m in hetrun(tmp_path, *args, env=env).json}["mine"] is False
    hetrun(tmp_path, "pull", "mine", env=env)
    models = {m["name"]: m for m in hetrun(tmp_path, *args, env=env).json}
    assert models["mine"]["cached"] is True and models["smollm2-135m"]["size_bytes"] == 98362432
    assert "mine" in hetrun(tmp_path, "pull", "--list", env=env).out


def test_pulled_model_is_found_by_its_name(server: str, tmp_path: Path) -> None:
    env = catalogue(tmp_path, server)
    args = ("tokenize", "--model", "mine", "--text", "the", "--json")
    assert 'run "hetrun pull mine"' in hetrun(tmp_path, *args, env=env).hints[0]
    hetrun(tmp_path, "pull", "mine", env=env)
    assert hetrun(tmp_path, *args, env=env).json["tokens"] == ["the"]
