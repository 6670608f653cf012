"""A session: sequences, positions and KV state over a loaded plan. `step` is the one way in which tokens are run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from hetrun.device import Batch, Profiled
from hetrun.errors import ContextError
from hetrun.plan.plan import Phase
from hetrun.run.build import Runtime
from hetrun.run.trace import Notes, Trace


class Session:
    """Runs batches of tokens of several sequences ("slots").

    A batch may continue any slots at once; a token at a position that the slot already holds takes back what came
    after it. Lengths are committed after a step, so a failed step is simply repeated.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.trace = Trace()
        specs = list(runtime.graph.kv_specs.values())
        self.n_slots = min((kv.n_slots for kv in specs), default=1)
        self.n_ctx = min((kv.n_ctx for kv in specs), default=1 << 30)
        self._slack = min((kv.slack for kv in specs if kv.n_cells < kv.n_ctx), default=None)
        self._tokens: list[list[int]] = [[] for _ in range(self.n_slots)]
        # The longest each slot has been since it was emptied: what its rings have overwritten.
        self._reached = [0] * self.n_slots

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.runtime.close()

    @property
    def max_tokens(self) -> int:
        """Tokens that one step may have."""
        return self.runtime.max_tokens

    @property
    def max_outputs(self) -> int:
        """Rows of logits that one step may ask for."""
        return self.runtime.max_outputs

    @property
    def n_vocab(self) -> int:
        return self.runtime.graph.n_vocab

    def length(self, slot: int = 0) -> int:
        """Number of tokens that the slot holds."""
        return len(self._tokens[self._slot(slot)])

    def tokens(self, slot: int = 0) -> Sequence[int]:
        """The tokens that the slot holds."""
        return tuple(self._tokens[self._slot(slot)])

    def truncate(self, slot: int, length: int) -> None:
        """Takes back the slot's tokens from `length` on.

        ContextError where windowed attention has dropped keys that are needed.
        """
        self._check_rollback(self._slot(slot), length)
        del self._tokens[slot][length:]
        if length == 0:
            self._reached[slot] = 0

    def reuse(self, tokens: Sequence[int], slot: int = 0) -> int:
        """Keeps the slot's longest common prefix with `tokens`, less the last token, and takes back the rest.

        Returns the number of tokens kept: those need not be run again.
        """
        held = self._tokens[self._slot(slot)]
        limit = min(len(held), len(tokens) - 1)
        kept = next((i for i in range(limit) if held[i] != tokens[i]), max(limit, 0))
        if not self._can_go_back(slot, kept):
            kept = 0
        self.truncate(slot, kept)
        return kept

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Makes the first n_tokens of `source` those of `target`: the prefix is shared without running it again."""
        self._check_rollback(self._slot(source), n_tokens)
        if self._slot(target) == source:
            self.truncate(source, n_tokens)
            return
        for state in self.runtime.states.values():
            state.copy(source, target, n_tokens)
        self._tokens[target] = self._tokens[source][:n_tokens]
        self._reached[target] = self._reached[source]

    def step(self, batch: Batch, meanwhile: Callable[[], None] | None = None) -> memoryview[float]:
        """Runs a batch. Returns its logits, float32 [n_outputs * n_vocab], valid until the next step.

        meanwhile: work for the host while devices that run by themselves do.
        ContextError where a position is not the slot's next (or an earlier one), or beyond the context.
        """
        first = self._check(batch)
        phase: Phase = "decode" if batch.n_tokens == len(first) else "prefill"
        steps = self.runtime.steps[phase]
        if self.trace.enabled:
            notes = Notes()
            notes.run(steps, self.runtime.devices, batch, meanwhile)
            logits = self._logits(batch, phase, notes)
            self._commit(batch, first)
            notes.end(phase, batch, first)
            self.trace.add(notes)
            return logits
        devices = self.runtime.devices
        for step in steps:
            for name in step.waits:
                devices[name].synchronize()
            for copy in step.copies:
                copy.run(batch)
            step.executable.run(batch)
        if meanwhile is not None:
            meanwhile()
        for device in devices.values():
            device.synchronize()
        logits = self._logits(batch, phase)
        self._commit(batch, first)
        return logits

    def record(self, on: bool = True) -> None:
        """Whether later steps are kept in `trace`, with the times of their parts where the device takes them."""
        self.trace.enabled = on
        for device in self.runtime.devices.values():
            if isinstance(device, Profiled):
                device.profile(on)

    def feed(
        self, tokens: Sequence[int], slot: int = 0, meanwhile: Callable[[], None] | None = None
    ) -> memoryview[float]:
        """Appends tokens to a slot, in chunks where they are many.   meanwhile: as `step` has it, once.

        Returns the logits of the last one, float32 [n_vocab], valid until the next step.
        """
        if not tokens:
            raise ContextError("no tokens to run", remedy="give a prompt of at least one token")
        self.check_room(self.length(slot) + len(tokens))
        logits = memoryview(b"").cast("f")
        for start in range(0, len(tokens), self.max_tokens):
            chunk = tokens[start : start + self.max_tokens]
            last = start + len(chunk) == len(tokens)
            position = self.length(slot)
            positions = range(position, position + len(chunk))
            outputs = [len(chunk) - 1] if last else []
            logits = self.step(Batch.of(chunk, positions, [slot] * len(chunk), outputs), meanwhile if last else None)
        return logits

    def _logits(self, batch: Batch, phase: Phase, notes: Notes | None = None) -> memoryview[float]:
        buffer = self.runtime.logits[phase]
        nbytes = 4 * self.n_vocab * batch.n_outputs
        view = buffer.host_view()
        if view is None:
            view = memoryview(bytearray(nbytes))
            began_s = time.perf_counter()
            buffer.read(view)
            if notes is not None:
                notes.copied(
                    self.runtime.graph.output.name, self.runtime.steps[phase][-1].device, "host", nbytes, began_s
                )
        return view[:nbytes].cast("f")

    def _check(self, batch: Batch) -> dict[int, int]:
        """The first position of each slot in the batch."""
        if batch.n_tokens > self.max_tokens or batch.n_outputs > self.max_outputs:
            raise ContextError(
                f"a step of {batch.n_tokens} tokens and {batch.n_outputs} outputs; this session takes "
                f"{self.max_tokens} and {self.max_outputs}",
                remedy="split the batch, or build the session for larger steps",
            )
        if any(not 0 <= row < batch.n_tokens for row in batch.outputs):
            raise ContextError(f"outputs {list(batch.outputs)} of a batch of {batch.n_tokens} tokens")
        first: dict[int, int] = {}
        following: dict[int, int] = {}
        for slot, position in zip(batch.slots, batch.positions, strict=True):
            if slot not in first:
                self._check_rollback(self._slot(slot), position)
                first[slot] = position
            elif position != following[slot]:
                raise ContextError(
                    f"slot {slot}: position {position} follows {following[slot] - 1}",
                    remedy="positions must ascend by one",
                )
            if position >= self.n_ctx:
                raise self._too_long(position + 1)
            following[slot] = position + 1
        return first

    def _commit(self, batch: Batch, first: Mapping[int, int]) -> None:
        for slot, position in first.items():
            del self._tokens[slot][position:]
        for slot, token in zip(batch.slots, batch.tokens, strict=True):
            self._tokens[slot].append(token)
        for slot in first:
            self._reached[slot] = max(self._reached[slot], len(self._tokens[slot]))

    def check_room(self, n_tokens: int) -> None:
        """ContextError where a sequence of n_tokens does not fit the context."""
        if n_tokens > self.n_ctx:
            raise self._too_long(n_tokens)

    def _too_long(self, n_tokens: int) -> ContextError:
        return ContextError(
            f"{n_tokens} tokens do not fit a context of {self.n_ctx}", remedy="use a larger --ctx, or a shorter prompt"
        )

    def _check_rollback(self, slot: int, length: int) -> None:
        if not 0 <= length <= len(self._tokens[slot]):
            raise ContextError(
                f"slot {slot} holds {len(self._tokens[slot])} tokens, not {length}",
                remedy="positions must have no gaps",
            )
        if not self._can_go_back(slot, length):
            raise ContextError(
                f"slot {slot}: going from {self._reached[slot]} back to {length} tokens needs keys that are dropped",
                remedy=f"start the sequence again, or go back at most {self._slack} tokens",
            )

    def _can_go_back(self, slot: int, length: int) -> bool:
        """Whether no ring has overwritten a key that the token at position `length` sees."""
        return self._slack is None or length == 0 or self._reached[slot] - length <= self._slack

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < self.n_slots:
            raise ContextError(f"no slot {slot}: this session has {self.n_slots}", remedy="build it with more slots")
        return slot
