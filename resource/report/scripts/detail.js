// One decision in full: what the arm was given and why, the picture, the tree, the candidates.

import { SceneView, svg } from "page/scene";
import { TreeView, arrange, line } from "page/tree";
import { count, element, headline, milliseconds, remarks, seconds, signed, value } from "page/words";

const LISTED = 10;
const STAGE_COLOURS = [
  "#0072B2", "#F0C05A", "#009E73", "#E3A6C6", "#6B7280", "#9ED2F2", "#D55E00", "#B8BDC3",
];

const FACTS = {
  simulations: "simulations",
  simulations_budget: "simulations allowed",
  world_model_calls: "batched calls of the world model",
  nodes: "nodes",
  max_depth: "deepest",
  mean_depth: "mean depth",
  pruned: "candidates cut off",
  root_entropy: "entropy of the root's visits, nats",
  gate: "gate",
  drift: "drift",
  tree_reused: "tree reused",
  alpha: "share of the policy (alpha)",
  policy: "policy",
  world_model: "world model",
  value: "value",
  prior: "prior",
  seed: "seed",
  sequence: "sequence",
};

function heading(text) {
  return element("h4", {}, text);
}

function cell(text, right = true) {
  return element("td", right ? { class: "r" } : {}, text);
}

// Millimetres that the hand is imagined to move along a line of nodes.
function moved(tree, nodes) {
  const positions = tree.positions;
  if (!positions) return null;
  const [from, to] = [positions[0], positions[nodes.at(-1)]];
  return to.map((number, axis) => Math.round(1000 * (number - from[axis])));
}

export class Detail {
  constructor(container, session) {
    this.session = session;
    this.title = element("h3", { class: "decision-title" });
    this.verdict = element("p", { class: "verdict-line" });
    this.verdict.setAttribute("aria-live", "polite");
    this.remarks = element("ul", { class: "remarks" });
    this.scene = element("div", { class: "scene-pane" });
    this.treePane = element("div", { class: "tree-pane" });
    this.why = element("div", { class: "why-pane" });
    this.table = element("div", { class: "table-pane" });
    this.stages = element("div", { class: "stage-pane" });
    container.replaceChildren(
      element("header", {}, this.title, this.verdict, this.remarks),
      element("div", { class: "panes" },
        element("div", {}, this.scene, this.why),
        element("div", {}, this.treePane, this.table)),
      this.stages
    );
    this.sceneView = new SceneView(this.scene);
    this.treeView = new TreeView(this.treePane, (node) => this.sceneView.point(node));
    this.wanted = -1;
  }

  // Show a decision; a later call wins over one whose data are still being unpacked.
  async show(index) {
    this.wanted = index;
    const details = await this.session.details(index);
    if (this.wanted !== index) return;
    const { session } = this;
    const recording = session.recordingOf(index);
    const when = seconds(session.columns.time[index]);
    this.title.replaceChildren(
      `Decision ${count(index + 1)}`,
      element("span", { class: "soft" }, ` at ${when} of “${recording.title}”, ${recording.detail}`)
    );
    this.verdict.textContent = headline(session, index);
    this.remarks.replaceChildren(
      ...[...remarks(session, index), ...details.remarks].map((text) => element("li", {}, text))
    );
    const { tree } = details;
    const winner = session.columns.chosen_id[index];
    const shape = tree && arrange(tree.parents);
    this.sceneView.show(session.picture(index), recording.size, tree, shape, winner);
    this.treePane.hidden = !tree;
    if (tree) this.treeView.show(tree, winner);
    this.why.replaceChildren(...this.reasons(index, details, shape));
    this.table.replaceChildren(...this.candidates(details, winner, shape));
    this.stages.replaceChildren(...this.times(details), this.facts(details));
    this.shown = index;
  }

  // The winner beside the policy's own: the numbers, and the values along both lines.
  reasons(index, details, shape) {
    const { columns } = this.session;
    if (!this.session.searched(index)) return [];
    const { tree, candidates } = details;
    const winner = columns.chosen_id[index];
    const [best, own] = [winner, 0].map((id) => candidates.find((one) => one.id === id));
    const rows = [
      ["value", columns.chosen_value[index], columns.policy_value[index], (n) => value(n)],
      ["visits", best?.visits, own?.visits, (n) => (n === undefined ? "–" : count(n))],
      ["density of the prior", best?.prior, own?.prior, (n) => value(n)],
      ["drawn by", best?.origin, own?.origin, (text) => text ?? "–"],
    ];
    if (tree) {
      const [mine, theirs] = [winner, 0].map((id) =>
        id in tree.roots ? line(tree, shape, tree.roots[id]) : null);
      if (mine && theirs) {
        const leaf = (nodes) => tree.leaf_values[nodes[1]];
        rows.splice(1, 0,
          ["value model's answer, one step ahead", leaf(mine), leaf(theirs), (n) => value(n)]);
        const told = (nodes) => moved(tree, nodes)?.map((mm) => signed(mm, 0)).join(" ");
        if (tree.positions) {
          rows.push(["hand moves, mm", told(mine), told(theirs), (text) => text]);
        }
      }
    }
    const same = winner === 0;
    const body = rows.map(([name, first, second, say]) => {
      const difference =
        name === "value"
          ? signed(columns.margin[index])
          : typeof first === "number" && typeof second === "number" && name !== "visits"
            ? signed(first - second) : "";
      return element("tr", {}, element("th", {}, name),
        ...(same ? [] : [cell(say(first))]), cell(say(second)), ...(same ? [] : [cell(difference)]));
    });
    const head = same
      ? ["", "policy's own, winner"]
      : ["", `winner, ${winner}`, "policy, 0", "difference"];
    const table = element("table", { class: "why" },
      element("thead", {}, element("tr", {},
        ...head.map((text, i) => element("th", i ? { class: "r" } : {}, text)))),
      element("tbody", {}, ...body));
    const title = same ? "Why the policy's own won" : "Why this winner against the policy's own";
    const chart = tree && 0 in tree.roots ? [this.along(tree, shape, winner)] : [];
    return [heading(title), table, ...chart];
  }

  // Value at every depth of the winner's line and of the policy's own.
  along(tree, shape, winner) {
    const told = [[0, "policy"], ...(winner === 0 || !(winner in tree.roots) ? [] : [[winner, "chosen"]])];
    const drawn = told.map(([id, look]) => ({ look, nodes: line(tree, shape, tree.roots[id]) }));
    const numbers = drawn.flatMap(({ nodes }) => nodes.map((node) => tree.values[node]));
    const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
    const deepest = Math.max(...drawn.map(({ nodes }) => nodes.length - 1), 1);
    const [width, height, left, right, top, bottom] = [420, 150, 52, 74, 12, 26];
    const x = (depth) => left + ((width - left - right) * depth) / deepest;
    const y = (number) =>
      top + (height - top - bottom) * (1 - (number - low) / (high - low || 1));
    const parts = [];
    for (const number of high > low ? [low, high] : [low]) {
      parts.push(svg("line", { x1: left, x2: width - right, y1: y(number), y2: y(number), class: "grid" }));
      parts.push(svg("text", { x: left - 8, y: y(number) + 4, "text-anchor": "end" }, value(number)));
    }
    for (let depth = 0; depth <= deepest; depth++) {
      const text = depth ? `+${depth}` : "now";
      parts.push(svg("text", { x: x(depth), y: height - 6, "text-anchor": "middle" }, text));
    }
    for (const { look, nodes } of drawn) {
      const points = nodes.map((node, depth) => [x(depth), y(tree.values[node])]);
      parts.push(svg("polyline", { points: points.join(" "), class: `along ${look}` }));
      points.forEach(([px, py]) =>
        parts.push(svg("circle", { cx: px, cy: py, r: 3.5, class: `dot ${look}` })));
    }
    const ends = drawn.map(({ nodes }) => y(tree.values[nodes.at(-1)]));
    const apart = ends.length > 1 && Math.abs(ends[0] - ends[1]) < 15
      ? [ends[0] >= ends[1] ? 8 : -8, ends[0] >= ends[1] ? -8 : 8] : [0, 0];
    drawn.forEach(({ look, nodes }, i) => {
      const words = look === "chosen" ? "winner" : winner === 0 ? "policy, winner" : "policy";
      parts.push(svg("text", { x: x(nodes.length - 1) + 8, y: ends[i] + 4 + apart[i], class: look }, words));
    });
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img",
      "aria-label": "value along the imagined lines" }, ...parts);
    return element("figure", {}, picture,
      element("figcaption", {}, "Backed-up value along each line, macro-actions ahead"));
  }

  candidates(details, winner, shape) {
    const { candidates, tree } = details;
    if (!candidates.length) return [];
    const listed = candidates.filter(
      (one, place) => place < LISTED || one.id === winner || one.id === 0);
    const head = ["candidate", "drawn by", "visits", "value", "density",
      ...(tree?.positions ? ["moves, mm"] : [])];
    const rows = listed.map((one) => {
      const role = one.id === winner ? ", winner" : one.id === 0 ? ", policy" : "";
      const node = tree?.roots[one.id];
      const path = node === undefined ? null : line(tree, shape, node);
      const mm = path && moved(tree, path);
      const row = element("tr",
        { class: one.id === winner ? "chosen" : one.id === 0 ? "policy" : "" },
        element("td", {}, element("b", {}, one.id), role), cell(one.origin, false), cell(count(one.visits)),
        cell(value(one.value)), cell(value(one.prior)),
        ...(tree?.positions ? [cell(mm ? mm.map((n) => signed(n, 0)).join(" ") : "–")] : []));
      if (node !== undefined) {
        row.addEventListener("mouseenter", () => this.sceneView.point(node));
        row.addEventListener("mouseleave", () => this.sceneView.point(-1));
        row.addEventListener("click", () => this.treeView.pick(node));
      }
      return row;
    });
    const left = candidates.length - listed.length;
    const texts = new Set(["candidate", "drawn by"]);
    return [
      heading("Candidates, most visited first"),
      element("div", { class: "wide" }, element("table", { class: "candidates" },
        element("thead", {}, element("tr", {},
          ...head.map((text) => element("th", texts.has(text) ? {} : { class: "r" }, text)))),
        element("tbody", {}, ...rows))),
      ...(left > 0 ? [element("p", { class: "soft" }, `${left} more with fewer visits.`)] : []),
    ];
  }

  times(details) {
    const { stage_names: names, stage_ms: sizes } = details.statistics;
    const total = sizes.reduce((sum, size) => sum + size, 0);
    if (!total) return [];
    const bar = element("div", { class: "stages" });
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label",
      names.map((name, i) => `${name} ${sizes[i].toFixed(1)} ms`).join(", "));
    const keys = element("p", { class: "stage-keys" });
    names.forEach((name, i) => {
      const look = STAGE_COLOURS[i % STAGE_COLOURS.length];
      const part = element("span", { title: `${name}: ${sizes[i].toFixed(1)} ms` });
      part.style.cssText = `flex-grow: ${sizes[i]}; background: ${look}`;
      bar.append(part);
      const key = element("span", { class: "key bar" }, `${name} ${sizes[i].toFixed(1)}`);
      key.style.setProperty("--look", look);
      keys.append(key);
    });
    const { time_ms: used, budget_ms: budget } = details.statistics;
    const words = `${milliseconds(used)}${budget ? ` of ${milliseconds(budget)} allowed` : ""}`;
    return [heading(`Where the time went: ${words}`), bar, keys];
  }

  facts(details) {
    const list = element("dl", {});
    for (const [name, label] of Object.entries(FACTS)) {
      const given = details.statistics[name];
      if (given === null || given === undefined || given === "") continue;
      const text =
        typeof given === "boolean" ? (given ? "yes" : "no")
          : typeof given === "number" && !Number.isInteger(given) ? value(given) : String(given);
      list.append(element("div", {}, element("dt", {}, label), element("dd", {}, text)));
    }
    return element("details", { class: "facts" }, element("summary", {}, "All numbers"), list);
  }
}
