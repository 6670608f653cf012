"""`hetrun plan` as a user runs it: objectives, rules, targets, saved plans, and one clear error for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Done, hetrun, make_plugin, require_device
from models import tiny_llama

USAGE, CONTEXT, PLAN, DEVICE = 2, 5, 6, 7
BOARD = ("--device", "model:cortex-a9", "--device", "model:pynq-z1")
TINYLLAMA = ("plan", "--shape", "tinyllama-382mb", "--system", "pynq-z1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=64)


def failed(done: Done, code: int, said: str, hint: str = "") -> None:
    """One error line, at most one hint, and nothing on stdout."""
    assert done.code == code, done.err
    assert len(done.errors) == 1 and said in done.errors[0], done.err
    assert len(done.hints) <= 1 and hint in "".join(done.hints), done.err
    assert done.out == "" and "Traceback" not in done.err


def profile(path: Path, watts: float | None, flops: str = "1e9") -> str:
    """A device that runs everything on host memory; returns its id."""
    power = "" if watts is None else f'watts = {{ value = {watts}, basis = "analytic:a test" }}\n'
    path.write_text(
        f'description = "a test"\nops = ["all"]\ntypes = ["all"]\nkv_formats = ["all"]\n'
        f'launch_s = {{ value = 1e-6, basis = "analytic:a test" }}\n'
        f'[memory.host]\ncapacity_bytes = {{ value = 1e9, basis = "analytic:a test" }}\n'
        f'[model]\nflops_per_s = {{ value = {flops}, basis = "analytic:a test" }}\n'
        f'bytes_per_s = {{ value = 1e12, basis = "analytic:a test" }}\n{power}'
    )
    return f"model:{path.stem}"


def system(folder: Path, **watts: float | None) -> str:
    """A system file of test devices; the first is the slowest."""
    ids = [profile(folder / f"{n}.toml", w, f"{10**i}e9") for i, (n, w) in enumerate(watts.items())]
    paths = [str(folder / f"{name}.toml") for name in watts]
    text = f'description = "a test"\ndevices = {json.dumps(ids)}\n[drivers.modelled]\nprofiles = {json.dumps(paths)}\n'
    (folder / "s.toml").write_text(text)
    return "s.toml"


def test_json_has_what_was_promised(tiny: Path, tmp_path: Path) -> None:
    args = (
        "plan",
        "--model",
        tiny,
        "--system",
        system(tmp_path, slow=1.0, fast=50.0),
        "--objective",
        "energy",
        "--json",
    )
    result = hetrun(tmp_path, *args).json
    predicted = result["predicted"]
    assert predicted["joules_per_token"] == pytest.approx(1.0 * predicted["decode_s_per_token"])
    assert predicted["answer_s"] == pytest.approx(predicted["prefill_s"] + 128 * predicted["decode_s_per_token"])
    assert result["used_devices"] == ["model:slow"] and result["objective"] == "energy"
    assert 0 < result["memory"]["host"] < result["capacity"]["host"]
    for entry in result["assignment"]:
        assert {"op", "layer", "device", "cost", "runner_up", "reasons"} <= set(entry)
        assert entry["cost"]["basis"].startswith("analytic:")
        assert entry["runner_up"]["device"] == "model:fast"
        assert len(entry["reasons"]) == 1 and entry["reasons"][0].startswith("model:fast is dearer")


def test_a_rate_is_bought_with_energy(tiny: Path, tmp_path: Path) -> None:
    args = (
        "plan",
        "--model",
        tiny,
        "--system",
        system(tmp_path, slow=1.0, fast=50.0),
        "--objective",
        "energy",
        "--json",
    )
    frugal = hetrun(tmp_path, *args).json
    rate = 2 * frugal["predicted"]["decode_tps"]
    result = hetrun(tmp_path, *args, "--target-tps", str(rate)).json
    assert result["predicted"]["decode_tps"] >= rate * (1 - 1e-6)
    assert result["target"] == {"tps": rate, "reached": True, "why": None, "boards_together": 1, "changes": []}
    assert result["predicted"]["joules_per_token"] > frugal["predicted"]["joules_per_token"]
    failed(
        hetrun(tmp_path, *args[:-1], "--target-tps", "1e12"),
        PLAN,
        "the fastest plan is predicted",
        "lower --target-tps",
    )


def test_energy_without_power_names_the_device(tiny: Path, tmp_path: Path) -> None:
    args = ("plan", "--model", tiny, "--system", system(tmp_path, slow=1.0, fast=None), "--objective", "energy")
    failed(hetrun(tmp_path, *args), PLAN, "model:fast tells no energy", "watts")


def test_what_would_reach_a_rate_is_planned(tmp_path: Path) -> None:
    args = (*TINYLLAMA, "--ctx", "512", "--target-tps", "6")
    done = hetrun(tmp_path, *args)
    assert "no plan for these devices decodes 6 tokens/s: the fastest plan is predicted 3." in done.out
    assert done.code == 0 and "reaches 6 tokens/s" in done.out and "--system rpi5" in done.out
    result = hetrun(tmp_path, *args, "--json").json
    changes = {c["label"]: c for c in result["target"]["changes"]}
    assert not result["target"]["reached"] and 3 < result["predicted"]["decode_tps"] < 6
    assert result["target"]["boards_together"] == 2
    for label, change in changes.items():
        assert change["decode_tps"] >= 6
        if label.startswith("--system"):  # each was really planned: asking for it gives the same
            other = hetrun(tmp_path, *TINYLLAMA[:3], *label.split(), "--ctx", "512", "--target-tps", "6", "--json").json
            assert other["target"]["reached"]
            assert other["predicted"]["decode_tps"] == pytest.approx(change["decode_tps"])
    done = hetrun(tmp_path, *TINYLLAMA, "--ctx", "512", "--target-tps", "1e7")
    assert done.code == 0 and "no shipped system, device, type or context reaches it" in done.out


def test_a_model_that_does_not_fit_is_told_what_would(tmp_path: Path) -> None:
    done = hetrun(tmp_path, "plan", "--shape", "tinyllama", "--quant", "Q4_0", "--system", "pynq-z1")
    failed(done, PLAN, "host memory holds 433 MB, and the plan needs at least", "would do: --quant Q2_K (")
    for label in ("--system rpi5", "boards, cut by layers"):
        assert label in done.hints[0]
    quant = hetrun(tmp_path, "plan", "--shape", "tinyllama", "--quant", "Q2_K", "--system", "pynq-z1", "--json").json
    assert f"--quant Q2_K ({quant['predicted']['decode_tps']:.3g} tokens/s)" in done.hints[0]


def test_the_mix_that_fits_beside_linux_is_named(tmp_path: Path) -> None:
    """The file that SECDA-LLM ran, on its board: 481 MB of tensors, and what is left of 512 MB."""
    args = ("plan", "--shape", "tinyllama-q2_k", "--system", "pynq-z1")
    done = hetrun(tmp_path, *args, "--ctx", "512")
    failed(done, PLAN, "host memory holds 433 MB, and the plan needs at least 493 MB")
    assert "less 99 MiB for Linux" in done.err
    mix = hetrun(tmp_path, "plan", "--shape", "tinyllama-382mb", "--system", "pynq-z1", "--ctx", "512", "--json").json
    rate = f"{mix['predicted']['decode_tps']:.3g} tokens/s"
    assert f"gate and up in Q2_K, output in Q3_K ({rate})" in done.hints[0]
    assert "gate and up in Q2_K, output in Q3_K, with --ctx 1024" in hetrun(tmp_path, *args).hints[0]
    other = hetrun(tmp_path, "plan", "--shape", "tinyllama", "--system", "pynq-z1", "--ctx", "512")
    assert "the types of --shape tinyllama-382mb (" in other.hints[0]


def test_forbidden_ops_run_elsewhere(tiny: Path, tmp_path: Path) -> None:
    args = ("plan", "--model", tiny, *BOARD, "--forbid", "blk.1.*=model:pynq-z1", "--json")
    placed = {a["op"]: a for a in hetrun(tmp_path, *args).json["assignment"] if a["phase"] == "decode"}
    up = placed["blk.1.ffn_up"]
    assert up["device"] == "model:cortex-a9"
    assert up["reasons"] == ["model:pynq-z1: --forbid 'blk.1.*=model:pynq-z1'"]


def test_explain_shows_all_candidates(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "plan", "--model", tiny, *BOARD, "--explain", "blk.0.ffn_up")
    assert "(chosen)" in done.out and "(runner-up)" in done.out and "FLOP" in done.out
    assert "is dearer: " in done.out
    record = hetrun(tmp_path, "plan", "--model", tiny, *BOARD, "--explain", "blk.0.attn_norm", "--json").json
    refusing = next(c for c in record["decode"]["candidates"] if c["device"] == "model:pynq-z1")
    assert "has no rms_norm" in refusing["refusal"] and refusing["step_s_more"] is None


def test_plan_shows_totals_memory_and_devices_alone(tiny: Path, tmp_path: Path) -> None:
    out = hetrun(tmp_path, "plan", "--model", tiny, *BOARD, "--pin", "*ffn_up=model:pynq-z1").out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert any(row.startswith("all ") and "100%" not in row for row in rows)
    assert any(row.startswith("host ") and " 433.1 MB" in row for row in rows)
    assert "model:pynq-z1 does not run all of it" in rows
    assert any(row.startswith("decode analytic costs") for row in rows)


def test_a_saved_plan_is_shown_again(tiny: Path, tmp_path: Path) -> None:
    pins = ("--pin", "blk.1.ffn_up=model:cortex-a9", "--save", "p.json")
    saved = hetrun(tmp_path, "plan", "--model", tiny, *BOARD, *pins, "--json").json
    loaded = hetrun(tmp_path, "plan", "--model", tiny, "--load", "p.json", "--json").json
    for key in ("devices", "predicted", "memory", "segments"):
        assert loaded[key] == saved[key]
    failed(
        hetrun(tmp_path, "plan", "--model", tiny, "--load", "p.json", "--pin", "a=b"),
        USAGE,
        "--load takes a plan as it is",
    )
    failed(
        hetrun(tmp_path, "plan", "--model", tiny, "--load", "p.json", "--device", "model:cortex-a76"),
        DEVICE, "the plan is for other devices: there is no device 'model:cortex-a9'", "model:cortex-a76",
    )  # fmt: skip
    failed(hetrun(tmp_path, "plan", "--shape", "tinyllama", "--load", "p.json"), PLAN, "for another model or context")


def test_an_edited_plan_is_checked(tiny: Path, tmp_path: Path) -> None:
    hetrun(tmp_path, "plan", "--model", tiny, *BOARD, "--save", "p.json")
    plan = json.loads((tmp_path / "p.json").read_text())
    for assignment in plan["decode"]:
        if assignment["op"] == "blk.0.attn_norm":
            assignment["device"] = "model:pynq-z1"
    (tmp_path / "p.json").write_text(json.dumps(plan))
    done = hetrun(tmp_path, "plan", "--model", tiny, "--load", "p.json")
    failed(done, PLAN, "blk.0.attn_norm: model:pynq-z1 refuses it: pynq-z1 has no rms_norm", "edit the plan")


def test_verify_compares_the_plan_with_the_best_single_device(tiny: Path, tmp_path: Path) -> None:
    require_device("cpu")
    short = ("--prompt-tokens", "8", "--gen-tokens", "4", "--device", "cpu", "--device", "reference")
    args = ("plan", "--model", tiny, *short, "--pin", "blk.1.ffn_*=reference", "--verify")
    checked = hetrun(tmp_path, *args, "--json").json["verify"]
    assert checked["best_single_device"] == "cpu:0"
    plan, alone = checked["runs"]
    assert plan["devices"] == ["cpu:0", "reference:0"] and alone["devices"] == ["cpu:0"]
    for run in (plan, alone):
        assert len(run["decode_s_per_token"]) == checked["repetitions"]
        ratio = run["predicted"]["prefill_s"] / run["measured"]["prefill_s"]
        assert run["error"]["prefill_s"] == pytest.approx(ratio - 1)
    out = hetrun(tmp_path, *args).out
    assert "measured, the plan is" in out and "cpu:0 alone" in out


def test_verify_of_an_absent_device_runs_nothing(tiny: Path, tmp_path: Path) -> None:
    done = hetrun(tmp_path, "plan", "--model", tiny, *BOARD, "--verify")
    failed(done, DEVICE, "model:cortex-a9 cannot be run here: modelled from a profile", "--verify needs devices")
    assert "running" not in done.err
    failed(hetrun(tmp_path, "plan", "--shape", "tinyllama", "--verify"), USAGE, "needs a file", "--model")


BAD_PLUGIN = """
from hetrun.device import API_VERSION, Cost, DeviceInfo, MemorySpace, Link
from hetrun.hookspecs import hookimpl

class Driver:
    name, api_version = "bad", API_VERSION
    def probe(self, config):
        return [DeviceInfo("bad:0", "bad", "hardware", (MemorySpace("host", 1 << 40),), {launch}, {{}})]
    def estimate(self, info, op, workload):
        return {answer}

@hookimpl
def hetrun_drivers():
    return [Driver()]
"""
GOOD = 'Cost(1e-6, "analytic:a test")'


@pytest.mark.parametrize(
    ("answer", "launch", "said"),
    [
        ('Cost(-1.0, "analytic:a test")', GOOD, "estimate of token_embd (embedding) is no cost: -1.0 seconds"),
        ('Cost(float("nan"), "analytic:a test")', GOOD, "is no cost: nan seconds"),
        ("None", GOOD, "is no cost: None"),
        ('Cost("fast", "analytic:a test")', GOOD, "is no cost: "),
        ('Cost(1.0, "analytic:a test", joules=-2.0)', GOOD, "is no cost: -2.0 joules"),
        ('Cost(1.0, "a guess")', GOOD, "its basis is 'a guess'"),
        ('Cost(1.0, "analytic:x", resident={("host", "w"): -5})', GOOD, "is no cost: -5 bytes of w in host"),
        ("1 / 0", GOOD, "raised ZeroDivisionError"),
        (GOOD, 'Cost(float("nan"), "analytic:a test")', "launch is no cost: nan seconds"),
    ],
)
def test_costs_of_a_plugin_that_are_none(answer: str, launch: str, said: str, tiny: Path, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "site", "bad", BAD_PLUGIN.format(answer=answer, launch=launch))
    for verb in (("plan",), ("generate", "--prompt", "a")):
        done = hetrun(tmp_path, *verb, "--model", tiny, "--device", "bad", plugins=[plugin])
        failed(done, DEVICE, said, "plugin bad breaks the contract")
        assert done.errors[0].startswith("error: bad:0: ")


def test_generate_obeys_the_memory_of_an_edited_plan(tiny: Path, tmp_path: Path) -> None:
    hetrun(tmp_path, "plan", "--model", tiny, "--device", "reference", "--save", "p.json")
    small = '[host]\ncapacity_bytes = { value = 1e5, basis = "analytic:a test" }\n'
    (tmp_path / "s.toml").write_text(f'description = "here"\ndevices = ["reference"]\n{small}')
    done = hetrun(tmp_path, "generate", "-m", tiny, "-p", "a", "--plan", "p.json", "--system", "s.toml")
    failed(done, PLAN, "of host memory, which holds 0 MB", "make it anew")


@pytest.mark.parametrize(
    ("args", "code", "said", "hint"),
    [
        (("--forbid", "blk.*"), USAGE, "forbid 'blk.*' is not PATTERN=DEVICE", "--forbid"),
        (("--forbid", "blk.9.*=model:pynq-z1"), PLAN, "forbid 'blk.9.*' matches no op", "near"),
        (("--forbid", "*=cpux"), DEVICE, "no device 'cpux'", "model:cortex-a9"),
        (("--forbid", "*norm=model:cortex-a9"), PLAN, "no device runs blk.0.attn_norm (rms_norm)", "drop --forbid"),
        (
            ("--pin", "*up=model:pynq-z1", "--forbid", "*up=model:pynq-z1"), PLAN,
            "blk.0.ffn_up is pinned to model:pynq-z1 by --pin", "drop one",
        ),
        (("--pin", "*norm=model:pynq-z1"), PLAN, "is pinned to model:pynq-z1, which refuses it", "drop --pin"),
        (("--target-tps", "0"), USAGE, "a target of 0.0 tokens/s", "above 0"),
        (("--target-tps", "nan"), USAGE, "a target of nan", "above 0"),
        (("--objective", "speed"), USAGE, "'speed'", ""),
        (("--load", "none.json"), PLAN, "none.json: No such file", "--save"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    args: tuple[str, ...], code: int, said: str, hint: str, tiny: Path, tmp_path: Path
) -> None:
    failed(hetrun(tmp_path, "plan", "--model", tiny, *BOARD, *args), code, said, hint)


def test_pins_beyond_a_memory_name_the_pin_and_the_bytes(tmp_path: Path) -> None:
    card = tmp_path / "card.toml"
    profile(card, None)
    text = card.read_text().replace("[memory.host]", "[memory.ram]").replace("1e9, basis", "1e6, basis", 1)
    link = '{ latency_s = 1e-6, bytes_per_s = 1e9, basis = "analytic:a test" }'
    text = text.replace("1e9, basis", "1e6, basis").replace("[model]", f"upload = {link}\ndownload = {link}\n[model]")
    card.write_text(text)
    (tmp_path / "s.toml").write_text(
        f'description = "a test"\ndevices = ["model:x86-generic", "model:card"]\n'
        f'[drivers.modelled]\nprofiles = ["{card}"]\n'
    )
    args = ("plan", "--shape", "tinyllama", "--system", "s.toml", "--pin", "blk.*.ffn_up=model:card")
    done = hetrun(tmp_path, *args)
    failed(done, PLAN, "model:card/ram memory holds 1.0 MB", "--pin 'blk.*.ffn_up=model:card'")
    assert "blk.0.ffn_up and 21 more are pinned to model:card" in done.errors[0]


def test_lengths_that_exceed_the_context_are_an_error(tiny: Path, tmp_path: Path) -> None:
    args = ("plan", "--model", tiny, "--device", "reference")
    done = hetrun(tmp_path, *args, "--prompt-tokens", "60", "--gen-tokens", "5")
    failed(done, CONTEXT, "a prompt of 60 tokens and an answer of 5 do not fit a context of 64", "--ctx")
    assert hetrun(tmp_path, *args, "--prompt-tokens", "60", "--gen-tokens", "4").code == 0
    assert hetrun(tmp_path, *args).code == 0  # the usual lengths are nobody's wish
