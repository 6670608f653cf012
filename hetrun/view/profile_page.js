"use strict";
const root = document.documentElement;
const { profile, timeline, n_steps: nSteps } = JSON.parse(document.getElementById("data").textContent);
const phases = ["prefill", "decode"].filter((name) => profile[name]);
const devices = new Map(profile.devices.map((d) => [d.device, d]));
const shown = { phase: phases[phases.length - 1], colours: "time" };

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// Text goes in as text, never as markup: names come from a file.
function make(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const digits = (x) => Number(x.toPrecision(3)).toString();
function scaled(value, units) {
  for (const [factor, unit] of units) if (Math.abs(value) * factor >= 1) return `${digits(value * factor)} ${unit}`;
  const [factor, unit] = units[units.length - 1];
  return `${digits(value * factor)} ${unit}`;
}
const duration = (s) => scaled(s, [[1, "s"], [1e3, "ms"], [1e6, "us"]]);
const rate = (x, unit) => scaled(x, [[1e-12, "T" + unit], [1e-9, "G" + unit], [1e-6, "M" + unit], [1e-3, "k" + unit], [1, unit]]);
const percent = (x) => `${(100 * x).toFixed(1)}%`;
const signed = (x) => `${x >= 0 ? "+" : ""}${(100 * x).toFixed(0)}%`;
// What times are called: "mixed" has some of each kind.
const clockOf = (phase) => (phase.clock === "mixed" ? "device time" : phase.clock);
const verdict = (x) => (Math.abs(x) <= 0.1 ? "good" : Math.abs(x) <= 0.3 ? "fair" : "bad");

function tip(element, text) {
  element.addEventListener("pointermove", (event) => showTip(event, text));
  element.addEventListener("pointerleave", hideTip);
}
function showTip(event, text) {
  const box = byId("tip");
  box.textContent = text;
  box.hidden = false;
  const x = Math.min(event.clientX + 14, innerWidth - box.offsetWidth - 8);
  const below = event.clientY + 18 + box.offsetHeight < innerHeight;
  box.style.left = `${Math.max(4, x)}px`;
  box.style.top = `${below ? event.clientY + 18 : event.clientY - box.offsetHeight - 10}px`;
}
function hideTip() { byId("tip").hidden = true; }

function choice(id, options, current, choose) {
  byId(id).replaceChildren(...options.map((name) => {
    const button = make("button", { type: "button", "aria-pressed": name === current }, name);
    button.addEventListener("click", () => choose(name));
    return button;
  }));
}

// A table of the record's own numbers: data-value holds each as it stands in the JSON.
function cell(value, text, style = "") {
  const known = value !== null && value !== undefined;
  return make("td", { class: `n ${style}`, ...(known ? { "data-value": value } : {}) }, known ? text(value) : "");
}
const words = (text) => make("td", {}, text);
function tableOf(id, columns, rows) {
  const head = make("tr", {}, ...columns.map(([name, numeric]) => make("th", numeric ? { class: "n" } : {}, name)));
  byId(id).replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function tiles(phase) {
  const tile = (name, value, text, note) => make("div", { class: "tile" },
    make("span", {}, name), make("b", { "data-figure": name, "data-value": value }, text(value)), make("span", {}, note));
  const clock = phase.device_time_s === null ? "measured by the host's clock" : `${clockOf(phase)}, in the devices' own time`;
  const each = (s) => duration(s / phase.n_steps);
  byId("tiles").replaceChildren(
    tile("tokens/s", phase.tps, digits, clock),
    tile("tokens/s predicted", phase.predicted_tps, digits, "by the devices' cost models"),
    tile("error", phase.error, signed, "of the predicted time"),
    tile("a step", phase.measured_s, each, `${phase.n_tokens} tokens in ${phase.n_steps} steps`),
    tile("between steps", phase.between_s, each, "sampling, text, the caller"),
  );
}

function where(phase) {
  const most = Math.max(...phase.devices.flatMap((d) => [d.measured_s + d.idle_s, d.predicted_s]));
  const bar = (parts) => make("div", { class: "bar" }, ...parts.filter(([, s]) => s > 0).map(([name, s, colour]) => {
    const piece = make("i", { style: `width:${(100 * s) / most}%;background:${colour}` });
    tip(piece, `${name}: ${duration(s / phase.n_steps)} a step`);
    return piece;
  }));
  const bars = phase.devices.flatMap((d) => [
    make("b", {}, d.device), make("span"), make("span"),
    make("span", { class: "name" }, clockOf(phase)),
    bar([["ops", d.ops_s, "var(--c0)"], ["launches", d.launch_s, "var(--c1)"], ["idle", d.idle_s, "var(--line)"]]),
    make("span", {}, duration(d.measured_s / phase.n_steps)),
    make("span", { class: "name" }, "predicted"),
    bar([["ops", d.ops_predicted_s, "var(--c0)"], ["launches", d.launch_predicted_s, "var(--c1)"]]),
    make("span", {}, duration(d.predicted_s / phase.n_steps)),
  ]);
  byId("where").replaceChildren(make("div", { class: "bars" }, ...bars),
    keyOf([["ops", "var(--c0)"], ["launches", "var(--c1)"], ["idle", "var(--line)"]]));
}
const keyOf = (entries) => make("div", { class: "key" }, ...entries.map(([name, colour]) =>
  make("span", {}, make("i", { style: `background:${colour}` }), name)));

function describe(e, phase) {
  const lines = [e.name, `${e.device}`, `${clockOf(phase)} ${duration(e.measured_s / phase.n_steps)} a step`,
    `predicted ${duration(e.predicted_s / phase.n_steps)}${e.error === null ? "" : `, error ${signed(e.error)}`}`];
  if (e.bytes_per_s) lines.push(`${rate(e.bytes_per_s, "B/s")}, ${rate(e.flops_per_s, "FLOP/s")}`);
  return lines.join("\n");
}

function layerMap(phase) {
  const cells = phase.cells.filter((c) => c.layer !== null);
  const box = byId("map");
  if (!cells.length) return void box.replaceChildren(make("p", {}, "No device times its layers apart."));
  const rows = [...new Set(cells.map((c) => `${c.name}\n${c.device}`))];
  const nLayers = 1 + Math.max(...cells.map((c) => c.layer));
  const most = Math.max(...cells.map((c) => c.measured_s));
  const least = Math.min(...cells.map((c) => c.measured_s));
  const left = 250, side = Math.max(9, Math.min(28, 880 / nLayers)), height = 22;
  const image = make("svg:svg", { width: left + nLayers * side + 4, height: rows.length * height + 22, role: "img",
    "aria-label": "Time of each part in each layer" });
  rows.forEach((row, y) => {
    const [name, device] = row.split("\n");
    const title = devices.size > 1 ? `${name}, ${device}` : name;
    image.append(make("svg:text", { class: "label", x: 0, y: y * height + 15 }, title.length > 38 ? `${title.slice(0, 37)}…` : title));
  });
  const byTime = shown.colours === "time";
  for (const c of cells) {
    const share = byTime ? Math.sqrt(c.measured_s / most) : Math.min(1, Math.abs(Math.log2(1 + (c.error ?? 0))) / 2);
    const [from, to] = byTime ? ["--low", "--high"] : ["--middle", c.error >= 0 ? "--over" : "--under"];
    const rect = make("svg:rect", { x: left + c.layer * side, y: rows.indexOf(`${c.name}\n${c.device}`) * height + 1, width: side - 2,
      height: height - 2, rx: 2, style: `fill:color-mix(in oklab, var(${to}) ${100 * share}%, var(${from}))`,
      "data-layer": c.layer, "data-value": c.measured_s });
    tip(rect, `layer ${c.layer}: ${describe(c, phase)}`);
    image.append(rect);
  }
  const every = Math.ceil(24 / side);
  for (let i = 0; i < nLayers; i += every)
    image.append(make("svg:text", { x: left + i * side, y: rows.length * height + 16 }, i));
  const ramp = (colours) => make("span", { class: "ramp", style: `background:linear-gradient(in oklab to right, ${colours})` });
  const key = byTime
    ? ["time a step ", duration(least / phase.n_steps), ramp("var(--low), var(--high)"), duration(most / phase.n_steps)]
    : [`predicted a quarter of ${clockOf(phase)}`, ramp("var(--under), var(--middle), var(--over)"), "four times"];
  box.replaceChildren(image, make("div", { class: "key" }, make("span", {}, ...key)));
}

function roofline(phase) {
  const points = phase.parts.filter((p) => p.flops > 0 && p.bytes > 0 && p.measured_s > 0)
    .map((p) => ({ ...p, x: p.flops / p.bytes, y: p.flops_per_s }));
  const roofs = profile.devices.filter((d) => d.flops_per_s && d.bytes_per_s && phase.devices.some((u) => u.device === d.device));
  const box = byId("roofline");
  if (!points.length) return void box.replaceChildren(make("p", {}, "Nothing that computes was timed."));
  const xs = [...points.map((p) => p.x), ...roofs.map((r) => r.flops_per_s / r.bytes_per_s)];
  const ys = [...points.map((p) => p.y), ...roofs.map((r) => r.flops_per_s)];
  const low = (v) => Math.log10(Math.min(...v) * 0.6), high = (v) => Math.log10(Math.max(...v) * 1.8);
  const [x0, x1, y0, y1] = [low(xs), high(xs), low(ys), high(ys)];
  const width = 1080, height = 380, left = 96, right = 20, top = 10, bottom = 44;
  const px = (x) => left + ((Math.log10(x) - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((Math.log10(y) - y0) / (y1 - y0)) * (height - top - bottom);
  const image = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "FLOP/s over FLOP a byte, with the devices' roofs" });
  for (const x of marks(x0, x1)) image.append(
    make("svg:line", { class: "grid", x1: px(x), x2: px(x), y1: top, y2: height - bottom }),
    make("svg:text", { x: px(x), y: height - bottom + 17, "text-anchor": "middle" }, digits(x)));
  for (const y of marks(y0, y1)) image.append(
    make("svg:line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }),
    make("svg:text", { x: left - 8, y: py(y) + 4, "text-anchor": "end" }, rate(y, "FLOP/s")));
  image.append(make("svg:text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, "FLOP a byte"));
  for (const roof of roofs) {
    const at = (x) => Math.max(10 ** y0, Math.min(roof.flops_per_s, x * roof.bytes_per_s));
    const start = Math.max(10 ** x0, 10 ** y0 / roof.bytes_per_s), knee = roof.flops_per_s / roof.bytes_per_s;
    const path = [start, knee, 10 ** x1].map((x) => `${px(x)},${py(at(x))}`).join(" ");
    image.append(make("svg:polyline", { class: "roof", points: path }),
      make("svg:text", { x: width - right, y: py(roof.flops_per_s) - 6, "text-anchor": "end" },
        `${roof.device}: ${rate(roof.flops_per_s, "FLOP/s")}, ${rate(roof.bytes_per_s, "B/s")}`));
  }
  const taken = [];
  for (const p of [...points].sort((a, b) => b.measured_s - a.measured_s)) {
    const share = p.measured_s / phase.measured_s, x = px(p.x), y = py(p.y);
    const dot = make("svg:circle", { cx: x, cy: y, r: 4 + 22 * Math.sqrt(share), stroke: "var(--card)", "stroke-width": 2,
      style: `fill:${colourOf(kindOf(p.name))};fill-opacity:.75`, "data-name": p.name });
    tip(dot, `${describe(p, phase)}\n${percent(share)} of the time, ${digits(p.x)} FLOP a byte`);
    image.append(dot);
    const lx = x + 8 + 22 * Math.sqrt(share), box = [lx, y - 8, lx + 7 * p.name.length, y + 8];
    const free = taken.every((t) => box[2] < t[0] || t[2] < box[0] || box[3] < t[1] || t[3] < box[1]);
    if (share > 0.02 && free && box[2] < width) {
      taken.push(box);
      image.append(make("svg:text", { class: "label", x: lx, y: y + 4 }, p.name));
    }
  }
  box.replaceChildren(image, make("p", { class: "hint" }, "Each dot is ops that were timed as one, in all layers; the larger, the more time. Roofs are those of the devices' cost models, not of this run."));
}

// Round numbers between two powers of ten.
function marks(from, to) {
  const found = [];
  for (let e = Math.floor(from); e <= to; e++)
    for (const n of to - from > 3 ? [1] : [1, 2, 5])
      if (Math.log10(n) + e >= from && Math.log10(n) + e <= to) found.push(n * 10 ** e);
  return found;
}

// Ops by kind have the same colours everywhere.
const kinds = ["matmul", "attention", "rms_norm", "rope", "embedding", "gated_activation", "add"];
function colourOf(kind) {
  const i = kinds.indexOf(kind);
  return `var(--c${i < 0 ? 7 : i})`;
}
const kindByName = new Map(timeline.slices.filter((s) => timeline.categories[s[1]] === "op")
  .map((s) => [timeline.names[s[2]], timeline.kinds[s[3]]]));
function kindOf(name) {
  const exact = kindByName.get(name);
  if (exact) return exact;
  const part = [...kindByName.keys()].find((known) => known.split(" + ").every((n) => name.split(" + ").includes(n)));
  return part ? kindByName.get(part) : "";
}

function entryRows(entries, phase) {
  const step = (s) => duration(s / phase.n_steps);
  return entries.map((e) => make("tr", { "data-name": e.name },
    words(e.name), words(e.device),
    cell(e.measured_s, (s) => (e.divided ? "~" : "") + step(s)),
    make("td", {}, make("span", { class: "share", style: `width:${Math.max(1, (90 * e.measured_s) / phase.measured_s)}px` }), ` ${percent(e.measured_s / phase.measured_s)}`),
    cell(e.predicted_s, step), cell(e.error, signed, e.error === null ? "" : verdict(e.error)),
    cell(e.bytes_per_s || null, (x) => rate(x, "B/s")), cell(e.bytes_of_roof || null, percent),
    cell(e.flops_per_s || null, (x) => rate(x, "FLOP/s")), cell(e.flops_of_roof || null, percent)));
}
const entryColumns = (name, phase) => [[name], ["device"], [`${clockOf(phase)} a step`, 1], ["share"], ["predicted", 1], ["error", 1],
  ["bytes/s", 1], ["of roof", 1], ["FLOP/s", 1], ["of roof", 1]];

function tables(phase) {
  const step = (s) => duration(s / phase.n_steps), perStep = (n) => digits(n / phase.n_steps);
  tableOf("devices", [["device"], [`${clockOf(phase)} a step`, 1], ["predicted", 1], ["error", 1], ["launches", 1], ["in launches", 1],
    ["predicted", 1], ["idle", 1], ["bytes/s", 1], ["of roof", 1], ["FLOP/s", 1], ["of roof", 1], [`${clockOf(phase)} by; predicted by`]],
  phase.devices.map((d) => make("tr", { "data-name": d.device },
    words(d.device), cell(d.measured_s, step), cell(d.predicted_s, step), cell(d.error, signed, d.error === null ? "" : verdict(d.error)),
    cell(d.launches, perStep), cell(d.launch_s, step), cell(d.launch_predicted_s, step), cell(d.idle_s, step),
    cell(d.bytes_per_s, (x) => rate(x, "B/s")), cell(d.bytes_of_roof, percent), cell(d.flops_per_s, (x) => rate(x, "FLOP/s")),
    cell(d.flops_of_roof, percent), words(`${d.basis.join(", ")}; ${d.predicted_basis.join(", ")}`))));
  tableOf("kinds", entryColumns("kind of op", phase), entryRows(phase.kinds, phase));
  tableOf("parts", entryColumns("timed as one", phase), entryRows(phase.parts, phase));
  tableOf("layers", entryColumns("layer", phase), entryRows(phase.layers, phase));
  byId("copies-card").hidden = !phase.copies.length;
  tableOf("copies", [["link"], ["copies a step", 1], ["bytes", 1], ["measured a step", 1], ["predicted", 1], ["error", 1], ["bytes/s", 1]],
    phase.copies.map((c) => make("tr", {}, words(`${c.source} to ${c.target}`), cell(c.copies, perStep), cell(c.bytes, perStep),
      cell(c.measured_s, step), cell(c.predicted_s, step), cell(c.error, signed, c.error === null ? "" : verdict(c.error)),
      cell(c.bytes_per_s, (x) => rate(x, "B/s")))));
}

function notes() {
  const lines = ["Error: how far the prediction lies above (+) or below (-) the time beside it. Predictions are the devices' cost models at the size that each step really had.",
    "~ Ops that the device runs as one were timed together, and divided as their predictions are.",
    "Bytes are weights, KV cache, and values that the ops read and write by their definition; what a device keeps in its caches or fuses away is counted too, so a share of the roof can exceed 100%.",
    `The time line shows the first steps that were recorded, of ${nSteps}; hetrun profile --trace has more.`];
  for (const d of profile.devices) lines.push(`${d.device} (${d.backing}): ${d.description}`);
  if (phases.some((p) => profile[p].cells.some((c) => c.whole))) lines.push("A device that does not time its ops is shown by whole segments.");
  byId("notes").replaceChildren(...lines.map((line) => make("li", {}, line)));
}

function render() {
  const phase = profile[shown.phase];
  choice("phases", phases, shown.phase, (name) => { shown.phase = name; render(); });
  choice("map-colours", ["time", "error"], shown.colours, (name) => { shown.colours = name; render(); });
  tiles(phase);
  where(phase);
  layerMap(phase);
  roofline(phase);
  tables(phase);
}

const lanes = new TimeLine(byId("timeline").firstElementChild, timeline);
byId("model").textContent = `${profile.model} on ${profile.devices.map((d) => d.device).join(", ")}`;
document.title = `hetrun profile: ${profile.model}`;
byId("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  lanes.draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => lanes.draw());
if (!phases.length) throw new Error("no steps were recorded");
render();
notes();
root.dataset.ready = "yes";
