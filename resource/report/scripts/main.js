// The decisions of a session: timeline, list with filters, and one decision in full.

import { Detail } from "page/detail";
import { DecisionList } from "page/list";
import { FILTERS, Session, arrived } from "page/session";
import { Timeline } from "page/timeline";
import { count, element } from "page/words";

const KEYS = [
  ["j or ↓, k or ↑", "next, previous decision of the list"],
  ["Page Down, Page Up", "ten on, ten back"],
  ["Home, End", "first, last"],
  ["n, p", "next, previous recording"],
  ["d, m, f", "only those that deviated, missed the deadline, fell back; again: off"],
  ["a", "all of them"],
  ["+, −, 0", "zoom the timeline in, out, all of it"],
  ["w", "whole picture, or magnified"],
  ["t, then arrows", "walk in the tree"],
  ["?", "this list"],
];

class Explorer {
  constructor(root) {
    this.root = root;
    this.session = new Session();
    this.active = new Set();
    this.recording = -1;
    this.selected = -1;
    const find = (name) => root.querySelector(`[data-part="${name}"]`);
    const choose = (index) => this.select(index);
    this.buildFilters(find("filters"));
    this.shown = find("shown");
    this.help = find("help");
    this.buildHelp();
    this.timeline = new Timeline(find("timeline"), this.session, choose);
    this.list = new DecisionList(find("list"), this.session, choose);
    this.detail = new Detail(find("detail"), this.session);
    for (const button of find("zoom").querySelectorAll("button")) {
      button.addEventListener("click", () => this.act(button.dataset.key));
    }
    document.addEventListener("keydown", (event) => this.key(event));
    addEventListener("hashchange", () => this.fromAddress());
    this.filter();
    if (!this.fromAddress()) this.select(this.mostTelling(), false);
    root.dataset.ready = "yes";
  }

  // What a reader should see first: the largest gain that changed what the arm did.
  mostTelling() {
    const { deviated, margin } = this.session.columns;
    let best = 0;
    for (let i = 1; i < this.session.count; i++) {
      if (deviated[i] > deviated[best] ||
          (deviated[i] === deviated[best] && margin[i] > margin[best])) best = i;
    }
    return best;
  }

  buildFilters(place) {
    const { session } = this;
    this.buttons = {};
    const total = element("button", { type: "button" }, `all ${count(session.count)}`);
    total.addEventListener("click", () => this.act("a"));
    this.buttons.all = total;
    place.append(total);
    for (const [name, filter] of Object.entries(FILTERS)) {
      let number = 0;
      for (let i = 0; i < session.count; i++) number += filter.test(session, i);
      const made = element("button", { type: "button", title: `key ${filter.key}` },
        `${filter.label} ${count(number)}`);
      made.dataset.filter = name;
      made.addEventListener("click", () => this.toggle(name));
      this.buttons[name] = made;
      place.append(made);
    }
    if (session.recordings.length > 1) {
      const options = session.recordings.map((one, i) =>
        element("option", { value: i }, `${one.title}, ${one.detail}`));
      this.chooser = element("select", { ariaLabel: "recording" },
        element("option", { value: -1 }, `all ${session.recordings.length} recordings`), ...options);
      this.chooser.addEventListener("change", () => this.setRecording(Number(this.chooser.value)));
      place.append(this.chooser);
    }
  }

  buildHelp() {
    const rows = KEYS.map(([keys, words]) =>
      element("tr", {}, element("th", {}, keys), element("td", {}, words)));
    const close = element("button", { type: "button" }, "close");
    close.addEventListener("click", () => this.help.close());
    this.help.replaceChildren(element("h3", {}, "Keys"),
      element("table", {}, element("tbody", {}, ...rows)), close);
  }

  toggle(name) {
    if (!this.active.delete(name)) this.active.add(name);
    this.filter();
  }

  setRecording(recording) {
    this.recording = recording;
    if (this.chooser) this.chooser.value = recording;
    this.timeline.fit(recording);
    this.filter();
  }

  filter() {
    const { session, active, recording } = this;
    const tests = [...active].map((name) => FILTERS[name].test);
    this.indices = [];
    for (let i = 0; i < session.count; i++) {
      const inside = recording < 0 || session.columns.recording[i] === recording;
      if (inside && (!tests.length || tests.some((test) => test(session, i)))) this.indices.push(i);
    }
    for (const [name, button] of Object.entries(this.buttons)) {
      button.ariaPressed = name === "all" ? active.size === 0 : active.has(name);
    }
    this.shown.textContent = this.indices.length
      ? `${count(this.indices.length)} shown` : "None: no decision passes these filters.";
    this.list.show(this.indices);
    this.timeline.show(active.size || recording >= 0 ? this.indices : null);
    if (this.indices.length && this.selected >= 0 && !this.indices.includes(this.selected)) {
      const next = this.indices.find((index) => index > this.selected);
      this.select(next ?? this.indices.at(-1));
    } else if (this.selected >= 0) this.list.select(this.selected);
  }

  select(index, told = true) {
    this.selected = index;
    this.list.select(index);
    this.timeline.select(index);
    if (told) history.replaceState(null, "", `#decision=${index + 1}`);
    this.detail.show(index).then(() => {
      if (!this.root.dataset.decision) performance.mark("decision shown");
      this.root.dataset.decision = index + 1;
    });
  }

  fromAddress() {
    const found = /^#decision=(\d+)$/.exec(location.hash);
    const index = found ? Number(found[1]) - 1 : -1;
    if (index < 0 || index >= this.session.count || index === this.selected) return false;
    this.select(index, false);
    return true;
  }

  step(distance) {
    if (!this.indices.length) return;
    const place = this.indices.indexOf(this.selected);
    const target = Math.min(Math.max(place + distance, 0), this.indices.length - 1);
    this.select(this.indices[target]);
  }

  nextRecording(distance) {
    const last = this.session.recordings.length - 1;
    const now = this.session.columns.recording[this.selected];
    const target = Math.min(Math.max(now + distance, 0), last);
    this.setRecording(target);
    this.select(this.indices.find((i) => i >= this.session.recordings[target].first) ?? this.selected);
  }

  // Do what a key stands for; whether it stands for anything.
  act(key) {
    const actions = {
      j: () => this.step(1),
      k: () => this.step(-1),
      PageDown: () => this.step(10),
      PageUp: () => this.step(-10),
      Home: () => this.step(-Infinity),
      End: () => this.step(Infinity),
      n: () => this.nextRecording(1),
      p: () => this.nextRecording(-1),
      a: () => {
        this.active.clear();
        this.setRecording(-1);
      },
      "+": () => this.timeline.zoom(1.6),
      "=": () => this.timeline.zoom(1.6),
      "-": () => this.timeline.zoom(1 / 1.6),
      0: () => this.timeline.fit(this.recording),
      w: () => this.detail.sceneView.toggle(),
      t: () => this.detail.treeView.canvas.focus(),
      "?": () => this.help.showModal(),
    };
    for (const [name, filter] of Object.entries(FILTERS)) {
      actions[filter.key] = () => this.toggle(name);
    }
    if (!(key in actions)) return false;
    actions[key]();
    return true;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    if (event.target.closest("select, input, textarea")) return;
    const inside = this.root.contains(event.target);
    const arrows = { ArrowDown: "j", ArrowUp: "k" };
    const scrolls = ["PageDown", "PageUp", "Home", "End"];
    // Keys that scroll a page do so unless the explorer has the focus.
    const key = inside ? arrows[event.key] ?? event.key : event.key;
    if (!inside && scrolls.includes(key)) return;
    if (this.act(key)) event.preventDefault();
  }
}

await arrived("session-index");
window.explorer = new Explorer(document.getElementById("explorer"));
