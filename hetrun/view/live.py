"""The live view of `hetrun generate --live`: tokens a second, how busy each device is, and where the layers' time goes.

It is drawn on stderr, by the thread that generates, between two steps, a few times a second. Where stdout is a terminal
too, the text is part of it, and is printed plainly when the view has ended. Without a terminal it is lines on stderr.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import NoReturn

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from hetrun.api import Model
from hetrun.run.predict import Prediction
from hetrun.run.trace import StepRecord
from hetrun.view.console import duration, plain

_REFRESH_S = 0.25
_LINE_S = 1.0
_WINDOW = 32  # steps that rates are taken over
_BAR = 24
_HEAT = "▁▂▃▄▅▆▇█"
_HEAT_STYLES = ("blue", "cyan", "green", "yellow", "red")
_EXIT_TERMINATED = 143  # 128 + SIGTERM, as shells count


class LiveView:
    """A context manager that gives a function which takes pieces of text.   write: prints a piece to stdout."""

    def __init__(self, model: Model, write: Callable[[str], None]) -> None:
        self._write = write
        self._trace = model.trace
        self._meter = Meter(model)
        self._console = Console(stderr=True)
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        # Drawn by this thread alone: another one would take a core from the kernels.
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._drawing = terminal
        self._holding = terminal and sys.stdout.isatty()
        self._text = ""
        self._next_s = 0.0
        self._previous_handler: object = None

    def __enter__(self) -> Callable[[str], None]:
        self._trace.listener = self._step_ended
        if self._drawing:
            # What ends the program in one go would leave the terminal without a cursor.
            if threading.current_thread() is threading.main_thread():
                self._previous_handler = signal.signal(signal.SIGTERM, _terminated)
            try:
                self._live.start()
                self._draw()
            except BaseException:  # Ctrl-C too: without this block's end nobody else would stop the view
                self._stop()
                raise
        return self._piece

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._trace.listener = None
        if self._drawing:
            self._stop()
        elif self._meter.n_steps:
            self._print_line()

    def _stop(self) -> None:
        try:
            self._live.stop()
        finally:
            if callable(self._previous_handler) or isinstance(self._previous_handler, int):
                signal.signal(signal.SIGTERM, self._previous_handler)
            if self._holding and self._text:
                self._write(self._text)

    def _piece(self, text: str) -> None:
        if self._holding:
            self._text += text
        else:
            self._write(text)

    def _step_ended(self, step: StepRecord) -> None:
        self._meter.add(step)
        now_s = time.perf_counter()
        if now_s < self._next_s:
            return
        if self._drawing:
            self._draw()
            self._next_s = time.perf_counter() + _REFRESH_S
        else:
            self._print_line()
            self._next_s = now_s + _LINE_S

    def _draw(self) -> None:
        size = self._console.size
        panel = panel_lines(self._meter, size.width)
        shown = [*tail(self._text, size.width, size.height - len(panel) - 2), *panel] if self._holding else panel
        self._live.update(Group(*shown), refresh=True)

    def _print_line(self) -> None:
        print(f"[{self._meter.line()}]", file=sys.stderr, flush=True)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(_EXIT_TERMINATED)


class Meter:
    """Rates over the last steps."""

    def __init__(self, model: Model) -> None:
        self.devices: Sequence[str] = model.plan.used_devices
        self.n_steps = 0
        self.n_tokens = {"prefill": 0, "decode": 0}
        self._steps: deque[StepRecord] = deque(maxlen=_WINDOW)
        self._prediction = Prediction(model.session.runtime)
        self._n_layers = 1 + max(
            (op.layer for op in model.session.runtime.graph.ops if op.layer is not None), default=0
        )

    def add(self, step: StepRecord) -> None:
        if self._steps and self._steps[-1].phase != step.phase:
            self._steps.clear()
        self._steps.append(step)
        self.n_steps += 1
        self.n_tokens[step.phase] += step.n_tokens

    @property
    def phase(self) -> str:
        return self._steps[-1].phase if self._steps else "prefill"

    def tps(self) -> float | None:
        """Tokens a second, what happens between steps included."""
        if not self._steps:
            return None
        return sum(s.n_tokens for s in self._steps) / max(self._elapsed_s(), 1e-9)

    def busy(self) -> dict[str, float]:
        """The share of the time in which each device ran, by the host's clock."""
        busy = dict.fromkeys(self.devices, 0.0)
        for step in self._steps:
            for run in step.runs:
                busy[run.device] += run.ended_s - run.began_s
        elapsed_s = self._elapsed_s()
        return {device: min(1.0, s / elapsed_s) if elapsed_s else 0.0 for device, s in busy.items()}

    def layers(self) -> dict[str, list[float]]:
        """Seconds of each layer in the last step, by device. What is timed for several layers at once is left out."""
        seconds = {device: [0.0] * self._n_layers for device in self.devices}
        for run in self._steps[-1].runs if self._steps else ():
            for group in self._prediction.groups(run):
                if len(group.layers) == 1:
                    seconds[run.device][group.layers[0]] += group.measured_s(run)
        return seconds

    def line(self) -> str:
        tps = self.tps()
        busy = ", ".join(f"{device} {100 * share:.0f}% busy" for device, share in self.busy().items())
        rate = "" if tps is None else f", {tps:.1f} tokens/s"
        return f"{self.phase} {self.n_tokens[self.phase]} tokens{rate}; {busy}"

    def _elapsed_s(self) -> float:
        return self._steps[-1].ended_s - self._steps[0].began_s if self._steps else 0.0


def panel_lines(meter: Meter, width: int) -> list[Text]:
    """The view below the text, each line at most `width` cells wide."""
    tps = meter.tps()
    rate = "..." if tps is None else f"{tps:.1f} tokens/s"
    counts = f"{meter.n_tokens['prefill']} prompt tokens, {meter.n_tokens['decode']} generated"
    lines = [Text("─" * width, "dim"), Text(f"{meter.phase}  {rate}  ", "bold").append(counts, "dim")]
    name_width = max(cell_len(d) for d in meter.devices)
    layers = meter.layers()
    for device, share in meter.busy().items():
        filled = round(share * _BAR)
        bar = Text("█" * filled, "green").append("░" * (_BAR - filled), "dim")
        lines.append(plain(device.ljust(name_width)).append("  ").append(bar).append(f" {100 * share:3.0f}% busy"))
    lines += heat_strip(layers, name_width)
    for line in lines:
        line.truncate(width, overflow="crop")
    return lines


def heat_strip(layers: Mapping[str, Sequence[float]], name_width: int) -> list[Text]:
    """A line for each device that runs layers: a block a layer, the higher the more time the last step took there."""
    most_s = max((s for times in layers.values() for s in times), default=0.0)
    lines = []
    for device, times in layers.items():
        if most_s == 0.0 or not any(times):
            continue
        line = plain(device.ljust(name_width)).append("  ")
        for seconds in times:
            share = seconds / most_s
            mark = _HEAT[min(len(_HEAT) - 1, int(share * len(_HEAT)))] if seconds else "·"
            line.append(mark, _HEAT_STYLES[min(len(_HEAT_STYLES) - 1, int(share * len(_HEAT_STYLES)))])
        lines.append(line.append(f"  layers 0 to {len(times) - 1}, full: {duration(most_s)}", "dim"))
    return lines


def tail(text: str, width: int, n_lines: int) -> list[Text]:
    """The last lines of a text as a terminal of that width would break them, without what could steer it."""
    lines: list[str] = []
    # More than this cannot be shown, whatever it consists of.
    for paragraph in text[-width * max(n_lines, 1) - 1 :].split("\n"):
        line, cells = "", 0
        for character in plain(paragraph).plain:
            wide = cell_len(character)
            if cells + wide > width:
                lines.append(line)
                line, cells = "", 0
            line, cells = line + character, cells + wide
        lines.append(line)
    return [Text(line) for line in lines[-n_lines:]] if n_lines > 0 else []
