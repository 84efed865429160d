// What the page holds of a session: columns of numbers at once, the rest block by block on demand.
// The explorer begins while the browser still reads the file; what it needs is waited for.

const KEPT_BLOCKS = 24;
const LOOK_AGAIN_MS = 20;

export const STATUS = { OK: 0, DEADLINE: 1, SKIPPED: 2, POLICY: 3, HOLD: 4 };
export const SOURCES = ["search", "blend", "policy", "hold"];

// Whether an element of data has been read to its end: something follows it.
function whole(id) {
  const found = document.getElementById(id);
  return document.readyState !== "loading" || Boolean(found && found.nextSibling);
}

export async function arrived(id) {
  while (!whole(id)) await new Promise((done) => setTimeout(done, LOOK_AGAIN_MS));
}

function parse(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

function bytes(base64) {
  const text = atob(base64);
  const array = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) array[i] = text.charCodeAt(i);
  return array;
}

async function inflate(base64) {
  const packed = new Blob([bytes(base64)]).stream();
  return new Response(packed.pipeThrough(new DecompressionStream("deflate"))).json();
}

// The newest few results of a function of one number.
function remembering(make) {
  const kept = new Map();
  return (key) => {
    if (!kept.has(key)) {
      kept.set(key, make(key));
      if (kept.size > KEPT_BLOCKS) kept.delete(kept.keys().next().value);
    }
    return kept.get(key);
  };
}

export class Session {
  constructor() {
    const index = parse("session-index");
    this.recordings = index.recordings;
    this.count = index.count;
    this.columns = index.columns;
    this.texts = index.texts;
    this.blockSize = index.block;
    const text = (name, block) =>
      document.getElementById(`session-${name}-${block}`).textContent;
    this.detailBlock = remembering(async (block) => {
      await arrived(`session-details-${block}`);
      return inflate(text("details", block));
    });
    this.pictureBlock = remembering((block) => text("pictures", block).split("\n"));
    // Recordings follow one another on the timeline, with a gap that can be seen.
    const { time, recording } = this.columns;
    const gap = Math.max(0.4, (this.recordings.reduce((sum, r) => sum + r.duration, 0) || 1) / 200);
    let start = 0;
    this.starts = this.recordings.map((one) => {
      const own = start;
      start += one.duration + gap;
      return own;
    });
    this.place = time.map((seconds, i) => this.starts[recording[i]] + seconds);
  }

  recordingOf(index) {
    return this.recordings[this.columns.recording[index]];
  }

  // Everything that the decision says about itself, its candidates and its tree.
  async details(index) {
    const number = Math.floor(index / this.blockSize);
    const block = await this.detailBlock(number);
    if (this.columns.picture[index]) await arrived(`session-pictures-${number}`);
    return block[index % this.blockSize];
  }

  // The picture of the moment as a data URI; null where there is none, or it is not read yet.
  picture(index) {
    const block = Math.floor(index / this.blockSize);
    if (!this.columns.picture[index] || !whole(`session-pictures-${block}`)) return null;
    const line = this.pictureBlock(block)[index % this.blockSize];
    return `data:image/jpeg;base64,${line}`;
  }

  faults(index) {
    return this.columns.faults[index].map((number) => this.texts[number]);
  }

  reason(index) {
    return this.texts[this.columns.reason[index]];
  }

  source(index) {
    return SOURCES[this.columns.source[index]];
  }

  searched(index) {
    return this.columns.simulations[index] > 0;
  }

  fellBack(index) {
    return this.columns.status[index] >= STATUS.POLICY;
  }

  // Value of what the arm was given: the winner's where the search deviated, else the policy's own.
  given(index) {
    const { deviated, chosen_value: chosen, policy_value: own } = this.columns;
    if (!this.searched(index)) return null;
    return deviated[index] ? chosen[index] : own[index];
  }
}

export const FILTERS = {
  deviated: { label: "deviated", key: "d", test: (s, i) => Boolean(s.columns.deviated[i]) },
  missed: { label: "missed deadline", key: "m", test: (s, i) => Boolean(s.columns.missed[i]) },
  fell: { label: "fell back", key: "f", test: (s, i) => s.fellBack(i) },
};
