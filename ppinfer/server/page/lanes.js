// Lanes of the stages. A box is a step's work in the colour of its micro-batch; a flat bar is a
// wait, in the colour of what is waited for. The right edge is a little in the past, so that what
// is drawn there has always been told already; where nothing more is told, the picture stands.

const PLAN = -1, INPUT = -2, SEND = -3, IDLE = -4, OTHER = -5;
const NAMES = { [PLAN]: "plan", [INPUT]: "input", [SEND]: "send", [IDLE]: "idle", [OTHER]: "other" };
const WINDOWS = [0.1, 0.2, 0.5, 1, 2, 5, 10];
const KEPT = 12e6; // microseconds
const EDGE = 30e3;

class Lanes {
  constructor() {
    this.stages = [];
    this.words = new Map();
    this.slots = new Set();
    this.offset = null; // of the driver's clock to this one's
    this.delay = 400e3;
    this.gaps = [];
    this.covered = 0;
    this.span = null; // as chosen by hand, else by what fits
    this.pausedAt = null;
    this.drawn = 0;
    this.readColours();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.readColours());
    addEventListener("resize", () => this.draw());
    $("pause").addEventListener("click", () => this.pause(this.pausedAt === null));
    $("closer").addEventListener("click", () => this.zoom(-1));
    $("wider").addEventListener("click", () => this.zoom(1));
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.colours = {
      ...Object.fromEntries(Object.values(NAMES).map((name) => [name, colour(name)])),
      slots: Array.from({ length: 8 }, (_, slot) => colour(`slot-${slot}`)),
      card: colour("card"),
    };
    this.draw();
  }

  colourOf(kind) {
    if (kind >= 0) return this.colours.slots[kind % 8];
    return this.colours[NAMES[kind]];
  }

  // ------------------------------------------------------------ what is told

  take(engine) {
    if (!engine.now) return;
    const here = performance.now() * 1000;
    const offset = engine.now - here;
    // A late event makes the other clock look slow, never fast.
    if (this.offset === null || Math.abs(offset - this.offset) > 5e6) this.restart(offset);
    else this.offset = Math.max(offset, this.offset - 200);
    this.gaps.push(here + this.offset - this.covered);
    if (this.gaps.length > 15) this.gaps.shift();
    if (engine.stages.length !== this.stages.length) this.build(engine.stages);
    for (const [step, words] of Object.entries(engine.steps)) this.words.set(Number(step), words);
    while (this.words.size > 5000) this.words.delete(this.words.keys().next().value);
    let covered = Infinity;
    engine.stages.forEach((stage, index) => {
      covered = Math.min(covered, this.add(this.stages[index].boxes, stage.boxes, engine.now));
      this.describe(this.stages[index], stage);
    });
    if (covered !== Infinity) this.covered = Math.max(this.covered, covered);
    if (reducedMotion.matches && here - this.drawn > 1e6) this.draw();
  }

  restart(offset) {
    this.offset = offset;
    this.covered = here() + offset;
    this.gaps = [];
    for (const stage of this.stages) stage.boxes = [];
  }

  add(boxes, told, now) {
    for (let i = 0; i < told.length; i += 4) {
      const [kind, step, before, length] = told.slice(i, i + 4);
      const start = now - before, last = boxes[boxes.length - 1];
      if (kind >= 0) this.meet(kind);
      if (last && last.kind === kind && last.step === step && start - last.end < 50) {
        last.end = start + length;
      } else {
        boxes.push({ kind, step, start, end: start + length });
      }
    }
    let old = 0;
    while (old < boxes.length && boxes[old].end < now - KEPT) old += 1;
    if (this.pausedAt === null || boxes.length > 50000) boxes.splice(0, old);
    return boxes.length ? boxes[boxes.length - 1].end : Infinity;
  }

  // ------------------------------------------------------------ elements

  build(stages) {
    $("lanes").replaceChildren();
    this.stages = stages.map((stage, index) => {
      const lane = make("div", "lane"), head = make("div", "lane-head");
      const shares = make("span", "shares figure");
      const canvas = make("canvas");
      const layers = `layers ${stage.first_layer}–${stage.last_layer - 1}`;
      head.append(make("strong", "", `Stage ${index}`), make("span", "muted", layers), shares);
      canvas.setAttribute("role", "img");
      canvas.addEventListener("mousemove", (event) => this.point(event, index));
      lane.append(head, canvas);
      $("lanes").append(lane);
      return { boxes: [], canvas, shares, context: canvas.getContext("2d") };
    });
    this.axis = make("div", "axis figure");
    this.axis.setAttribute("aria-hidden", "true");
    $("lanes").append(this.axis);
    this.legend();
  }

  meet(slot) {
    if (this.slots.has(slot)) return;
    this.slots.add(slot);
    this.legend();
  }

  legend() {
    const slots = [...this.slots].sort((a, b) => a - b).slice(0, 8);
    const entries = slots.map((slot) => [slot, `micro-batch ${slotLetter(slot)}`]);
    entries.push([PLAN, "waits for a plan"], [INPUT, "waits for input"], [SEND, "sends"], [OTHER, "other work"], [IDLE, "no request"]);
    $("legend").replaceChildren(...entries.map(([kind, words]) => {
      const item = make("li"), swatch = make("span", kind < 0 ? "swatch wait" : "swatch");
      swatch.style.background = kind >= 0 ? `var(--slot-${kind % 8})` : `var(--${NAMES[kind]})`;
      item.append(swatch, words);
      return item;
    }));
  }

  describe(lane, stage) {
    const shares = stage.shares;
    let words = "";
    if (shares) {
      const waits = ["plan", "input", "send"].filter((cause) => shares[cause] >= 0.005);
      words = [`${percent(shares.busy)} busy`, ...waits.map((cause) => `${cause} ${percent(shares[cause])}`)].join(" · ");
    }
    if (stage.heartbeat_age > SILENT) words = `silent for ${seconds(stage.heartbeat_age)}`;
    setText(lane.shares, words);
    lane.canvas.setAttribute("aria-label", words || "nothing is known yet");
  }

  point(event, index) {
    const lane = this.stages[index];
    const [start, , scale] = this.view(lane.canvas.clientWidth);
    const at = start + event.offsetX / scale;
    const box = lane.boxes.find((one) => one.start <= at && at < one.end);
    lane.canvas.title = box ? this.name(box) : "";
  }

  name(box) {
    const took = seconds((box.end - box.start) / 1e6);
    if (box.kind === IDLE) return `no request, ${took}`;
    if (box.kind === OTHER) return `other work, ${took}`;
    if (box.kind < 0) return `waits: ${NAMES[box.kind]}, ${took}`;
    return `step ${box.step}, micro-batch ${slotLetter(box.kind)}: ${this.words.get(box.step) || ""}, ${took}`;
  }

  // ------------------------------------------------------------ what is shown

  pause(on) {
    this.pausedAt = on ? this.edge() : null;
    $("pause").setAttribute("aria-pressed", String(on));
    setText($("pause"), on ? "Go on" : "Pause");
    this.draw();
  }

  zoom(by) {
    const index = WINDOWS.indexOf(this.window()) + by;
    this.span = WINDOWS[Math.min(Math.max(index, 0), WINDOWS.length - 1)];
    this.draw();
  }

  // Seconds that are shown: about so many that a step is broad enough to be seen.
  window() {
    if (this.span !== null) return this.span;
    const lengths = [];
    for (const { boxes } of this.stages) {
      for (const box of boxes.slice(-60)) if (box.kind >= 0) lengths.push(box.end - box.start);
    }
    if (lengths.length < 8) return this.fitting || 2;
    lengths.sort((a, b) => a - b);
    const wanted = lengths[lengths.length >> 1] * 40 / 1e6;
    const current = this.fitting || 2;
    if (wanted > current * 1.8 || wanted < current / 2.5) {
      this.fitting = WINDOWS.find((one) => one >= wanted && one >= 1) || 10;
    }
    return this.fitting || current;
  }

  edge() {
    const wanted = Math.max(...this.gaps, 100e3) + EDGE;
    this.delay += (wanted - this.delay) * 0.05;
    return Math.min(here() + (this.offset || 0) - this.delay, this.covered);
  }

  view(width) {
    const end = this.pausedAt === null ? this.shownEdge || this.edge() : this.pausedAt;
    const span = this.window() * 1e6;
    return [end - span, end, width / span];
  }

  draw() {
    if (!this.stages.length) return;
    this.drawn = here();
    this.shownEdge = this.edge();
    const shown = this.window();
    setText($("window"), seconds(shown));
    this.axis.replaceChildren(make("span", "", `−${seconds(shown)}`), make("span", "", this.pausedAt === null ? "now" : "paused"));
    for (const lane of this.stages) this.drawLane(lane);
  }

  drawLane({ canvas, context, boxes }) {
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const [start, end, scale] = this.view(width);
    context.font = "600 11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "center";
    for (let i = boxes.length - 1; i >= 0 && boxes[i].end > start; i -= 1) {
      if (boxes[i].start < end) this.drawBox(context, boxes[i], (boxes[i].start - start) * scale, (boxes[i].end - start) * scale, height);
    }
  }

  drawBox(context, box, left, right, height) {
    const wide = right - left, isStep = box.kind >= 0;
    const high = isStep ? height - 8 : box.kind === IDLE ? 2 : 8;
    const gap = wide > 4 ? 1 : 0;
    context.fillStyle = this.colourOf(box.kind);
    context.beginPath();
    context.roundRect(left, (height - high) / 2, Math.max(wide - gap, 0.75), high, wide > 8 ? 2 : 0);
    context.fill();
    if (!isStep || wide < 13) return;
    const letter = slotLetter(box.kind), words = `${letter} ${this.words.get(box.step) || ""}`;
    const label = context.measureText(words).width < wide - 10 ? words : letter;
    context.fillStyle = this.colours.card;
    if (context.measureText(label).width < wide - 4) context.fillText(label, (left + right - gap) / 2, height / 2 + 0.5);
  }

  run() {
    const frame = () => {
      if (this.pausedAt === null && !reducedMotion.matches) this.draw();
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }
}

const here = () => performance.now() * 1000;
