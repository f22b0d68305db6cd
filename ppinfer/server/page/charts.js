// Small charts of the last minutes, drawn anew once a second.

const LONGEST = 300; // seconds
const SHORTEST = 60;

class Chart {
  // `lines` take a sample and give what is drawn, `null` for nothing; `say` gives a value and what follows it.
  constructor(id, lines, say, label) {
    this.lines = lines;
    this.say = say;
    this.label = label;
    this.value = make("div", "value", "–");
    this.svg = makeSvg("svg", { viewBox: "0 0 100 48", preserveAspectRatio: "none", role: "img" });
    this.most = make("span");
    this.since = make("span");
    const range = make("div", "range");
    range.append(this.since, this.most);
    $(id).append(this.value, this.svg, range);
  }

  draw(samples, now) {
    const latest = samples[samples.length - 1];
    const [value, ...units] = this.say(latest, samples);
    const names = units.length > 1 ? ["first", "second"] : [""];
    this.value.replaceChildren(value, ...units.map((unit, index) => make("small", names[index], unit)));
    const span = Math.min(LONGEST, Math.max(SHORTEST, now - samples[0].at));
    const shown = samples.filter((sample) => sample.at >= now - span);
    const values = shown.flatMap((sample) => this.lines.map((line) => line(sample) ?? 0));
    const most = Math.max(...values, 0);
    const x = (sample) => 100 - (now - sample.at) / span * 100;
    const y = (amount) => 47 - amount / (most || 1) * 45;
    const base = makeSvg("line", { x1: 0, x2: 100, y1: 47.5, y2: 47.5 });
    const drawn = this.lines.flatMap((line, index) => this.paths(shown, line, index, x, y));
    this.svg.replaceChildren(base, ...drawn);
    setText(this.most, most ? `max ${this.label(most)}` : "");
    setText(this.since, `last ${span < 120 ? `${Math.round(span)} s` : `${Math.round(span / 60)} min`}`);
    this.svg.setAttribute("aria-label", `${value} ${units.join(", ")}; ${this.most.textContent}, ${this.since.textContent}`);
  }

  // A line breaks where nobody watched; what not every sample has is drawn as dots.
  paths(samples, line, index, x, y) {
    let path = "", area = "", open = null, before = null;
    if (samples.some((sample) => line(sample) === null)) {
      const known = samples.filter((sample) => line(sample) !== null);
      const dots = known.map((sample) => `M${x(sample).toFixed(2)} ${y(line(sample)).toFixed(2)}h0`);
      return [makeSvg("path", { d: dots.join(""), class: "dots" })];
    }
    for (const sample of samples) {
      const isGap = before !== null && sample.at - before > 5;
      before = sample.at;
      if (isGap && open) [area, open] = [area + close(open, x), null];
      const point = `${x(sample).toFixed(2)} ${y(line(sample)).toFixed(2)}`;
      path += `${open ? "L" : "M"}${point}`;
      area += open ? `L${point}` : `M${x(sample).toFixed(2)} 47L${point}`;
      open = sample;
    }
    if (open) area += close(open, x);
    const stroke = makeSvg("path", { d: path, class: index ? "second" : "" });
    return index ? [stroke] : [makeSvg("path", { d: area, class: "area" }), stroke];
  }
}

const close = (sample, x) => `L${x(sample).toFixed(2)} 47Z`;

class Charts {
  constructor() {
    this.samples = [];
    this.blocks = 0;
    this.all = [
      new Chart("chart-tokens", [(s) => s.tokens], (s) => [number(s.tokens), ""], number),
      new Chart("chart-first", [(s) => s.first], (_, all) => {
        const known = all.filter((s) => s.first !== null).pop();
        return known ? seconds(known.first).split(" ") : ["–", ""];
      }, seconds),
      new Chart("chart-queue", [(s) => s.running, (s) => s.waiting],
        (s) => [String(s.running), "running", `${s.waiting} waiting`], (n) => String(n)),
      new Chart("chart-kv", [(s) => s.kv], (s) => [finePercent(s.kv), `of ${whole.format(this.blocks)} blocks`], finePercent),
    ];
  }

  take(told, engine) {
    this.blocks = engine.kv_blocks;
    for (const [at, tokens, first, waiting, running, kv] of told) {
      const last = this.samples[this.samples.length - 1];
      if (!last || at > last.at) this.samples.push({ at, tokens, first, waiting, running, kv });
    }
    if (!told.length) return;
    const now = this.samples[this.samples.length - 1].at;
    this.samples = this.samples.filter((sample) => sample.at > now - LONGEST - 5);
    for (const chart of this.all) chart.draw(this.samples, now);
  }
}
