// The session over time: pictures, values, decision time, and lanes of sources and faults.

/* global uPlot */

import { SOURCE_LOOK, onThemeChange, theme } from "page/palette";
import { element, milliseconds, seconds, value } from "page/words";

const LEFT = 74;
const RIGHT = 14;
const PICTURE = 116;
const LANE = 19;
const ZOOM = 1.6;

const LANES = [
  { name: "chunk from" },
  { name: "▲ missed", colour: "--alarm", test: (s, i) => s.columns.missed[i] },
  { name: "◆ fell back", colour: "--fell", test: (s, i) => s.fellBack(i) },
  { name: "✚ drift", colour: "--drift", test: (s, i) => s.columns.drift_tripped[i] },
  { name: "✕ fault", colour: "--ink", test: (s, i) => s.columns.faults[i].length > 0 },
];

function shape(context, lane, x, y, size) {
  context.beginPath();
  if (lane === 1) {
    context.moveTo(x, y - size);
    context.lineTo(x + size, y + size * 0.8);
    context.lineTo(x - size, y + size * 0.8);
  } else if (lane === 2) {
    context.moveTo(x, y - size);
    context.lineTo(x + size, y);
    context.lineTo(x, y + size);
    context.lineTo(x - size, y);
  } else if (lane === 3) {
    context.rect(x - size, y - size * 0.3, 2 * size, 0.6 * size);
    context.rect(x - size * 0.3, y - size, 0.6 * size, 2 * size);
  } else {
    for (const turn of [0.25, 0.75]) {
      const [cos, sin] = [Math.cos(turn * Math.PI) * size, Math.sin(turn * Math.PI) * size];
      const across = 0.3 * size;
      context.moveTo(x + cos + across, y + sin);
      context.lineTo(x - cos + across, y - sin);
      context.lineTo(x - cos - across, y - sin);
      context.lineTo(x + cos - across, y + sin);
    }
  }
  context.fill();
}

export class Timeline {
  // container: where to draw; choose: called with the index of a decision.
  constructor(container, session, choose) {
    this.session = session;
    this.choose = choose;
    this.plots = [];
    this.matches = null;
    this.selected = -1;
    this.readout = element("output", { class: "readout" });
    this.strip = element("div", { class: "filmstrip" });
    container.append(this.readout, this.strip);
    this.arrange();
    this.pictured = session.columns.picture.flatMap((has, i) => (has ? [i] : []));
    this.strip.hidden = this.pictured.length === 0;
    this.strip.addEventListener("click", (event) => {
      const frame = event.target.closest("button");
      if (frame) choose(Number(frame.dataset.index));
    });
    this.build(container);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(container);
    onThemeChange(() => this.plots.forEach((plot) => plot.redraw(false, true)));
    this.say(null);
    if (document.readyState === "loading") {
      document.addEventListener("DOMContentLoaded", () => this.drawStrip(), { once: true });
    }
  }

  // Columns for the charts; a row of nothing between two recordings breaks the lines.
  arrange() {
    const { session } = this;
    const { columns } = session;
    this.decisions = [];
    this.x = [];
    for (let i = 0; i < session.count; i++) {
      if (i && columns.recording[i] !== columns.recording[i - 1]) {
        this.decisions.push(-1);
        this.x.push((session.place[i - 1] + session.place[i]) / 2);
      }
      this.decisions.push(i);
      this.x.push(session.place[i]);
    }
    this.rows = new Map(this.decisions.map((decision, row) => [decision, row]));
    const last = session.recordings.length - 1;
    const end = session.starts[last] + session.recordings[last].duration;
    this.full = [Math.min(0, this.x[0]), Math.max(end, this.x[0] + 1)];
    this.view = this.full;
  }

  column(read) {
    return this.decisions.map((i) => (i < 0 ? null : read(i)));
  }

  build(container) {
    const { session } = this;
    const { columns } = session;
    const seen = (i) => (session.searched(i) ? columns.root_value[i] : null);
    const own = (i) => (session.searched(i) ? columns.policy_value[i] : null);
    this.panel(container, "Value, progress 0 to 1", 138, [
      { label: "seen now", colour: "--ink", width: 1.6, read: seen },
      { label: "imagined, policy's own", colour: "--policy", width: 1.8, dash: [6, 4], read: own },
      {
        label: "imagined, what the arm got",
        colour: "--chosen",
        width: 1.8,
        points: true,
        read: (i) => session.given(i),
      },
    ]);
    this.panel(container, "Decision time, ms", 104, [
      { label: "time used", colour: "--ink", width: 1.4, read: (i) => columns.time_ms[i] },
      {
        label: "deadline",
        colour: "--alarm",
        width: 1.6,
        dash: [3, 3],
        read: (i) => columns.budget_ms[i] || null,
      },
    ], { zero: true });
    if (columns.drift.some((number) => number !== null)) {
      this.panel(container, "Drift: seen state from the imagined one", 84, [
        { label: "drift", colour: "--drift", width: 1.6, points: true, read: (i) => columns.drift[i] },
      ], { zero: true });
    }
    this.lanes(container);
  }

  panel(container, title, height, series, { zero = false } = {}) {
    const keys = series.map((one) => {
      const key = element("span", { class: "key" }, one.label);
      key.style.setProperty("--look", `var(${one.colour})`);
      key.classList.toggle("dashed", Boolean(one.dash));
      return key;
    });
    const heading = element("div", { class: "panel-title" }, element("b", {}, title), ...keys);
    const body = element("div", { class: "panel" });
    container.append(heading, body);
    const options = this.options(height, {
      y: {
        range: (_, low, high) => {
          if (low === null) return [0, 1];
          const room = 0.08 * (high - low) || 0.05;
          return [zero ? 0 : low - room, high + room];
        },
      },
    });
    const columns = series.map((one) => this.column(one.read));
    const alone = columns.map((column) =>
      column.flatMap((number, i) =>
        number !== null && (column[i - 1] ?? null) === null && (column[i + 1] ?? null) === null
          ? [i] : []));
    options.axes = [
      { show: false },
      {
        size: LEFT,
        space: 22,
        stroke: () => theme("--soft"),
        font: "12px system-ui, sans-serif",
        grid: { stroke: () => theme("--rule"), width: 1 },
        ticks: { show: false },
        values: (_, splits) => splits.map((split) => Number(split.toPrecision(4)).toString()),
      },
    ];
    options.series = [
      {},
      ...series.map((one) => ({
        stroke: () => theme(one.colour),
        width: one.width,
        dash: one.dash,
        spanGaps: false,
        points: {
          show: (plot, _, first, last) => last - first < plot.width / (one.points ? 6 : 14),
          // A decision alone between others without a number has no line to be seen by.
          filter: (_, number, shown) => (shown ? null : alone[number - 1]),
          size: one.points ? 6 : 4,
          fill: () => theme(one.colour),
        },
      })),
    ];
    this.add(options, [this.x, ...columns], body);
  }

  lanes(container) {
    const body = element("div", { class: "panel" });
    const keys = Object.entries(SOURCE_LOOK).map(([name, look]) => {
      const key = element("span", { class: "key bar" }, look.label);
      key.style.setProperty("--look", `var(${look.colour})`);
      key.style.setProperty("--height", look.height);
      key.dataset.source = name;
      return key;
    });
    const title = element("b", {}, "Where the chunk came from, and what went wrong");
    container.append(element("div", { class: "panel-title" }, title, ...keys), body);
    const options = this.options(LANES.length * LANE + 44, { y: { range: [0, 1] } });
    options.axes = [
      {
        size: 30,
        stroke: () => theme("--soft"),
        font: "12px system-ui, sans-serif",
        grid: { show: false },
        ticks: { stroke: () => theme("--rule"), width: 1, size: 5 },
        values: (_, splits, __, ___, step) =>
          splits.map((split) => seconds(Math.max(0, split), step < 1 ? 1 : 0)),
      },
      { size: LEFT, values: () => [], grid: { show: false }, ticks: { show: false } },
    ];
    options.series = [{}, { show: true, stroke: "transparent", points: { show: false } }];
    options.hooks.draw = [(plot) => this.drawLanes(plot)];
    this.add(options, [this.x, this.column(() => 0)], body);
  }

  options(height, scales) {
    return {
      width: 600,
      height,
      padding: [6, RIGHT, 8, 0],
      legend: { show: false },
      scales: { x: { time: false, min: this.full[0], max: this.full[1] }, ...scales },
      cursor: {
        y: false,
        sync: { key: "session", scales: ["x", null] },
        drag: { x: true, y: false, dist: 5 },
        points: { show: false },
      },
      hooks: {
        setScale: [(plot, key) => key === "x" && this.follow(plot)],
        setCursor: [(plot) => plot === this.plots[0] && this.point(plot)],
      },
    };
  }

  add(options, data, body) {
    const plot = new uPlot(options, data, body);
    this.plots.push(plot);
    plot.marker = element("div", { class: "now" });
    plot.over.append(plot.marker);
    let pressed = 0;
    plot.over.addEventListener("mousedown", (event) => (pressed = event.clientX));
    plot.over.addEventListener("click", (event) => {
      if (Math.abs(event.clientX - pressed) > 4) return;
      const left = event.clientX - plot.over.getBoundingClientRect().left;
      this.choose(this.nearest(plot.posToVal(left, "x")));
    });
    plot.over.addEventListener("dblclick", () => this.range(...this.full));
    plot.over.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.shiftKey) return;
        event.preventDefault();
        const centre = plot.posToVal(
          event.clientX - plot.over.getBoundingClientRect().left, "x");
        this.zoom((event.deltaY || event.deltaX) > 0 ? 1 / ZOOM : ZOOM, centre);
      },
      { passive: false }
    );
  }

  drawLanes(plot) {
    const { session, x, decisions } = this;
    const { columns } = session;
    const context = plot.ctx;
    const ratio = uPlot.pxRatio;
    const { left, top, width } = plot.bbox;
    const lane = LANE * ratio;
    const { min, max } = plot.scales.x;
    context.save();
    context.font = `${11.5 * ratio}px system-ui, sans-serif`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    LANES.forEach((one, row) => {
      context.fillStyle = theme("--soft");
      context.fillText(one.name, left - 8 * ratio, top + lane * (row + 0.5));
      context.fillStyle = theme("--rule");
      context.fillRect(left, Math.round(top + lane * (row + 1)) - 1, width, 1);
    });
    context.beginPath();
    context.rect(left, top, width, lane * LANES.length);
    context.clip();
    const looks = Object.fromEntries(
      Object.entries(SOURCE_LOOK).map(([name, look]) => [name, [theme(look.colour), look.height]])
    );
    const colours = LANES.map((one) => (one.colour ? theme(one.colour) : ""));
    const toPixels = width / (max - min);
    // Of the marks that would fall on one another in a column of pixels, one is drawn.
    const drawn = new Map();
    const free = (kind, from) => {
      const column = Math.floor(from / ratio);
      if (drawn.get(kind) === column) return false;
      drawn.set(kind, column);
      this.marks += 1;
      return true;
    };
    this.marks = 0;
    for (let row = 0; row < x.length; row++) {
      const index = decisions[row];
      const next = x[row + 1] ?? this.full[1];
      if (index < 0 || next < min) continue;
      if (x[row] > max) break;
      const from = left + (x[row] - min) * toPixels;
      const wide = Math.max((next - x[row]) * toPixels - ratio, ratio);
      const faint = this.matches && !this.matches.has(index);
      context.globalAlpha = faint ? 0.2 : 1;
      const source = session.source(index);
      const [colour, height] = looks[source];
      if (free(faint ? `${source}, faint` : source, from)) {
        context.fillStyle = colour;
        const tall = (lane - 4 * ratio) * height;
        context.fillRect(from, top + lane - 2 * ratio - tall, wide, tall);
      }
      for (let kind = 1; kind < LANES.length; kind++) {
        if (!LANES[kind].test(session, index) || !free(faint ? -kind : kind, from)) continue;
        context.fillStyle = colours[kind];
        shape(context, kind, from + ratio, top + lane * (kind + 0.5), 5 * ratio);
      }
    }
    context.restore();
  }

  // Take over a plot's range of time in all the others.
  follow(source) {
    const { min, max } = source.scales.x;
    this.view = [min, max];
    for (const plot of this.plots) {
      const now = plot.scales.x;
      if (plot !== source && (now.min !== min || now.max !== max)) plot.setScale("x", { min, max });
    }
    if (source === this.plots[0]) {
      cancelAnimationFrame(this.pending);
      this.pending = requestAnimationFrame(() => this.drawStrip());
    }
    this.mark();
  }

  range(from, to) {
    const [low, high] = this.full;
    const span = Math.min(Math.max(to - from, 1e-3 * (high - low), 0.2), high - low);
    const start = Math.min(Math.max(from, low), high - span);
    this.view = [start, start + span];
    this.plots[0].setScale("x", { min: start, max: start + span });
  }

  zoom(factor, centre = this.middle()) {
    const [min, max] = this.view;
    this.range(centre - (centre - min) / factor, centre + (max - centre) / factor);
  }

  middle() {
    const [min, max] = this.view;
    const place = this.session.place[this.selected];
    return place >= min && place <= max ? place : (min + max) / 2;
  }

  fit(recording) {
    if (recording < 0) return this.range(...this.full);
    const start = this.session.starts[recording];
    return this.range(start, start + this.session.recordings[recording].duration);
  }

  // Bars of the decisions that are not among these are faint; null is all.
  show(indices) {
    this.matches = indices && new Set(indices);
    this.plots.at(-1).redraw(false, true);
  }

  select(index) {
    this.selected = index;
    const place = this.session.place[index];
    const [min, max] = this.view;
    if (place < min || place > max) {
      this.range(place - (max - min) / 2, place + (max - min) / 2);
    }
    this.mark();
    for (const frame of this.strip.children) {
      frame.classList.toggle("chosen", Number(frame.dataset.index) === index);
    }
  }

  mark() {
    if (this.selected < 0) return;
    const place = this.session.place[this.selected];
    for (const plot of this.plots) {
      if (plot.marker) {
        plot.marker.style.transform = `translateX(${plot.valToPos(place, "x").toFixed(1)}px)`;
      }
    }
  }

  // The decision nearest to a place on the timeline.
  nearest(place, among = null) {
    const at = among ? (i) => this.session.place[among[i]] : (i) => this.session.place[i];
    const count = among ? among.length : this.session.count;
    let [low, high] = [0, count - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (at(middle) < place) low = middle + 1;
      else high = middle;
    }
    if (low > 0 && place - at(low - 1) < at(low) - place) low -= 1;
    return among ? among[low] : low;
  }

  point(plot) {
    const { left } = plot.cursor;
    this.say(left >= 0 ? this.nearest(plot.posToVal(left, "x")) : null);
  }

  say(index) {
    if (index === null) {
      this.readout.textContent =
        "Point to read, click to choose, drag to zoom, double click for all of it.";
      return;
    }
    const { session } = this;
    const { columns } = session;
    const parts = [`decision ${index + 1}`, seconds(columns.time[index]), session.source(index)];
    if (session.searched(index)) {
      parts.push(`seen ${value(columns.root_value[index])}`);
      parts.push(`imagined ${value(session.given(index))}`);
    }
    const budget = columns.budget_ms[index];
    parts.push(
      milliseconds(columns.time_ms[index]) + (budget ? ` of ${milliseconds(budget)}` : ""));
    this.readout.textContent = parts.join("  ·  ");
  }

  drawStrip() {
    if (!this.pictured.length) return;
    const [min, max] = this.view;
    const fits = Math.max(2, Math.floor(this.strip.clientWidth / PICTURE));
    const wanted = new Set();
    for (let i = 0; i < fits; i++) {
      const index = this.nearest(min + ((i + 0.5) / fits) * (max - min), this.pictured);
      if (this.session.place[index] >= min && this.session.place[index] <= max) wanted.add(index);
    }
    const frames = [...wanted].map((index) => {
      const when = seconds(this.session.columns.time[index]);
      const image = element("img", {
        src: this.session.picture(index) ?? "data:,",
        alt: `the scene at ${when}`,
        decoding: "async",
        draggable: false,
      });
      const frame = element("button", { type: "button", tabIndex: -1 }, image,
        element("span", {}, when));
      frame.dataset.index = index;
      frame.classList.toggle("chosen", index === this.selected);
      return frame;
    });
    this.strip.replaceChildren(...frames);
  }

  resize() {
    const width = this.strip.parentElement.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    this.plots.forEach((plot) => plot.setSize({ width, height: plot.height }));
    this.mark();
    this.drawStrip();
  }
}
