// Curves of runs over their epochs, one line a run, one colour and dash an objective.

const MARGINS = { height: 300, left: 62, right: 12, top: 12, bottom: 44 };
const KINDS = 8;

// One figure for each quantity that the runs have a curve of.
function curveFigures(runs) {
  const quantities = new Map();
  for (const run of runs.filter((one) => one.curve)) {
    const name = `${run.curve.label}${run.curve.percent ? ", %" : ""}`;
    quantities.set(name, [...(quantities.get(name) || []), run]);
  }
  return [...quantities].map(([name, mine]) => curveFigure(name, mine));
}

function curveFigure(name, runs) {
  // As wide as it is shown, so that its letters are neither shrunk nor blown up.
  const box = { ...MARGINS, width: Math.max(260, Math.min(860, window.innerWidth - 60)) };
  const lines = runs.map((run) => ({
    kind: seriesName(run), epochs: run.curve.epochs, values: run.curve.values.map((value) => (run.curve.percent ? 100 * value : value)),
  }));
  const kinds = [...new Set(lines.map((line) => line.kind))];
  const epochs = lines.flatMap((line) => line.epochs);
  const values = lines.flatMap((line) => line.values);
  const x = axis(least(epochs), most(epochs), box.left, box.width - box.right, box.width < 500 ? 4 : 8, true);
  const y = axis(least(values), most(values), box.height - box.bottom, box.top, 5, false);
  const said = curvesInWords(name, lines, kinds);
  const svg = drawn("svg", { viewBox: `0 0 ${box.width} ${box.height}`, role: "img", "aria-label": said, class: "curves" });
  drawAxes(svg, box, x, y, name);
  for (const line of lines) drawLine(svg, line, kinds.indexOf(line.kind) % KINDS, x, y);
  const legend = kinds.map((kind, at) => element("span", { class: "key" }, swatch(at % KINDS), kind));
  return element("figure", { class: "curve" }, svg, element("figcaption", {}, ...legend));
}

function seriesName(run) {
  return run.role === "student" ? run.label || "" : `${run.role} ${run.student}`;
}

function curvesInWords(name, lines, kinds) {
  const told = kinds.map((kind) => {
    const mine = lines.filter((line) => line.kind === kind);
    const ends = mine.map((line) => line.values[line.values.length - 1]);
    const low = least(ends).toPrecision(4);
    const high = most(ends).toPrecision(4);
    const last = most(mine.flatMap((line) => line.epochs));
    return `${kind}, ${mine.length} ${mine.length === 1 ? "run" : "runs"}, ends by epoch ${last} at ${low === high ? low : `${low} to ${high}`}`;
  });
  return `${name} over epochs: ${told.join("; ")}`;
}

const least = (values) => values.reduce((one, other) => Math.min(one, other), Infinity);
const most = (values) => values.reduce((one, other) => Math.max(one, other), -Infinity);

// A linear scale with ticks at 1, 2 or 5 times a power of ten.
function axis(low, high, from, to, wanted, whole) {
  const room = high > low ? 0 : Math.abs(high) * 0.1 || 1;
  const [first, last] = [low - room, high + room];
  const rough = (last - first) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  if (whole) step = Math.max(1, step);
  const begin = whole ? first : Math.floor(first / step) * step;
  const end = whole ? last : Math.ceil(last / step) * step;
  const ticks = [];
  for (let at = Math.ceil(begin / step - 1e-9); at * step <= end + step * 1e-9; at += 1) ticks.push(at * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return { ticks, text: (value) => value.toFixed(digits), place: (value) => from + ((value - begin) / (end - begin)) * (to - from) };
}

function drawAxes(svg, box, x, y, name) {
  const bottom = box.height - box.bottom;
  for (const tick of y.ticks) {
    svg.append(drawn("line", { class: "grid", x1: box.left, x2: box.width - box.right, y1: y.place(tick), y2: y.place(tick) }));
    svg.append(drawn("text", { x: box.left - 8, y: y.place(tick) + 4, "text-anchor": "end" }, y.text(tick)));
  }
  for (const tick of x.ticks) {
    svg.append(drawn("line", { class: "tick", x1: x.place(tick), x2: x.place(tick), y1: bottom, y2: bottom + 5 }));
    svg.append(drawn("text", { x: x.place(tick), y: bottom + 18, "text-anchor": "middle" }, x.text(tick)));
  }
  svg.append(drawn("line", { class: "tick", x1: box.left, x2: box.width - box.right, y1: bottom, y2: bottom }));
  svg.append(drawn("text", { x: (box.left + box.width - box.right) / 2, y: box.height - 6, "text-anchor": "middle" }, "epoch"));
  const middle = (box.top + bottom) / 2;
  svg.append(drawn("text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, name));
}

function drawLine(svg, line, kind, x, y) {
  const points = line.epochs.map((epoch, at) => [x.place(epoch), y.place(line.values[at])].map((place) => place.toFixed(1)));
  svg.append(drawn("polyline", { class: `line c${kind}`, points: points.map((point) => point.join(",")).join(" ") }));
  if (points.length > 30) return;
  for (const [cx, cy] of points) svg.append(drawn("circle", { class: `dot c${kind}`, cx, cy, r: 2.2 }));
}

function swatch(kind) {
  const svg = drawn("svg", { viewBox: "0 0 28 8", width: 28, height: 8, "aria-hidden": "true" });
  svg.append(drawn("line", { class: `line c${kind}`, x1: 0, x2: 28, y1: 4, y2: 4 }));
  return svg;
}
