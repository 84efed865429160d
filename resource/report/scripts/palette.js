// Colours that readers with any colour vision tell apart: Okabe and Ito's for kinds, cividis for
// values. Every kind has a shape, a dash or a height of its own as well.

const CIVIDIS = [
  [0, 34, 78], [43, 67, 108], [87, 92, 109], [125, 124, 120], [166, 157, 117], [211, 193, 100],
  [254, 232, 56],
];

export const SOURCE_LOOK = {
  search: { colour: "--chosen", height: 1, label: "search" },
  blend: { colour: "--blend", height: 0.78, label: "search, blended with the policy" },
  policy: { colour: "--policy", height: 0.5, label: "policy's own" },
  hold: { colour: "--ink", height: 0.24, label: "hold" },
};

// The colour at a place in [0, 1]: dark blue is low, yellow is high; grey when unknown.
export function valueColour(place) {
  if (place === null || !Number.isFinite(place)) return "#b0b4b8";
  const scaled = Math.min(Math.max(place, 0), 1) * (CIVIDIS.length - 1);
  const lower = Math.min(Math.floor(scaled), CIVIDIS.length - 2);
  const part = scaled - lower;
  const channel = (c) => Math.round(CIVIDIS[lower][c] * (1 - part) + CIVIDIS[lower + 1][c] * part);
  return `rgb(${channel(0)},${channel(1)},${channel(2)})`;
}

export function gradient() {
  return `linear-gradient(90deg, ${CIVIDIS.map((c) => `rgb(${c.join(",")})`).join(", ")})`;
}

// A custom property of the style sheet, as the theme of the moment has it.
export function theme(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export function onThemeChange(action) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", action);
}
