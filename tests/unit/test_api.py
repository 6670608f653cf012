"""The Python API on tiny models, on the native device, the reference, and both mixed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from models import tiny_llama

import hetrun
import hetrun.errors
from hetrun.errors import ChatTemplateError, ContextError, DeviceError, ModelNotFoundError, PlanError, UsageError
from hetrun.plan.plan import Plan
from hetrun.plugins import Registry

PROMPT = "the thing is in the"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Weights in float32, so that devices differ by the order of their sums alone."""
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_layers=4, quant="F32", n_ctx=256)


@pytest.fixture
def model(tiny):
    with hetrun.load(tiny, devices=["cpu"], n_ctx=128) as model:
        yield model


def alone(tiny, **options):
    with hetrun.load(tiny, devices=["cpu"], **options) as model:
        return model.generate(PROMPT, max_tokens=24).finish()


MIXES = {
    "feed-forward": ["blk.*.ffn_*=reference"],
    "every-other-layer": ["blk.0.*=reference", "blk.2.*=reference"],
    "attention": ["blk.*.attn=reference"],
    "head-and-table": ["token_embd=reference", "output*=reference"],
    "all-but-norms": ["*=reference", "*_norm=cpu"],
}


@pytest.mark.parametrize("kv_format", ["f16", "f32"])
@pytest.mark.parametrize("name", MIXES)
def test_cpu_and_reference_mixed_give_the_tokens_of_cpu_alone(name, kv_format, tiny):
    expected = alone(tiny, kv_format=kv_format)
    with hetrun.load(tiny, devices=["cpu", "reference"], pins=MIXES[name], kv_format=kv_format) as model:
        assert set(model.plan.used_devices) == {"cpu:0", "reference:0"}
        assert model.generate(PROMPT, max_tokens=24).finish() == expected


def test_pieces_join_to_the_text(model):
    generation = model.generate(PROMPT, max_tokens=12)
    assert "".join(generation) == generation.text
    assert generation.finish_reason == "length"
    assert len(generation.tokens) == 12
    assert model.detokenize(generation.tokens) == generation.text


def test_ids_are_taken_as_they_are(model):
    text = model.generate(PROMPT, max_tokens=8).finish()
    assert model.generate(model.tokenize(PROMPT), max_tokens=8).finish() == text


def test_text_survives_tokenizing(model):
    assert model.detokenize(model.tokenize("the naïve 🦙 is in")) == "the naïve 🦙 is in"


def test_logits_of_a_sequence_do_not_depend_on_what_ran_before(model):
    ids = model.tokenize(PROMPT * 15)[:120]
    assert len(ids) > model.session.max_outputs  # more than one step
    first = model.logits(ids)
    assert first.shape == (len(ids), model.n_vocab)
    assert first.dtype == np.float32
    model.generate("something else", max_tokens=3).finish()
    np.testing.assert_array_equal(model.logits(ids), first)


def test_logits_of_too_many_ids_are_refused_and_nothing_is_lost(model):
    model.generate(PROMPT, max_tokens=3).finish()
    held = model.session.tokens()
    with pytest.raises(ContextError, match="129 tokens do not fit a context of 128"):
        model.logits([1] * 129)
    assert model.session.tokens() == held


def test_greedy_tokens_follow_the_logits(model):
    ids = model.tokenize(PROMPT)
    tokens = model.generate(ids, max_tokens=6)
    tokens.finish()
    chosen = model.logits([*ids, *tokens.tokens])[len(ids) - 1 : -1].argmax(axis=1)
    assert chosen.tolist() == tokens.tokens


def test_a_repeated_beginning_is_not_run_again(model):
    first = model.generate(PROMPT + " and", max_tokens=8)
    first.finish()
    again = model.generate(PROMPT + " and", max_tokens=8)
    assert again.finish() == first.text
    assert again.reused_tokens == len(again.prompt) - 1


def test_sampling_repeats_for_a_seed(model):
    def draw(seed):
        return model.generate(PROMPT, max_tokens=12, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed).finish()

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_chat_continues_the_files_own_template(model):
    messages = [{"role": "user", "content": "the"}]
    by_hand = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    assert model.chat_prompt(messages) == model.tokenize(by_hand, parse_special=True)
    assert (
        model.chat(messages, max_tokens=5).finish()
        == model.generate(by_hand, max_tokens=5, parse_special=True).finish()
    )


def test_a_later_turn_of_a_chat_runs_its_new_tokens_alone(model):
    messages = [{"role": "user", "content": "the"}]
    for seed in range(50):
        answer = model.chat(messages, max_tokens=40, temperature=9.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        if model.tokenize(answer.finish()) != answer.tokens and "\ufffd" not in answer.text:
            break  # whoever reads the text alone would run other tokens
    assert model.tokenize(answer.text) != answer.tokens
    messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "and"}]
    n_steps = len(model.trace.steps)
    model.session.record()
    try:
        model.chat(messages, max_tokens=1).finish()
    finally:
        model.session.record(False)
    new = "<|im_end|>\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n"
    (step,) = model.trace.steps[n_steps:]
    assert step.n_tokens == 1 + len(model.tokenize(new, add_special=False, parse_special=True))
    assert model.session.tokens()[: len(answer.prompt) + len(answer.tokens)] == (*answer.prompt, *answer.tokens)


@pytest.mark.parametrize("how", ["another question", "another answer", "an answer that was cut"])
def test_a_chat_that_goes_on_otherwise_is_encoded_as_it_reads(model, how):
    question = {"role": "user", "content": "the"}
    whole = model.chat([question], max_tokens=9).finish()
    answer = model.chat([question], max_tokens=9, stop=[whole[4:6]] if how == "an answer that was cut" else [])
    said = "other" if how == "another answer" else answer.finish()
    assert how != "an answer that was cut" or (answer.finish_reason, said) == ("stop", whole[: len(said)])
    messages = [question, {"role": "assistant", "content": said}]
    if how == "another question":
        messages[0] = {"role": "user", "content": "and"}
    written = model.chat_template.render(messages)
    assert model.chat_prompt(messages) == model.tokenize(written, add_special=False, parse_special=True)


def test_chat_needs_a_template(tmp_path):
    path = tiny_llama(tmp_path / "plain.gguf", chat_template=None)
    with hetrun.load(path, devices=["cpu"]) as model, pytest.raises(ChatTemplateError, match="no chat template"):
        model.chat([{"role": "user", "content": "x"}])


def test_trace_records_steps_when_asked(model):
    model.generate(PROMPT, max_tokens=3).finish()
    assert model.trace.steps == []
    model.session.record()
    model.session.truncate(0, 0)
    model.generate(PROMPT, max_tokens=3).finish()
    assert [s.phase for s in model.trace.steps] == ["prefill", "decode", "decode"]
    assert {run.event.basis for s in model.trace.steps for run in s.runs} == {"measured:cpu"}
    assert model.trace.device_seconds()["cpu:0"] > 0


def test_a_saved_plan_loads(tiny):
    with hetrun.load(tiny, devices=["cpu", "reference"], pins=["blk.1.*=reference"]) as model:
        saved, text = model.plan, model.generate(PROMPT, max_tokens=8).finish()
    with hetrun.load(tiny, devices=["cpu", "reference"], plan=saved) as model:
        assert isinstance(model.plan, Plan)
        assert model.generate(PROMPT, max_tokens=8).finish() == text
    with pytest.raises(PlanError, match="another model"):
        hetrun.load(tiny, devices=["cpu", "reference"], plan=saved, n_ctx=64)


def test_a_prompt_can_be_encoded_while_loading(tiny):
    with hetrun.load(tiny, devices=["cpu"], encode=lambda t: t.encode(PROMPT)) as model:
        assert model.encoded() == model.tokenize(PROMPT)
    with hetrun.load(tiny, devices=["cpu"]) as model, pytest.raises(UsageError, match="nothing was encoded"):
        model.encoded()


def test_room_in_the_context_is_warned_of_only_where_a_number_was_asked(tiny):
    with hetrun.load(tiny, devices=["cpu"], n_ctx=32) as model:
        ids = list(range(65, 65 + 30))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(list(model.generate(ids).session.tokens())) == 0
            model.generate(ids, max_tokens=3).finish()
        with pytest.warns(UserWarning, match="leaves room for 3 of 4"):
            generation = model.generate(ids, max_tokens=4)
        generation.finish()
        assert (generation.finish_reason, len(generation.tokens)) == ("context", 3)
        with pytest.raises(ContextError, match="the prompt has 33 tokens, the context holds 32"):
            model.generate(list(range(65, 65 + 33)))


def test_closing_twice_is_fine_and_using_it_afterwards_is_an_error(tiny):
    model = hetrun.load(tiny, devices=["cpu"])
    model.close()
    model.close()
    with pytest.raises(DeviceError):
        model.generate(PROMPT, max_tokens=1).finish()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"devices": ["cpuu"]}, DeviceError, "did you mean cpu"),
        ({"devices": ["model:pynq-z1"]}, PlanError, "pynq-z1 has no embedding"),
        ({"n_ctx": 257}, ContextError, "257.*256"),
        ({"pins": ["blk.9.*=cpu"]}, PlanError, "matches no op"),
        ({"pins": ["nonsense"]}, UsageError, "PATTERN=DEVICE"),
        ({"kv_format": "f17"}, PlanError, "f17"),
        ({"threads": 0}, DeviceError, "0 threads"),
        (
            {"driver_settings": {"reference": {"flops": 1}}, "devices": ["reference"]},
            hetrun.errors.ConfigError,
            "flops",
        ),
    ],
    ids=["device", "modelled", "context", "pin", "pin-form", "kv-format", "threads", "setting"],
)
def test_what_cannot_be_loaded_is_named(tiny, options, error, message):
    with pytest.raises(error, match=message):
        hetrun.load(tiny, **{"devices": ["cpu"], **options})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"nothing\.gguf"):
        hetrun.load(tmp_path / "nothing.gguf")


def test_by_default_every_device_here_takes_part(tiny):
    with hetrun.load(tiny, registry=Registry.load()) as model:
        assert set(model.plan.devices) >= {"cpu:0", "reference:0"}
        assert model.plan.used_devices == ("cpu:0",)  # the reference is priced as slow as it is
