"""What a generation took: the object that --json prints and the line on stderr."""

from __future__ import annotations

import sys
from typing import Any

from hetrun.api import Model
from hetrun.plan.plan import PHASES
from hetrun.run.generate import Generation


def figures(generation: Generation) -> dict[str, Any]:
    """Text and times of one answer."""
    return {
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "tokens": list(generation.tokens),
        "prompt_tokens": len(generation.prompt),
        "reused_tokens": generation.reused_tokens,
        "generated_tokens": len(generation.tokens),
        "prefill_s": generation.prefill_s,
        "decode_s": generation.decode_s,
        "prefill_tps": generation.prefill_tps,
        "decode_tps": generation.decode_tps,
        "seed": generation.seed,
    }


def segments(model: Model) -> list[dict[str, Any]]:
    """Each loaded segment once: its device, its ops and the phases that run it."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for phase in PHASES:
        for step in model.session.runtime.steps[phase]:
            entry = found.setdefault(
                (step.device, step.segment.name),
                {"name": step.segment.name, "device": step.device, "ops": len(step.segment.ops), "phases": []},
            )
            entry["phases"].append(phase)
    return list(found.values())


def modelled(model: Model, generation: Generation) -> dict[str, Any] | None:
    """What devices that are only modelled would have taken, or None where there is none.

    Of a model that made one generation: times are summed from its loading on.
    """
    devices = model.stand_ins
    if not devices:
        return None
    decode_s = sum(d.time.decode_s for d in devices)
    n_steps = len(generation.tokens) - 1
    return {
        "devices": [d.info.id for d in devices],
        "stand_in": devices[0].acting_id,
        "prefill_s": sum(d.time.prefill_s for d in devices),
        "decode_s": decode_s,
        "decode_tps": n_steps / decode_s if n_steps > 0 and decode_s else None,
        "host_s": sum(d.time.host_s for d in devices),
        "basis": sorted({d.time.basis for d in devices if d.time.basis}),
    }


def print_modelled(times: dict[str, Any]) -> None:
    """The line on stderr that tells modelled times from those of the host."""
    rate = f" ({times['decode_tps']:.4g} tokens/s)" if times["decode_tps"] else ""
    print(
        f"[those are times of {times['stand_in']}, which stood in; predicted for {', '.join(times['devices'])}:"
        f" prefill {times['prefill_s']:.3g} s, decode {times['decode_s']:.3g} s{rate}; {'; '.join(times['basis'])}]",
        file=sys.stderr,
    )


def print_line(generation: Generation, load_s: float | None = None) -> None:
    """The figures in a line on stderr."""
    n_run = len(generation.prompt) - generation.reused_tokens
    parts = [] if load_s is None else [f"load {load_s:.2f} s"]
    parts.append(f"prefill {n_run} tokens in {generation.prefill_s:.2f} s ({generation.prefill_tps:.1f} tokens/s)")
    parts.append(
        f"decode {len(generation.tokens)} tokens in {generation.decode_s:.2f} s ({generation.decode_tps:.1f} tokens/s)"
    )
    print(f"[{', '.join(parts)}; ended by: {generation.finish_reason}]", file=sys.stderr)
