"""Bad input gets one line that names subject and cause, the next step, and an exit code; never a traceback."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command import Done, arguments, environment, hetrun, make_plugin, require_device
from gguf_bytes import ARCHITECTURE, gguf_bytes, tensor
from models import tiny_llama

USAGE, MODEL, CONTEXT, PLAN, DEVICE = 2, 3, 5, 6, 7
REFERENCE = ("--device", "reference")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=64)


def check(done: Done, code: int, said: str, hint: str | None) -> None:
    """Exactly one error line and at most one hint, and nothing else."""
    lines = done.err.splitlines()
    assert done.code == code, done.err
    assert len(done.errors) == 1 and said in done.errors[0], done.err
    assert done.out == ""
    if hint is None:
        assert lines == done.errors, done.err
    else:
        assert lines == [*done.errors, *done.hints] and len(done.hints) == 1, done.err
        assert hint in done.hints[0]


@dataclass(frozen=True)
class Case:
    """args: TINY stands for the model.   said, hint: parts of the two lines.   make: writes files beforehand."""

    id: str
    args: tuple[str | bytes, ...]
    code: int
    said: str
    hint: str | None
    make: Callable[[Path], object] = field(default=lambda folder: None)
    stdin: bytes = b""


def generate(*args: str | bytes, model: str = "TINY", prompt: str | bytes = "the") -> tuple[str | bytes, ...]:
    return ("generate", "--model", model, "--prompt", prompt, "--device", "reference", *args)


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


UNKNOWN_TYPE = gguf_bytes([ARCHITECTURE], [tensor("token_embd.weight", (32, 4), kind=99)], bytes(512))

MODEL_FILES = [
    Case("missing-file", generate(model="none.gguf"), MODEL, "none.gguf: no such file", "pass the path of a GGUF file"),
    Case("folder", generate(model="."), MODEL, ".: is a folder", "path of a GGUF file"),
    Case("empty-file", generate(model="e.gguf"), MODEL, "e.gguf: is empty", "damaged", write("e.gguf", b"")),
    Case("not-gguf", generate(model="t.gguf"), MODEL, "not a GGUF file", "name a .gguf", write("t.gguf", b"hello" * 9)),
    Case(
        "newer-gguf", generate(model="n.gguf"), MODEL, "version", "hetrun",
        write("n.gguf", gguf_bytes([ARCHITECTURE], version=4)),
    ),
    Case("cut-short", generate(model="c.gguf"), MODEL, "c.gguf: ", "damaged", lambda f: cut_short(f / "c.gguf")),
    Case(
        "unknown-architecture", generate(model="a.gguf"), MODEL, "architecture 'lama' is not supported", "llama",
        lambda folder: tiny_llama(folder / "a.gguf", architecture="lama"),
    ),
    Case(
        "unknown-tensor-type", generate(model="u.gguf"), MODEL, "unknown type 99; known are 0 F32", "quantize",
        write("u.gguf", UNKNOWN_TYPE),
    ),
    Case(
        "vocabulary-only", generate(model="v.gguf"), MODEL, "a vocabulary but no tensors", "tokenize",
        lambda folder: tiny_llama(folder / "v.gguf", vocab_only=True),
    ),
    Case("not-pulled", generate(model="tinyllama"), MODEL, "tinyllama was not pulled", "hetrun pull tinyllama"),
    Case("unknown-name", generate(model="smollm2-135"), MODEL, "smollm2-135", "did you mean smollm2-135m"),
    Case("pull-unknown", ("pull", "smollm-135m"), MODEL, "smollm-135m", "did you mean smollm2-135m"),
    Case(
        "no-template", ("chat", "--model", "n.gguf", "--device", "reference"), MODEL, "no chat template", "generate",
        lambda folder: tiny_llama(folder / "n.gguf", chat_template=None), stdin=b"hello\n",
    ),
]  # fmt: skip

CONTEXTS = [
    Case("context-too-long", generate("--ctx", "65"), CONTEXT, "longer than the 64", "--ctx 64"),
    Case("prompt-too-long", generate("--ctx", "4", prompt="the and the"), CONTEXT, "the context holds 4", "shorter"),
    Case("prompt-beyond-model", generate(prompt="x" * 65), CONTEXT, "the prompt has 65 tokens", "shorter prompt"),
    Case("bench-beyond-model", ("bench", "--model", "TINY", "--gen-tokens", "99"), CONTEXT, "the 64 that", "--ctx 64"),
    Case("chat-full", ("chat", "--model", "TINY", "--device", "reference"), CONTEXT, "holds 64", "", stdin=b"x" * 80),
]

DEVICES = [
    Case("unknown-device", ("plan", "-m", "TINY", "-d", "referense"), DEVICE, "'referense'", "did you mean reference"),
    Case("unknown-device-to-run", ("chat", "-m", "TINY", "-d", "cpux"), DEVICE, "no device 'cpux'", "did you mean cpu"),
    Case(
        "modelled-in-part",
        ("generate", "-m", "TINY", "-p", "a", "-d", "model:pynq-z1"),
        PLAN,
        "model:pynq-z1: pynq-z1 has no embedding",
        "--device cpu",
    ),
    Case(
        "modelled-bench",
        ("bench", "-m", "TINY", "-d", "model:null", "--prompt-tokens", "8", "--gen-tokens", "8"),
        USAGE,
        "model:null: only modelled",
        "hetrun plan",
    ),
    Case("pin-without-device", generate("--pin", "blk.*"), USAGE, "'blk.*' is not PATTERN=DEVICE", "for example"),
    Case("pin-matches-nothing", generate("--pin", "blk.9.atn_q=reference"), PLAN, "matches no op", "blk.0.attn_q"),
    Case("pin-unknown-device", generate("--pin", "blk.*=cpux"), DEVICE, "no device 'cpux'", "reference:0"),
    Case("unknown-system", generate("--system", "rpi"), PLAN, "no system 'rpi'", "did you mean rpi5"),
    Case("bad-system", generate("--system", "s.toml"), PLAN, "s.toml", "", write("s.toml", b'device = ["cpu"]\n')),
    Case("attention-typo", generate("--attention", "sink=4,windw=9"), USAGE, "'windw=9'", "did you mean 'window'"),
    Case("attention-sink-alone", generate("--attention", "sink=4"), USAGE, "window of 1", "window=2044"),
    Case("attention-window-0", generate("--attention", "window=0"), USAGE, "window of 1", "full"),
    Case("attention-negative", generate("--attention", "window=-3"), USAGE, "'-3'", "window=2044"),
    Case("attention-twice", generate("--attention", "window=3,window=4"), USAGE, "twice", "window=2044"),
    Case("attention-empty", generate("--attention", ""), USAGE, "no policy", "window=2044"),
    Case("q8_0-head", generate("--kv-type", "q8_0"), PLAN, "multiple of 32", "--device"),
    Case("unknown-kv-type", generate("--kv-type", "f17"), PLAN, "f17", "--device"),
    Case(
        "unknown-op",
        ("plan", "-m", "TINY", "-d", "reference", "--explain", "blk.0.atn_q"),
        USAGE,
        "no op",
        "blk.0.attn_q",
    ),
]

PLANS = [
    Case("missing-plan", generate("--plan", "p.json"), PLAN, "p.json: No such file", "--save"),
    Case("not-a-plan", generate("--plan", "p.json"), PLAN, "not a saved plan", "--save", write("p.json", b"{}")),
    Case("binary-plan", generate("--plan", "p.json"), PLAN, "p.json: not UTF-8", "--save", write("p.json", b"\xff")),
    Case("plan-and-pin", generate("--plan", "p.json", "--pin", "a=b"), USAGE, "exclude each other", ""),
    Case(
        "unwritable-save", ("plan", "-m", "TINY", "-d", "reference", "--save", "none/p.json"), USAGE,
        "none/p.json: the plan cannot be written: No such file", "folder of your own",
    ),
]  # fmt: skip

VALUES = [
    Case("temperature", generate("--temperature", "-1"), USAGE, "temperature must be from 0", "--temperature"),
    Case("temperature-nan", generate("--temperature", "nan"), USAGE, "temperature must be from 0", "--temperature"),
    Case("top-p", generate("--top-p", "1.5"), USAGE, "top-p must be from 0", "--top-p"),
    Case("min-p", generate("--min-p", "-0.1"), USAGE, "min-p must be from 0", "--min-p"),
    Case("top-k", generate("--top-k", "-1"), USAGE, "top-k must be from 0", "--top-k"),
    Case("top-k-text", generate("--top-k", "many"), USAGE, "'many' is not a valid integer", "hetrun generate -h"),
    Case("repeat-penalty", generate("--repeat-penalty", "0"), USAGE, "repeat-penalty must be", "--repeat-penalty"),
    Case("seed", generate("--seed", str(1 << 64)), USAGE, "seed must be", "--seed"),
    Case("max-tokens", generate("--max-tokens", "-1"), USAGE, "-1 is not in the range", "hetrun generate -h"),
    Case("ctx", generate("--ctx", "0"), USAGE, "0 is not in the range", "hetrun generate -h"),
    Case("threads", generate("--threads", "0"), USAGE, "0 is not in the range", "hetrun generate -h"),
    Case("empty-stop", generate("--stop", ""), USAGE, "a stop string must not be empty", "--stop"),
    Case("empty-prompt", generate(prompt=""), USAGE, "the prompt has no tokens", "--prompt TEXT"),
    Case("empty-stdin", generate(prompt="-"), USAGE, "the prompt has no tokens", "--prompt TEXT"),
    Case("stdin-not-utf8", generate(prompt="-"), USAGE, "byte 2 is 0xff", "iconv", stdin=b"ab\xff"),
    Case("prompt-not-utf8", generate(prompt=b"ab\xff"), USAGE, "--prompt is not UTF-8", "iconv"),
    Case("chat-not-utf8", ("chat", "-m", "TINY", *REFERENCE), USAGE, "byte 0 is 0xff", "iconv", stdin=b"\xff\n"),
    Case("nothing-to-score", ("perplexity", "-m", "TINY", *REFERENCE), USAGE, "fewer than two", "longer", stdin=b"a"),
    Case(
        "text-not-utf8", ("perplexity", "-m", "TINY", "--file", "t"), USAGE, "t is not UTF-8", "iconv",
        write("t", b"ab\xff"),
    ),
    Case("no-text-file", ("perplexity", "-m", "TINY", "--file", "t"), USAGE, "t: No such file", "- for stdin"),
    Case("no-bench", ("bench", "-m", "TINY", "--pp", "0", "--tg", "0"), USAGE, "nothing to measure", "--gen-tokens"),
    Case("no-name", ("pull",), USAGE, "no model named", "--list"),
    Case("no-model", ("generate", "--prompt", "a"), USAGE, "missing option '--model'", "hetrun generate -h"),
    Case("no-file", ("inspect",), USAGE, "missing option '--model'", "hetrun inspect -h"),
    Case("near-option", ("generate", "--promt", "a"), USAGE, "no such option: --promt", "did you mean --prompt"),
    Case("near-verb", ("generat",), USAGE, "no verb 'generat'", "did you mean generate"),
    Case("unknown-verb", ("zzz",), USAGE, "no verb 'zzz'", "generate, chat"),
]  # fmt: skip

CASES = [*MODEL_FILES, *CONTEXTS, *DEVICES, *PLANS, *VALUES]


def cut_short(path: Path) -> None:
    tiny_llama(path)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input(case: Case, tiny: Path, tmp_path: Path) -> None:
    case.make(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = hetrun(tmp_path, *(str(tiny) if a == "TINY" else a for a in case.args), stdin=case.stdin)
    check(done, case.code, case.said, case.hint)
    assert sorted(tmp_path.iterdir()) == before, "something was left behind"


@pytest.mark.parametrize("threads", [str(5 * (os.cpu_count() or 1) + 8), "1025", "100000"])
def test_more_threads_than_the_device_takes(threads: str, tiny: Path, tmp_path: Path) -> None:
    require_device("cpu")
    done = hetrun(tmp_path, "generate", "-m", tiny, "-p", "the", "-d", "cpu", "--threads", threads)
    most = min(1024, 4 * max(2, len(os.sched_getaffinity(0))))
    check(done, DEVICE, f"{threads} threads", f"from 1 to {most};")


@pytest.mark.parametrize("isa", ["sse9", "AVX2", " "])
def test_an_instruction_set_that_the_machine_lacks(isa: str, tiny: Path, tmp_path: Path) -> None:
    require_device("cpu")
    done = hetrun(tmp_path, "generate", "-m", tiny, "-p", "the", "-d", "cpu", env={"HETRUN_CPU_ISA": isa})
    check(done, DEVICE, f"cannot run instruction set {isa!r}", "choose one of generic")


def test_plan_for_another_context_is_refused(tiny: Path, tmp_path: Path) -> None:
    hetrun(tmp_path, "plan", "--model", tiny, "--device", "reference", "--save", "p.json")
    done = hetrun(tmp_path, "generate", "--model", tiny, "--prompt", "a", "--plan", "p.json", "--ctx", "32")
    check(done, PLAN, "for another model or context", "--ctx")


def test_plan_that_was_edited_to_an_unknown_device_is_refused(tiny: Path, tmp_path: Path) -> None:
    hetrun(tmp_path, "plan", "--model", tiny, "--device", "reference", "--save", "p.json")
    plan = json.loads((tmp_path / "p.json").read_text().replace("reference:0", "referenz:0"))
    (tmp_path / "p.json").write_text(json.dumps(plan))
    done = hetrun(tmp_path, "generate", "--model", tiny, "--prompt", "a", "--plan", "p.json")
    check(done, DEVICE, "no device 'referenz:0'", "did you mean reference:0")


def test_cache_beyond_the_memory_of_the_machine_is_refused(tmp_path: Path) -> None:
    # 64 layers, 2^24 tokens of 1 kB each: a terabyte.
    sizes = {
        "embedding_length": 256,
        "attention.head_count_kv": 4,
        "feed_forward_length": 32,
        "context_length": 1 << 24,
    }
    path = tiny_llama(tmp_path / "m.gguf", n_layers=64, quant="Q4_0", metadata=sizes)
    done = hetrun(tmp_path, "generate", "-m", path, "-p", "a", "-d", "reference", "--ctx", str(1 << 24))
    check(done, PLAN, "KV cache", "shorter --ctx")


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_memory_that_the_system_refuses_is_one_line(device: str, tmp_path: Path) -> None:
    require_device(device)
    path = tiny_llama(tmp_path / "m.gguf", metadata={"context_length": 1 << 24})
    limit = 2 << 30  # the cache of 2^24 tokens in 2 layers is 4.3 GB
    done = hetrun(
        tmp_path, "generate", "-m", path, "-p", "a", "-d", device, "--ctx", str(1 << 24),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        env={"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.code in (PLAN, DEVICE), done.err  # a small machine's plan is refused already
    assert len(done.errors) == 1 and "memory" in done.errors[0], done.err
    assert "Traceback" not in done.err


THROWS = "raise RuntimeError('boom\\nand more')"


@pytest.mark.parametrize("source", [THROWS, "import sys; sys.exit(3)", "import no_such_module"])
def test_device_of_a_plugin_that_throws_on_import(source: str, tiny: Path, tmp_path: Path) -> None:
    plugins = make_plugin(tmp_path / "site", "mine", source)
    done = hetrun(tmp_path, "generate", "-m", tiny, "-p", "a", "-d", "mine", plugins=[plugins])
    check(done, DEVICE, "plugin mine failed: ", "repair or uninstall mine")


def test_plugin_that_throws_stops_nobody_else(tiny: Path, tmp_path: Path) -> None:
    plugins = make_plugin(tmp_path / "site", "mine", THROWS)
    args = ("generate", "-m", tiny, "-p", "the", "-n", "4", "-d", "reference")
    done = hetrun(tmp_path, *args, plugins=[plugins])
    assert done.code == 0
    assert done.out == hetrun(tmp_path, *args).out
    assert done.err.startswith("warning: plugin mine failed: RuntimeError: boom")


def test_debug_shows_the_traceback_before_the_line(tmp_path: Path) -> None:
    done = hetrun(tmp_path, "--debug", "generate", "--model", "none.gguf", "--prompt", "a")
    assert done.code == MODEL
    assert done.err.startswith("Traceback") and len(done.errors) == 1


def test_name_with_a_line_break_stays_one_line(tmp_path: Path) -> None:
    done = hetrun(tmp_path, "generate", "--model", "a\nb.gguf", "--prompt", "a")
    check(done, MODEL, "a b.gguf: no such file", "GGUF")


def test_full_disk_behind_stdout_is_one_line(tiny: Path, tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "wb") as full:
        done = hetrun(tmp_path, "tokenize", "-m", tiny, "--text", "the", stdout=full)
    assert (done.code, done.err) == (1, "error: No space left on device\n")


def test_reader_that_leaves_ends_it_quietly(tiny: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        arguments("generate", "-m", tiny, "-p", "the", "-n", "60", "-d", "reference"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    assert process.stdout and process.stderr
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read().decode()
    assert "rror" not in err and "Traceback" not in err
    # All of the answer may have been in the pipe already.
    assert process.wait(60) in (0, 141)
