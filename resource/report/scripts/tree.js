// A search tree on a canvas: layers by depth, area by visits, colour by value, edges by density.

import { gradient, onThemeChange, theme, valueColour } from "page/palette";
import { element, value, visits } from "page/words";

const LAYER = 84;
const MARGIN = { left: 46, right: 20, top: 24, bottom: 22 };
const LEAST = 2.6;
const MOST = 11;

export const SHADES = {
  values: "value",
  leaf_values: "value model's own answer",
  priors: "density",
};

// Columns (leaves in order, a parent in the middle of its children) and depths of a tree.
export function arrange(parents) {
  const children = parents.map(() => []);
  const depth = new Array(parents.length).fill(0);
  parents.forEach((parent, node) => {
    if (parent < 0) return;
    children[parent].push(node);
    depth[node] = depth[parent] + 1;
  });
  const column = new Array(parents.length).fill(0);
  let next = 0;
  const open = [[0, false]];
  while (open.length) {
    const [node, done] = open.pop();
    const below = children[node];
    if (!below.length) column[node] = next++;
    else if (done) column[node] = (column[below[0]] + column[below.at(-1)]) / 2;
    else {
      open.push([node, true]);
      for (let i = below.length - 1; i >= 0; i--) open.push([below[i], false]);
    }
  }
  return { children, depth, column, leaves: Math.max(next, 1) };
}

// The nodes from the root to this one, and on along the best children, as would be executed.
export function line(tree, shape, node) {
  const path = [node];
  while (tree.parents[path[0]] >= 0) path.unshift(tree.parents[path[0]]);
  for (;;) {
    const below = shape.children[path.at(-1)].filter((child) => tree.visits[child] > 0);
    if (!below.length) return path;
    path.push(below.reduce((a, b) => (tree.values[b] > tree.values[a] ? b : a)));
  }
}

export class TreeView {
  // container: where to draw; choose: called with a node when one is chosen.
  constructor(container, choose) {
    this.choose = choose;
    this.shade = "values";
    this.node = 0;
    this.canvas = element("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "application");
    this.said = element("p", { class: "node-words" });
    this.said.setAttribute("aria-live", "polite");
    this.scale = element("span", { class: "scale" });
    this.scale.style.setProperty("--gradient", gradient());
    this.low = element("span", {});
    this.high = element("span", {});
    const options = Object.entries(SHADES).map(([key, label]) =>
      element("option", { value: key }, label)
    );
    this.select = element("select", { id: "shade" }, ...options);
    const legend = element(
      "p", { class: "tree-legend" },
      element("label", { htmlFor: "shade" }, "colour"), this.select,
      this.low, this.scale, this.high,
      element("span", { class: "soft" }, "area: visits; edge: density")
    );
    this.frame = element("div", { class: "tree-frame" }, this.canvas);
    container.replaceChildren(legend, this.frame, this.said);
    this.select.addEventListener("change", () => {
      this.shade = this.select.value;
      this.draw();
    });
    this.canvas.addEventListener("mousemove", (event) => this.hover(event));
    this.canvas.addEventListener("mouseleave", () => this.say(this.node));
    this.canvas.addEventListener("click", (event) => {
      const node = this.at(event);
      if (node !== null) this.pick(node);
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.frame);
    onThemeChange(() => this.draw());
  }

  // tree: parallel arrays; roots: candidate id to node; chosen: the winner's id.
  show(tree, chosen) {
    this.tree = tree;
    this.shape = arrange(tree.parents);
    this.candidates = new Map(Object.entries(tree.roots).map(([id, node]) => [node, Number(id)]));
    this.winner = tree.roots[chosen] ?? -1;
    this.own = tree.roots[0] ?? -1;
    this.node = this.winner >= 0 ? this.winner : 0;
    const deepest = Math.max(...this.shape.depth);
    this.canvas.setAttribute(
      "aria-label",
      `search tree of ${tree.parents.length} nodes, ${deepest} deep; arrow keys move in it`
    );
    this.draw();
    this.say(this.node);
  }

  pick(node) {
    this.node = node;
    this.draw();
    this.say(node);
    this.choose(node);
  }

  key(event) {
    const { parents } = this.tree;
    const { children } = this.shape;
    const siblings = parents[this.node] < 0 ? [0] : children[parents[this.node]];
    const place = siblings.indexOf(this.node);
    const target = {
      ArrowUp: parents[this.node] < 0 ? undefined : parents[this.node],
      ArrowDown: children[this.node][0],
      ArrowLeft: siblings[place - 1],
      ArrowRight: siblings[place + 1],
    }[event.key];
    if (event.key.startsWith("Arrow")) {
      event.preventDefault();
      event.stopPropagation();
      if (target !== undefined) this.pick(target);
    }
  }

  range() {
    const numbers = this.tree[this.shade].filter((number) => number !== null);
    return [Math.min(...numbers), Math.max(...numbers)];
  }

  radius(node) {
    const most = this.most;
    return LEAST + (MOST - LEAST) * Math.sqrt(Math.min(this.tree.visits[node] / most, 1));
  }

  draw() {
    if (!this.tree || !this.frame.clientWidth) return;
    const { tree, shape } = this;
    const count = tree.parents.length;
    const deepest = Math.max(...shape.depth);
    const width = Math.max(this.frame.clientWidth, 3.2 * shape.leaves + 70);
    const height = MARGIN.top + MARGIN.bottom + LAYER * Math.max(deepest, 1);
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    this.most = Math.max(1, ...tree.visits.slice(1));
    const [low, high] = this.range();
    this.low.textContent = value(low);
    this.high.textContent = value(high);
    const span = width - MARGIN.left - MARGIN.right;
    this.x = shape.column.map((c) => MARGIN.left + ((c + 0.5) / shape.leaves) * span);
    this.y = shape.depth.map((d) => MARGIN.top + LAYER * d);
    const soft = theme("--soft");
    context.font = "11.5px system-ui, sans-serif";
    context.fillStyle = soft;
    context.textBaseline = "middle";
    for (let level = 0; level <= deepest; level++) {
      context.fillText(level === 0 ? "now" : `+${level}`, 4, MARGIN.top + LAYER * level);
    }
    const onLine = new Set(line(tree, shape, this.node));
    const densest = Math.max(...tree.priors.slice(1).filter((d) => d !== null), 1e-9);
    for (let node = 1; node < count; node++) {
      const parent = tree.parents[node];
      const bright = onLine.has(node) && onLine.has(parent);
      context.strokeStyle = theme(bright ? "--ink" : "--edge");
      context.lineWidth = (bright ? 1 : 0) + 0.5 + 3.2 * ((tree.priors[node] ?? 0) / densest);
      context.beginPath();
      context.moveTo(this.x[parent], this.y[parent]);
      context.lineTo(this.x[node], this.y[node]);
      context.stroke();
    }
    for (let node = 0; node < count; node++) {
      const shade = tree[this.shade][node];
      context.beginPath();
      context.arc(this.x[node], this.y[node], this.radius(node), 0, 2 * Math.PI);
      context.fillStyle = valueColour(shade === null ? null : (shade - low) / (high - low || 1));
      context.fill();
      context.lineWidth = 0.8;
      context.strokeStyle = soft;
      context.stroke();
    }
    this.ring(context, this.own, theme("--policy"), [4, 3], 3.5);
    this.ring(context, this.winner, theme("--chosen"), [], 3.5);
    this.ring(context, this.node, theme("--ink"), [], 7);
    this.label(context, this.own, "policy");
    this.label(context, this.winner, this.winner === this.own ? "policy, winner" : "winner");
  }

  ring(context, node, colour, dash, room) {
    if (node < 0) return;
    context.beginPath();
    context.setLineDash(dash);
    context.arc(this.x[node], this.y[node], this.radius(node) + room, 0, 2 * Math.PI);
    context.strokeStyle = colour;
    context.lineWidth = room > 5 ? 1.2 : 2.4;
    context.stroke();
    context.setLineDash([]);
  }

  label(context, node, text) {
    if (node < 0) return;
    const width = context.measureText(text).width;
    const right = this.x[node] + 16 + width < parseFloat(this.canvas.style.width);
    const x = right ? this.x[node] + 15 : this.x[node] - 15 - width;
    const y = this.y[node] - 15;
    context.fillStyle = theme("--paper");
    context.globalAlpha = 0.85;
    context.fillRect(x - 3, y - 8, width + 6, 16);
    context.globalAlpha = 1;
    context.fillStyle = theme("--ink");
    context.fillText(text, x, y);
  }

  at(event) {
    if (!this.tree) return null;
    const box = this.canvas.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let [best, nearest] = [null, 15];
    for (let node = 0; node < this.tree.parents.length; node++) {
      const distance = Math.hypot(this.x[node] - px, this.y[node] - py);
      if (distance < nearest) [best, nearest] = [node, distance];
    }
    return best;
  }

  hover(event) {
    const node = this.at(event);
    this.canvas.style.cursor = node === null ? "default" : "pointer";
    this.say(node ?? this.node);
  }

  say(node) {
    const { tree } = this;
    const candidate = this.candidates.get(node);
    const name =
      node === 0
        ? "The state seen now"
        : candidate === undefined
          ? `Node ${node}, drawn by ${tree.origins[node]}`
          : `Candidate ${candidate}, drawn by ${tree.origins[node]}`;
    this.said.textContent =
      `${name}: value ${value(tree.values[node])}, the value model's own answer ` +
      `${value(tree.leaf_values[node])}, ${visits(tree.visits[node])}, ` +
      `density ${value(tree.priors[node])}, depth ${this.shape.depth[node]}.`;
  }
}
