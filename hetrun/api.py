"""The Python API: `hetrun.load(...)` gives a `Model`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hetrun.device import Batch
from hetrun.errors import ChatTemplateError, DeviceError, UsageError
from hetrun.graph.graph import Graph
from hetrun.model.architectures import Architecture, GraphOptions, RopeExtension, architectures, build_graph
from hetrun.model.catalog import resolve_model
from hetrun.model.gguf_file import ModelFile
from hetrun.model.tokenizer import Tokenizer
from hetrun.plan.kv_format import DEFAULT, default_kv_format
from hetrun.plan.place import Pin, Request, check_plan, make_plan
from hetrun.plan.plan import Plan
from hetrun.plugins import FoundDevice, Registry, select_device
from hetrun.run.ahead import EncodeAhead
from hetrun.run.build import build
from hetrun.run.generate import Generation
from hetrun.run.sample import Sampling
from hetrun.run.session import Session
from hetrun.run.trace import Trace
from hetrun.run.turn import Turn

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hetrun.config import SystemConfig
    from hetrun.model.chat import ChatTemplate
    from hetrun.model.shape import Shape
    from hetrun.run.constraint import Constraint, Grammar, TokenTable
    from hetrun.run.stand_in import StandInDevice

# Rows of logits that one step gives: enough for `logits` and perplexity to run in chunks, little enough that a discrete
# device can hold them (64 rows of a 128k vocabulary are 33 MB).
_MAX_OUTPUTS = 64

_DEFAULT_MAX_TOKENS = 256

# What runs in place of a device that is only modelled, the first that is here.
_ACTORS = ("cpu:0", "reference:0")


def load(
    path_or_name: str | os.PathLike[str],
    *,
    devices: Sequence[str] | None = None,
    n_ctx: int = 0,
    n_slots: int = 1,
    threads: int | None = None,
    pins: Sequence[str] = (),
    plan: Plan | None = None,
    kv_format: str | None = None,
    window: int = 0,
    sink: int = 0,
    extension: RopeExtension | None = None,
    max_tokens_per_step: int = 512,
    system: SystemConfig | None = None,
    driver_settings: Mapping[str, Mapping[str, object]] | None = None,
    registry: Registry | None = None,
    encode: Callable[[Tokenizer], list[int]] | None = None,
) -> Model:
    """Opens a model, places its ops and loads it.

    path_or_name: a GGUF file, or a name of the catalogue (`hetrun pull` fetches those).
    devices: ids or driver names ("cpu", "reference"); None takes every device that is here.
    n_ctx: tokens a sequence may reach; 0 takes the model's own, at most 4096.   n_slots: sequences held at once.
    threads: for devices that have a choice.   pins: "PATTERN=DEVICE" over op names.   plan: a saved plan instead.
    kv_format: how keys and values are kept, "f16" or what else the devices offer ("f32", "q8_0", "kv4", "kv4h"); None
    takes f16 or, where a device has attention but none of that format, the best that all of them take.
    window, sink: each token attends to the last `window` tokens and the first `sink`, so that memory and time of a
    long context grow with those alone; window 0 attends to all.
    extension: lets the context be longer than the model was trained for (`RopeExtension("yarn", 4.0)`).
    system: devices, their settings, memory and links (`hetrun.config.load_system`).
    driver_settings: more settings, a table for each driver name.   registry: the plugins, if not those installed.
    encode: makes the ids of a first prompt in a child process meanwhile; `Model.encoded()` gives its result.

    Raises subclasses of `hetrun.errors.HetrunError`.
    """
    registry = registry or Registry.load()
    options = GraphOptions(
        n_ctx=n_ctx,
        n_slots=n_slots,
        max_tokens=max_tokens_per_step,
        window=window,
        sink=sink,
        extension=extension,
    )
    with ExitStack() as resources:
        path = resolve_model(os.fspath(path_or_name))
        file = resources.enter_context(ModelFile.open(path))
        tokenizer = Tokenizer.from_metadata(file.metadata)
        ahead = EncodeAhead(partial(encode, tokenizer)) if encode else None
        if ahead:
            resources.callback(ahead.close)
        found = choose_devices(registry, devices, system=system, threads=threads, settings=driver_settings)
        graph = graph_on(found, file, options, registry, kv_format)
        if plan is None:
            request = Request(n_seqs=n_slots, max_tokens=max_tokens_per_step)
            plan = make_plan(graph, found, request, [Pin.parse(p) for p in pins])
        else:
            check_plan(plan, graph, found)
        max_outputs = max(n_slots, min(_MAX_OUTPUTS, max_tokens_per_step))
        runtime = build(graph, plan, found, file.blocks, max_tokens_per_step, max_outputs)
        file.release_pages()  # devices that pack weights have read them, and the pages between them
        session = resources.enter_context(Session(runtime))
        return Model(path, file, tokenizer, session, ahead, resources.pop_all())


def graph_of(header: ModelFile | Shape, options: GraphOptions, registry: Registry) -> Graph:
    """The graph of a file or a shape, by the shipped architectures and those of plugins."""
    extra = [
        a for _, found in registry.hook_results("hetrun_architectures") for a in found if isinstance(a, Architecture)
    ]
    blocks = header.blocks if isinstance(header, ModelFile) else None
    return build_graph(header.architecture, header.metadata, header.tensors, options, architectures(extra), blocks)


def graph_on(
    devices: Sequence[FoundDevice],
    header: ModelFile | Shape,
    options: GraphOptions,
    registry: Registry,
    kv_format: str | None = None,
) -> Graph:
    """The graph for these devices.   kv_format: as in `load`; that of `options` does not count."""
    graph = graph_of(header, replace(options, kv_format=kv_format or DEFAULT), registry)
    suited = kv_format or default_kv_format(graph, devices)
    return graph if suited in (kv_format, DEFAULT) else graph_of(header, replace(options, kv_format=suited), registry)


def choose_devices(
    registry: Registry,
    wanted: Sequence[str] | None,
    *,
    system: SystemConfig | None = None,
    threads: int | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    to_run: bool = True,
    calibrated: bool = True,
) -> list[FoundDevice]:
    """The devices named, or those of the system, or all that are here as hardware.

    to_run: False for devices that are only planned for, which may be absent. To run, what is only modelled gets a
    stand-in (`hetrun.run.stand_in`).
    calibrated: False for what the drivers say alone, without what "hetrun calibrate" has measured.
    DeviceError where one is unknown, or unavailable and to be run.
    """
    wanted = list(wanted or ([d.id for d in system.devices] if system else []))
    tables = {**(system.drivers if system else {}), **(settings or {})}
    common: dict[str, object] = {"modelled": False}
    if threads is not None:
        common["threads"] = threads
    found = registry.devices(tables, common)
    if not wanted:
        here = [d for d in found if d.info.backing == "hardware" and d.info.unavailable is None]
        if not here:
            raise DeviceError("no device is available here", remedy='"hetrun devices" says what is missing')
        return [d.with_stored_calibration() for d in here] if calibrated else here
    known = {d.info.id for d in found} | {d.info.id.partition(":")[0] for d in found}
    if not known.issuperset(wanted):
        found = registry.devices(tables, {**common, "modelled": True})
    chosen = {d.info.id: d for d in (select_device(found, w) for w in wanted)}
    if calibrated:
        chosen = {i: d.with_stored_calibration() for i, d in chosen.items()}
    if to_run:
        chosen = _runnable(chosen, found)
    result = [replace(d, info=system.refine(d.info)) if system else d for d in chosen.values()]
    if any("idle_watts" in d.info.model for d in result):
        from hetrun.config import with_idle_power

        return [replace(d, info=i) for d, i in zip(result, with_idle_power([d.info for d in result]), strict=True)]
    return result


def _runnable(chosen: Mapping[str, FoundDevice], found: Sequence[FoundDevice]) -> dict[str, FoundDevice]:
    """The devices, with a stand-in for each that is only modelled. DeviceError where one cannot run here."""
    here = {d.info.id: d for d in found if d.info.backing == "hardware" and d.info.unavailable is None}
    modelled = [device_id for device_id, device in chosen.items() if device.info.backing == "modelled"]
    acting = next((here[i] for i in _ACTORS if i in here), None)
    if modelled and acting:
        from hetrun.run.stand_in import Actor, stand_in

        actor = Actor(acting)
        chosen = {i: stand_in(d, actor) if i in modelled else d for i, d in chosen.items()}
    for device_id, device in chosen.items():
        if device.info.unavailable:
            raise DeviceError(f"{device_id}: {device.info.unavailable.reason}", remedy=device.info.unavailable.remedy)
    return dict(chosen)


class Model:
    """A loaded model. A context manager; `close` frees devices and file.

    path: the GGUF file.   file, tokenizer, session: the parts, for uses beyond these methods.
    """

    def __init__(
        self,
        path: Path,
        file: ModelFile,
        tokenizer: Tokenizer,
        session: Session,
        ahead: EncodeAhead | None,
        resources: ExitStack,
    ) -> None:
        self.path = path
        self.file = file
        self.tokenizer = tokenizer
        self.session = session
        self._ahead = ahead
        self._resources = resources
        self._turn: Turn | None = None
        self._table: TokenTable | None = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees devices and file; a second call does nothing."""
        self._resources.close()

    @property
    def plan(self) -> Plan:
        """Which device runs each op, and why."""
        return self.session.runtime.plan

    @property
    def trace(self) -> Trace:
        """Steps recorded so far; `session.record()` begins to record."""
        return self.session.trace

    @property
    def stand_ins(self) -> list[StandInDevice]:
        """The devices that are only modelled, with what they would have taken so far (`StandInDevice.time`)."""
        if "hetrun.run.stand_in" not in sys.modules:  # it is imported where there is one
            return []
        from hetrun.run.stand_in import StandInDevice

        return [d for d in self.session.runtime.devices.values() if isinstance(d, StandInDevice)]

    @property
    def n_ctx(self) -> int:
        return self.session.n_ctx

    @property
    def n_vocab(self) -> int:
        return self.session.n_vocab

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Ids of a text. add_special: BOS and EOS as the model asks.   parse_special: read "<|im_start|>" and the
        like.
        """
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def encoded(self) -> list[int]:
        """The ids that `load(encode=...)` asked for; UsageError where it asked for none."""
        if self._ahead is None:
            raise UsageError("nothing was encoded while loading", remedy="use tokenize, or load(encode=...)")
        return self._ahead.ids()

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.tokenizer.decode(ids, skip_special=skip_special)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after each of the ids, as a sequence of its own. float32 [n_tokens, n_vocab].

        What slot 0 of the session held is dropped. ContextError where the ids do not fit the context.
        """
        import numpy as np

        self.session.check_room(len(ids))
        result = np.empty((len(ids), self.n_vocab), np.float32)
        self.session.truncate(0, 0)
        chunk = min(self.session.max_outputs, self.session.max_tokens)
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            positions = range(start, start + len(part))
            logits = self.session.step(Batch.of(part, positions, [0] * len(part), range(len(part))))
            result[start : start + len(part)] = np.asarray(logits).reshape(len(part), self.n_vocab)
        return result

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        parse_special: bool = False,
        json_schema: str | Mapping[str, Any] | None = None,
        grammar: str | Grammar | None = None,
        **sampling: Any,
    ) -> Generation:
        """Continues a prompt: text, or ids taken as they are. Iterate over the result for pieces of text.

        max_tokens: None for 256, or as many as the context has room for.
        json_schema, grammar: what the text must be: a JSON schema, or a grammar in Lark or GBNF. They need the package
        llguidance: pip install 'hetrun[grammar]'. UsageError where it is missing, or they are not valid.
        sampling: fields of `hetrun.run.sample.Sampling` (temperature, top_k, top_p, min_p, repeat_penalty, seed).
        The part of the prompt that the last generation began with too is not run again.
        """
        ids = self.tokenize(prompt, parse_special=parse_special) if isinstance(prompt, str) else list(prompt)
        room = max(self.n_ctx - len(ids) + 1, 1)  # the last token is not run, and needs no place in the context
        if max_tokens is None:
            max_tokens = min(_DEFAULT_MAX_TOKENS, room)
        elif room < max_tokens:
            warnings.warn(f"the context of {self.n_ctx} tokens leaves room for {room} of {max_tokens}", stacklevel=2)
        constraint = None
        if json_schema is not None or grammar is not None:
            constraint = self._constraint(json_schema, grammar)
        settings = Sampling(**sampling)
        return Generation(self.session, self.tokenizer, ids, max_tokens, settings, tuple(stop), constraint=constraint)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> Generation:
        """Answers a conversation, written with the file's own chat template.

        messages: {"role": "system" | "user" | "assistant" | "tool", "content": text}.   tools: descriptions of
        functions, for templates that have a place for them.   options: as `generate`.
        Where the messages go on from the last answer, its tokens are kept as they are: only what is new is run.
        """
        text, ids = self._chat_text(messages, tools)
        generation = self.generate(ids, **options)
        self._turn = Turn(text, generation)
        return generation

    def chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Ids of a conversation up to where the answer begins. ChatTemplateError where the file has no template."""
        return self._chat_text(messages, tools)[1]

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The file's own template. ChatTemplateError where it has none."""
        from hetrun.model.chat import ChatTemplate

        template = ChatTemplate.from_metadata(self.file.metadata, self.tokenizer)
        if template is None:
            raise ChatTemplateError(
                f"{self.path.name} has no chat template", remedy='use "hetrun generate" with a plain prompt'
            )
        return template

    def _chat_text(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> tuple[str, list[int]]:
        """A conversation as the template writes it, and its ids."""
        text = self.chat_template.render(messages, tools=tools)
        before, rest = self._turn.continued(text) if self._turn else ([], text)
        # A template writes the BOS token itself where the model wants one.
        return text, before + self.tokenize(rest, add_special=False, parse_special=True)

    def _constraint(self, json_schema: str | Mapping[str, Any] | None, grammar: str | Grammar | None) -> Constraint:
        from hetrun.run.constraint import Constraint, Grammar, TokenTable

        held_to = grammar if isinstance(grammar, Grammar) else Grammar.of(json_schema, grammar)
        if self._table is None:
            self._table = TokenTable(self.tokenizer)
        return Constraint(held_to, self._table)
