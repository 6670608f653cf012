"""Measures what a JSON schema costs: decode held to it against the same tokens run without it, alternately.

    .venv/bin/python benchmarks/grammar.py                 half a minute, with smollm2-135m
    .venv/bin/python benchmarks/grammar.py --model FILE

Run it on a machine with nothing else running. Both sides run the same tokens from the same prompt and choose a token by
the same settings at each; the second gets its tokens told.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import hetrun
from hetrun.api import Model
from hetrun.run.constraint import Constraint, Grammar, TokenTable
from hetrun.run.sample import Sampler, Sampling

SCHEMA = """{"type": "array", "minItems": 6, "items": {"type": "object", "additionalProperties": false,
"required": ["name", "age", "city", "hobbies"], "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
"city": {"type": "string"}, "hobbies": {"type": "array", "items": {"type": "string"}, "minItems": 1}}}}"""
QUESTION = "List people as JSON, each with name, age, city and hobbies."


def steps_s(
    model: Model, prompt: Sequence[int], tokens: list[int], n_tokens: int, temperature: float, held: Constraint | None
) -> list[float]:
    """Seconds of each token, chosen and run as `Generation` does it.   tokens: filled where held, else told."""
    sampler = Sampler(Sampling(temperature=temperature, seed=1), prompt)
    session = model.session
    prepare = held.prepare if held and not sampler.takes_best else None
    kept = session.reuse(prompt)
    logits = session.feed(prompt[kept:], meanwhile=prepare)
    seconds = []
    for i in range(n_tokens):
        started = time.perf_counter()
        if held:
            token = held.choose(sampler, logits)
            held.accept(token)
            tokens.append(token)
        else:
            sampler.choose(logits)
        logits = session.feed([tokens[i]], meanwhile=prepare)
        seconds.append(time.perf_counter() - started)
    return seconds


def once_s(model: Model) -> tuple[float, float]:
    """Seconds to make the table of a model's tokens, and to compile the schema for it."""
    started = time.perf_counter()
    table = TokenTable(model.tokenizer)
    made = time.perf_counter()
    Constraint(Grammar("json_schema", SCHEMA, "schema"), table)
    return made - started, time.perf_counter() - made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=7)
    args = parser.parse_args()
    with hetrun.load(args.model, devices=["cpu"]) as model:
        table_s, compile_s = once_s(model)
        print(f"once: table of {model.n_vocab} tokens {table_s * 1e3:.0f} ms, schema {compile_s * 1e3:.1f} ms")
        prompt = model.chat_prompt([{"role": "user", "content": QUESTION}])
        table = TokenTable(model.tokenizer)
        print("temperature  tokens  held  free: us a token, medians  cost   by repetition: min    max")
        for temperature in (0.0, 0.7):
            samples = []
            for _ in range(args.repetitions):
                tokens: list[int] = []
                held = Constraint(Grammar("json_schema", SCHEMA, "schema"), table)
                pair = [steps_s(model, prompt, tokens, args.tokens, temperature, c) for c in (held, None)]
                samples.append(pair)
            # A neighbour on the machine disturbs some steps of some repetitions: each step by its median.
            held_s, free_s = (
                sum(map(statistics.median, zip(*(pair[side] for pair in samples), strict=True))) for side in (0, 1)
            )
            costs = [sum(pair[0]) / sum(pair[1]) - 1 for pair in samples]
            print(
                f"{temperature:11g}  {args.tokens:6}  {held_s / args.tokens * 1e6:4.0f}"
                f"  {free_s / args.tokens * 1e6:4.0f}"
                f"  {held_s / free_s - 1:24.1%}  {min(costs):18.1%} {max(costs):6.1%}"
            )


if __name__ == "__main__":
    main()
