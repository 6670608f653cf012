"use strict";
// The time line: a row for runs and one for their parts on each lane, drawn on a canvas, since there are thousands.
class TimeLine {
  constructor(canvas, data) {
    this.canvas = canvas;
    this.data = data;
    this.left = 190;
    this.row = 22;
    // A lane of a device has a second row, for ops.
    let top = 24;
    this.lanes = data.lanes.map((lane, i) => {
      const deep = data.slices.some((s) => s[0] === i && data.categories[s[1]] === "op");
      const made = { ...lane, top, deep };
      top += this.row * (deep ? 2 : 1) + 12;
      return made;
    });
    this.height = top;
    this.end = Math.max(1, ...data.slices.map((s) => s[4] + s[5]));
    this.steps = data.slices.filter((s) => data.categories[s[1]] === "step" && data.lanes[s[0]].clock === "host");
    canvas.style.height = `${this.height}px`;
    const find = (name) => [...this.steps].reverse().find((s) => data.names[s[2]].startsWith(name));
    this.views = new Map([["all", null], ["a prefill step", find("prefill")], ["a decode step", find("decode")]]
      .filter(([name, step]) => name === "all" || step));
    this.choose([...this.views.keys()].pop());
    this.listen();
    const used = new Set(data.slices.filter((s) => data.categories[s[1]] === "op").map((s) => data.kinds[s[3]]));
    document.getElementById("legend").replaceChildren(keyOf([
      ...kinds.filter((kind) => used.has(kind)).map((kind) => [kind, colourOf(kind)]),
      ...([...used].some((kind) => !kinds.includes(kind)) ? [["other", colourOf("")]] : []),
    ]));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  choose(name) {
    const step = this.views.get(name);
    const margin = step ? step[5] * 0.02 : 0;
    this.show(step ? step[4] - margin : 0, step ? step[4] + step[5] + margin : this.end);
    choice("timeline-views", [...this.views.keys()], name, (other) => this.choose(other));
  }

  show(from, to) {
    const span = Math.min(Math.max(to - from, 0.5), this.end * 1.1);
    this.from = Math.min(Math.max(from, -0.05 * this.end), this.end - span * 0.1);
    this.to = this.from + span;
    this.draw();
  }

  place(slice) {
    const lane = this.lanes[slice[0]];
    const scale = (this.canvas.clientWidth - this.left) / (this.to - this.from);
    const x = this.left + (slice[4] - this.from) * scale;
    const deep = this.data.categories[slice[1]] === "op";
    return { x, y: lane.top + (deep ? this.row + 2 : 0), w: slice[5] * scale, h: this.row - 2 };
  }

  draw() {
    const { canvas, data } = this;
    const width = canvas.clientWidth, ratio = devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = this.height * ratio;
    const paint = canvas.getContext("2d");
    paint.scale(ratio, ratio);
    paint.font = "12px system-ui, sans-serif";
    paint.textBaseline = "middle";
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const ofKind = (kind) => colour(colourOf(kind).slice(4, -1));
    this.axis(paint, width, colour("--soft"), colour("--grid"));
    paint.save();
    paint.beginPath();
    paint.rect(this.left, 0, width - this.left, this.height);
    paint.clip();
    for (const slice of data.slices) {
      const { x, y, w, h } = this.place(slice);
      if (x + w < this.left || x > width) continue;
      const category = data.categories[slice[1]];
      const plain = { step: "--line", between: "--grid", run: "--line", copy: "--c5" }[category];
      paint.fillStyle = plain ? colour(plain) : ofKind(data.kinds[slice[3]]);
      paint.fillRect(x, y, Math.max(0.6, w > 3 ? w - 1 : w), h);
      if (w > 46) {
        const from = Math.max(x, this.left);
        paint.fillStyle = category === "op" || category === "copy" ? colour("--card") : colour("--ink");
        paint.save();
        paint.beginPath();
        paint.rect(from, y, x + w - from - 4, h);
        paint.clip();
        paint.fillText(data.names[slice[2]], from + 5, y + h / 2);
        paint.restore();
      }
    }
    paint.restore();
    paint.fillStyle = colour("--ink");
    for (const lane of this.lanes) {
      const title = lane.lane === "links" ? lane.track : lane.lane === "host" ? "steps" : lane.lane;
      paint.fillText(lane.clock === "host" ? title : `${title}, device time`, 0, lane.top + this.row / 2, this.left - 10);
    }
    canvas.dataset.slices = data.slices.length;
  }

  axis(paint, width, ink, grid) {
    const span = this.to - this.from;
    const step = 10 ** Math.floor(Math.log10(span / 5));
    const every = [1, 2, 5, 10].map((n) => n * step).find((n) => span / n <= 8);
    for (let at = Math.ceil(this.from / every) * every; at <= this.to; at += every) {
      const x = this.left + ((at - this.from) / span) * (width - this.left);
      paint.fillStyle = grid;
      paint.fillRect(x, 18, 1, this.height);
      paint.fillStyle = ink;
      paint.fillText(`${(at / 1e3).toFixed(Math.max(0, -Math.floor(Math.log10(every / 1e3))))} ms`, x + 3, 9);
    }
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    return this.data.slices.findLast((slice) => {
      const p = this.place(slice);
      return x >= Math.max(p.x, this.left) && x <= p.x + Math.max(2, p.w) && y >= p.y && y <= p.y + p.h;
    });
  }

  time(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left - this.left) / (box.width - this.left);
    return this.from + Math.max(0, Math.min(1, share)) * (this.to - this.from);
  }

  zoom(around, factor) {
    this.show(around - (around - this.from) * factor, around + (this.to - around) * factor);
  }

  listen() {
    const { canvas } = this;
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      held = { x: event.clientX, from: this.from, to: this.to };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", () => { held = null; });
    canvas.addEventListener("pointermove", (event) => {
      if (held) {
        const moved = ((event.clientX - held.x) / (canvas.clientWidth - this.left)) * (held.to - held.from);
        this.show(held.from - moved, held.to - moved);
      }
      const slice = this.at(event);
      if (slice && !held) showTip(event, this.describe(slice));
      else hideTip();
    });
    canvas.addEventListener("pointerleave", hideTip);
    canvas.addEventListener("dblclick", (event) => {
      const slice = this.at(event);
      if (slice) this.show(slice[4] - slice[5] * 0.05, slice[4] + slice[5] * 1.05);
    });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.zoom(this.time(event), event.deltaY > 0 ? 1.25 : 0.8);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const span = this.to - this.from, middle = (this.from + this.to) / 2;
      const act = {
        ArrowLeft: () => this.show(this.from - span / 5, this.to - span / 5),
        ArrowRight: () => this.show(this.from + span / 5, this.to + span / 5),
        "+": () => this.zoom(middle, 0.8),
        "-": () => this.zoom(middle, 1.25),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
  }

  describe([lane, category, name, , , seconds, predicted, layer]) {
    const { data } = this;
    const lines = [data.names[name]];
    if (layer !== null && layer !== undefined) lines[0] = `layer ${layer}: ${lines[0]}`;
    lines.push(`${data.lanes[lane].lane}, ${data.categories[category]}: ${duration(seconds / 1e6)}`);
    if (predicted !== null && predicted !== undefined) lines.push(`predicted ${duration(predicted / 1e6)}`);
    return lines.join("\n");
  }
}
