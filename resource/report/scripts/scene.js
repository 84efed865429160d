// The camera's picture with the imagined paths of the end effector; without a known camera the
// paths from above and from the side.

import { element, visits } from "page/words";
import { line } from "page/tree";

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, given] of Object.entries(attributes)) made.setAttribute(key, given);
  made.append(...children);
  return made;
}

// Corner and size of the part of a picture that holds the points with room around them.
function windowOf(points, [width, height]) {
  const xs = points.map((p) => p[0]);
  const ys = points.map((p) => p[1]);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [top, bottom] = [Math.min(...ys), Math.max(...ys)];
  const needed = Math.max((2.6 * (right - left)) / width, (2.6 * (bottom - top)) / height, 0.34);
  const share = Math.min(needed, 1);
  const clamp = (middle, whole) =>
    Math.min(Math.max(middle - (share * whole) / 2, 0), whole * (1 - share));
  return [clamp((left + right) / 2, width), clamp((top + bottom) / 2, height), share];
}

function polyline(points, look, thin, title) {
  const text = points.map((p) => p.map((n) => n.toFixed(1)).join(",")).join(" ");
  const halo = svg("polyline", { points: text, class: "halo", "stroke-width": look.width * 2 * thin });
  const stroke = svg("polyline", {
    points: text,
    class: `path ${look.name}`,
    "stroke-width": look.width * thin,
    "stroke-dasharray": look.dash ? look.dash.map((n) => n * thin).join(" ") : "none",
  });
  const end = svg("circle", {
    cx: points.at(-1)[0], cy: points.at(-1)[1], r: look.width * 1.35 * thin,
    class: `end ${look.name}`, "stroke-width": thin,
  });
  stroke.append(svg("title", {}, title));
  end.append(svg("title", {}, title));
  return [halo, stroke, end];
}

const LOOKS = {
  rejected: { name: "rejected", width: 1.5 },
  pointed: { name: "pointed", width: 2.2 },
  policy: { name: "policy", width: 2.8, dash: [7, 4.5] },
  chosen: { name: "chosen", width: 3.4 },
};

// Every root candidate's line of nodes with how it looks, the most important last.
function lines(tree, shape, winner, pointed) {
  const found = Object.entries(tree.roots).map(([id, node]) => {
    const number = Number(id);
    const role = number === winner ? "chosen" : number === 0 ? "policy" : "rejected";
    const title = `candidate ${id} (${tree.origins[node]}): value ${tree.values[node]}, ` +
      visits(tree.visits[node]);
    return { nodes: line(tree, shape, node), look: LOOKS[role], title };
  });
  if (pointed > 0) {
    const title = `node ${pointed}: value ${tree.values[pointed]}`;
    found.push({ nodes: line(tree, shape, pointed), look: LOOKS.pointed, title });
  }
  const order = Object.values(LOOKS);
  return found.sort((a, b) => order.indexOf(a.look) - order.indexOf(b.look));
}

function overPicture(picture, size, paths, whole) {
  const [width, height] = size;
  const drawn = paths.filter((path) => path.points.every((point) => point !== null));
  const points = drawn.flatMap((path) => path.points);
  const [left, top, share] = points.length && !whole ? windowOf(points, size) : [0, 0, 1];
  const view = [left, top, width * share, height * share].map((n) => n.toFixed(1)).join(" ");
  const image = svg("image", { href: picture, width, height });
  const strokes = drawn.flatMap((p) => polyline(p.points, p.look, (share * width) / 560, p.title));
  const label = drawn.length
    ? `the scene with ${drawn.length} imagined paths of the end effector` : "the scene";
  return svg("svg", { viewBox: view, role: "img", "aria-label": label, class: "scene",
    preserveAspectRatio: "xMinYMin" },
    image, ...strokes);
}

// Two orthographic views of paths in metres, 1:1.
function plan(paths) {
  const views = [
    { name: "from above", axes: [1, 0], flip: [-1, -1], words: "left – right, ahead upwards" },
    { name: "from the side", axes: [0, 2], flip: [1, -1], words: "ahead – up" },
  ];
  return views.map(({ name, axes, flip, words }) => {
    const place = (point) => axes.map((axis, i) => flip[i] * point[axis] * 1000);
    const flat = paths.map((path) => ({ ...path, points: path.points.map(place) }));
    const all = flat.flatMap((path) => path.points);
    const [xs, ys] = [0, 1].map((i) => all.map((p) => p[i]));
    const span = Math.max(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys), 20);
    const room = span * 1.25;
    const left = (Math.min(...xs) + Math.max(...xs)) / 2 - room / 2;
    const top = (Math.min(...ys) + Math.max(...ys)) / 2 - room / 2;
    const step = [10, 20, 50, 100, 200, 500].find((n) => n >= room / 5) ?? 1000;
    const thin = room / 270;
    const bar = [left + room * 0.05, top + room * 0.94];
    const ruler = svg("path", {
      d: `M${bar[0]},${bar[1]}h${step}`, class: "ruler", "stroke-width": 2 * thin });
    const text = svg("text", {
      x: bar[0], y: bar[1] - 4 * thin, class: "ruler-text", "font-size": 12 * thin },
      `${step} mm`);
    const strokes = flat.flatMap((p) => polyline(p.points, p.look, thin, p.title));
    const view = [left, top, room, room].map((n) => n.toFixed(2)).join(" ");
    const figure = svg("svg", { viewBox: view, role: "img", class: "plan",
      "aria-label": `imagined paths ${name}` }, ruler, text, ...strokes);
    return element("figure", {}, figure,
      element("figcaption", {}, `${name} (${words})`));
  });
}

export class SceneView {
  constructor(container) {
    this.container = container;
    this.whole = false;
  }

  // picture: data URI or null; tree: with its shape, or null; winner: candidate id.
  show(picture, size, tree, shape, winner) {
    Object.assign(this, { picture, size, tree, shape, winner, pointed: -1 });
    this.draw();
  }

  point(node) {
    this.pointed = node;
    this.draw();
  }

  toggle() {
    this.whole = !this.whole;
    this.draw();
  }

  draw() {
    const { tree, picture, size } = this;
    const paths = tree ? lines(tree, this.shape, this.winner, this.pointed) : [];
    const at = (column) => paths.map((p) => ({ ...p, points: p.nodes.map((n) => column[n]) }));
    const parts = [];
    if (picture) {
      const drawn = tree?.pixels ? at(tree.pixels) : [];
      parts.push(overPicture(picture, size, drawn, this.whole));
    }
    if (tree?.positions && !(picture && tree.pixels)) {
      parts.push(element("div", { class: "plans" }, ...plan(at(tree.positions))));
    }
    if (!parts.length) parts.push(element("p", { class: "soft" }, "No picture was kept."));
    if (tree && (tree.positions || tree.pixels)) {
      parts.push(element("p", { class: "soft keys" },
        "Imagined paths of the end effector: ",
        element("b", { class: "chosen-text" }, "winner, solid"), ", ",
        element("b", { class: "policy-text" }, "policy's own, dashed"), ", rejected thin. ",
        picture && tree.pixels ? this.button() : ""));
    } else if (tree) {
      parts.push(element("p", { class: "soft" }, "The world model imagines no path of the hand."));
    }
    parts.push(...this.frames());
    this.container.replaceChildren(...parts);
  }

  button() {
    const text = this.whole ? "magnify the paths" : "whole picture";
    const made = element("button", { type: "button", class: "link" }, text);
    made.addEventListener("click", () => this.toggle());
    return made;
  }

  // Imagined pictures along the winner's line and the policy's own, where the model makes some.
  frames() {
    const frames = this.tree?.frames;
    if (!frames) return [];
    const told = [[this.winner, "winner"], [0, "policy's own"]];
    const shown = told.filter(([id], i) => id in this.tree.roots && (i === 0 || this.winner !== 0));
    return shown.map(([id, name]) => {
      const nodes = line(this.tree, this.shape, this.tree.roots[id]).filter((n) => n in frames);
      const images = nodes.map((node) => {
        const label = `imagined after ${this.shape.depth[node]} macro-actions, ${name}`;
        return element("img", { src: `data:image/jpeg;base64,${frames[node]}`, alt: label });
      });
      return element("figure", { class: "frames" }, element("div", {}, ...images),
        element("figcaption", {}, `imagined, ${name}`));
    });
  }
}
