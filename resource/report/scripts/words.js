// Numbers and verdicts as people read them.

import { STATUS } from "page/session";

export function value(number, digits = 3) {
  return number === null || number === undefined || !Number.isFinite(number)
    ? "–"
    : number.toFixed(digits).replace("-", "−");
}

export function signed(number, digits = 3) {
  if (number === null || number === undefined || !Number.isFinite(number)) return "–";
  return (number < 0 ? "−" : "+") + Math.abs(number).toFixed(digits);
}

export function seconds(number, digits = 1) {
  if (number < 60) return `${number.toFixed(digits)} s`;
  const rounded = Number(number.toFixed(digits));
  const hours = Math.floor(rounded / 3600);
  const minutes = String(Math.floor(rounded / 60) % 60).padStart(hours ? 2 : 1, "0");
  const rest = (rounded % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return `${hours ? `${hours}:` : ""}${minutes}:${rest}`;
}

export function milliseconds(number) {
  return number >= 1000 ? `${(number / 1000).toFixed(2)} s` : `${number.toFixed(0)} ms`;
}

export function count(number) {
  return number.toLocaleString("en").replaceAll(",", "\u202f");
}

export function visits(number) {
  return `${count(number)} ${number === 1 ? "visit" : "visits"}`;
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, given] of Object.entries(attributes)) {
    if (key === "class") made.className = given;
    else if (key in made && key !== "list") made[key] = given;
    else made.setAttribute(key, given);
  }
  made.append(...children);
  return made;
}

// What the arm was given and why, in one line.
export function headline(session, index) {
  const { columns } = session;
  const status = columns.status[index];
  const reason = session.reason(index);
  if (status === STATUS.HOLD) return `The arm was told to hold: ${reason}.`;
  if (status === STATUS.POLICY) return `Fell back to the policy's own chunk: ${reason}.`;
  if (!session.searched(index)) {
    return `No search${reason ? `: ${reason}` : ""}. The policy's own chunk was sent.`;
  }
  const chosen = columns.chosen_id[index];
  const margin = columns.margin[index];
  const needed = columns.margin_required[index];
  if (columns.deviated[index]) {
    return (
      `The search took candidate ${chosen} instead of the policy's own: ` +
      `${signed(margin)} in value, ${value(needed)} needed.`
    );
  }
  if (chosen === 0) return "The policy's own candidate won the search.";
  if (margin > needed) {
    return (
      `Candidate ${chosen} won by ${signed(margin)}, but the policy drove: ` +
      "the search ran in its shadow."
    );
  }
  return (
    `The policy's own chunk was kept: candidate ${chosen} was better by only ` +
    `${value(margin)}, ${value(needed)} needed.`
  );
}

// What went with it: a list of short sentences.
export function remarks(session, index) {
  const { columns } = session;
  const said = [];
  if (columns.deviated[index]) {
    const alpha = value(columns.alpha[index], 2);
    said.push(`Injection strength: alpha ${alpha}, where 1 is the policy's own chunk.`);
  }
  if (columns.status[index] === STATUS.DEADLINE) {
    said.push(`The search was stopped early: ${session.reason(index)}.`);
  }
  if (columns.missed[index]) {
    const over = columns.time_ms[index] - columns.budget_ms[index];
    said.push(`It missed its deadline by ${milliseconds(over)}.`);
  }
  if (columns.drift_tripped[index]) said.push("The world had drifted from what was imagined.");
  const before = index - 1;
  const follows = before >= 0 && columns.recording[before] === columns.recording[index];
  const imagined = follows ? session.given(before) : null;
  if (imagined !== null && session.searched(index)) {
    said.push(
      `The decision before imagined a value of ${value(imagined)}; ` +
        `the state seen now is worth ${value(columns.root_value[index])}.`
    );
  }
  return said.concat(session.faults(index).map((fault) => `Fault: ${fault}.`));
}
