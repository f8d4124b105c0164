// Curves of runs over their epochs: one figure a quantity, one line a run, one colour and dash a loss.

const LEFT = 62, RIGHT = 12, TOP = 12, BOTTOM = 256, HEIGHT = 300;
const KINDS = 6;
const ends = (values) => values.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, -Infinity]);

function curveFigure(label, shown) {
  // As wide as it is on the screen, so that its text keeps its size.
  const width = Math.max(260, Math.min(860, window.innerWidth - 60));
  const kinds = [...new Set(shown.map((run) => run.series))];
  const x = axis(shown.flatMap((run) => run.curve.epochs), LEFT, width - RIGHT, width < 500 ? 4 : 8, 1);
  const y = axis(shown.flatMap((run) => run.curve.values), BOTTOM, TOP, 5, 0);
  const words = inWords(label, shown, kinds);
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": words, class: "curves" });
  const text = (text, [x, y], anchor, more = {}) => svg.append(element("text", { x, y, "text-anchor": anchor, ...more }, text));
  const line = (kind, x1, y1, x2, y2) => svg.append(element("line", { class: kind, x1, y1, x2, y2 }));
  for (const tick of y.ticks) {
    line("grid", LEFT, tick.place, width - RIGHT, tick.place);
    text(tick.text, [LEFT - 8, tick.place + 4], "end");
  }
  for (const tick of x.ticks) {
    line("tick", tick.place, BOTTOM, tick.place, BOTTOM + 5);
    text(tick.text, [tick.place, BOTTOM + 18], "middle");
  }
  line("tick", LEFT, BOTTOM, width - RIGHT, BOTTOM);
  text("epoch", [(LEFT + width - RIGHT) / 2, HEIGHT - 6], "middle");
  text(label, [14, (TOP + BOTTOM) / 2], "middle", { transform: `rotate(-90 14 ${(TOP + BOTTOM) / 2})` });
  for (const { series, curve } of shown) {
    const points = curve.epochs.map((epoch, at) => `${x.place(epoch).toFixed(1)},${y.place(curve.values[at]).toFixed(1)}`);
    // A run of one epoch is a dot.
    if (points.length === 1) points.push(points[0]);
    svg.append(element("polyline", { class: `line c${kinds.indexOf(series) % KINDS}`, points: points.join(" ") }));
  }
  const sample = (at) => element("svg", { viewBox: "0 0 28 8", width: 28, height: 8, "aria-hidden": "true" },
    element("line", { class: `line c${at % KINDS}`, x1: 0, x2: 28, y1: 4, y2: 4 }));
  const legend = kinds.map((kind, at) => element("span", { class: "key" }, sample(at), kind));
  return element("figure", { class: "curve" }, svg, element("figcaption", {}, ...legend));
}

function inWords(label, shown, kinds) {
  const sentences = kinds.map((kind) => {
    const mine = shown.filter((run) => run.series === kind);
    const [low, high] = ends(mine.map((run) => run.curve.values.at(-1))).map((value) => value.toPrecision(4));
    const last = ends(mine.flatMap((run) => run.curve.epochs))[1];
    return `${kind}, ${mine.length} ${mine.length === 1 ? "run" : "runs"}, at epoch ${last}: ${low === high ? low : `${low} to ${high}`}`;
  });
  return `${label} over epochs. ${sentences.join("; ")}`;
}

// A linear scale with ticks at 1, 2 or 5 times a power of ten, at least `least` apart.
function axis(values, from, to, wanted, least) {
  const [low, high] = ends(values);
  const room = high > low ? 0 : Math.abs(high) * 0.1 || 1;
  const rough = (high - low + 2 * room) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max([1, 2, 5, 10].find((factor) => factor * power >= rough) * power, least);
  const unit = least ? 1 : step;
  const [begin, end] = [Math.floor((low - room) / unit) * unit, Math.ceil((high + room) / unit) * unit];
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const place = (value) => from + ((value - begin) / (end - begin)) * (to - from);
  const [first, last] = [Math.ceil(begin / step - 1e-9), Math.floor(end / step + 1e-9)];
  const ticks = Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
  return { place, ticks: ticks.map((tick) => ({ place: place(tick), text: tick.toFixed(digits).replace("-", "−") })) };
}
