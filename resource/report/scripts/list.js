// The decisions as a list of which only the rows in sight exist.

import { SOURCE_LOOK } from "page/palette";
import { element, milliseconds, seconds, signed, value } from "page/words";

const ROW = 30;
const SPARE = 6;

export class DecisionList {
  // container: an element that scrolls; choose: called with the index of a decision.
  constructor(container, session, choose) {
    this.container = container;
    this.session = session;
    this.indices = [];
    this.places = new Map();
    this.selected = -1;
    this.spacer = element("div", { class: "rows" });
    this.rows = [];
    container.replaceChildren(this.spacer);
    container.setAttribute("role", "listbox");
    container.setAttribute("aria-label", "decisions");
    container.tabIndex = 0;
    container.addEventListener("scroll", () => this.draw(), { passive: true });
    this.spacer.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) choose(Number(row.dataset.index));
    });
    new ResizeObserver(() => this.draw()).observe(container);
  }

  // Show these decisions, in order.
  show(indices) {
    this.indices = indices;
    this.places = new Map(indices.map((index, place) => [index, place]));
    this.spacer.style.height = `${indices.length * ROW}px`;
    this.container.classList.toggle("none", indices.length === 0);
    this.draw();
  }

  select(index) {
    this.selected = index;
    const place = this.places.get(index);
    if (place !== undefined) {
      const top = place * ROW;
      const { scrollTop, clientHeight } = this.container;
      const above = top - scrollTop;
      const below = top + ROW - scrollTop - clientHeight;
      if (above < -ROW || below > ROW) this.container.scrollTop = top - clientHeight / 2;
      else if (above < 0) this.container.scrollTop = top;
      else if (below > 0) this.container.scrollTop = scrollTop + below;
    }
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.container.scrollTop / ROW) - SPARE);
    const fits = Math.ceil(this.container.clientHeight / ROW) + 2 * SPARE;
    const last = Math.min(this.indices.length, first + fits);
    while (this.rows.length < fits) {
      const cells = ["number", "time", "source", "gain", "took", "flags"].map((name) =>
        element("span", { class: name })
      );
      const row = element("div", { class: "row", role: "option" }, ...cells);
      this.rows.push({ row, cells, index: -1 });
      this.spacer.append(row);
    }
    // A place keeps its row while it is in sight, so that scrolling fills only the new ones.
    const count = this.rows.length;
    for (let place = first; place < first + count; place++) {
      const entry = this.rows[place % count];
      entry.row.hidden = place >= last;
      if (place < last) this.fill(entry, this.indices[place], place);
    }
  }

  fill(entry, index, place) {
    const { session } = this;
    const { columns } = session;
    entry.row.style.transform = `translateY(${place * ROW}px)`;
    const chosen = index === this.selected;
    if (entry.row.ariaSelected !== String(chosen)) {
      entry.row.ariaSelected = String(chosen);
    }
    if (chosen) this.container.setAttribute("aria-activedescendant", `decision-${index}`);
    if (entry.index === index) return;
    entry.index = index;
    entry.row.id = `decision-${index}`;
    entry.row.dataset.index = index;
    entry.row.setAttribute("aria-setsize", this.indices.length);
    entry.row.setAttribute("aria-posinset", place + 1);
    const source = session.source(index);
    const [number, time, from, gain, took, flags] = entry.cells;
    number.textContent = index + 1;
    time.textContent = seconds(columns.time[index]);
    from.textContent = source;
    from.style.setProperty("--look", `var(${SOURCE_LOOK[source].colour})`);
    from.dataset.source = source;
    gain.textContent = session.searched(index) ? signed(columns.margin[index]) : "";
    gain.title = session.searched(index)
      ? `winner ${value(columns.chosen_value[index])}, policy ${value(columns.policy_value[index])}`
      : "";
    took.textContent = milliseconds(columns.time_ms[index]);
    flags.textContent = [
      columns.missed[index] ? "▲" : "",
      session.fellBack(index) ? "◆" : "",
      columns.drift_tripped[index] ? "✚" : "",
      columns.faults[index].length ? "✕" : "",
    ].join("");
    flags.title = [
      columns.missed[index] ? "missed its deadline" : "",
      session.fellBack(index) ? "fell back" : "",
      columns.drift_tripped[index] ? "drift" : "",
      ...session.faults(index),
    ]
      .filter(Boolean)
      .join(", ");
  }
}
