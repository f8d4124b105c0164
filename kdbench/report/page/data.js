// The runs of the page, unpacked one by one as they are asked for: payload.py says how they are packed.

const packed = JSON.parse(document.getElementById("data").textContent);
const shared = packed.shared;

function runAt(place) {
  const [id, words, repeat, teacherSeed, metrics, circumstance, config, noConfig, curve, failure] = packed.runs[place];
  const run = { place, id, repeat, teacherSeed, metrics, noConfig: shared[noConfig] };
  packed.words.forEach((name, at) => { run[name] = shared[words[at]]; });
  run.circumstance = packed.circumstance
    .map(([name, pooled], at) => [name, circumstance[at] !== null && pooled ? shared[circumstance[at]] : circumstance[at]])
    .filter(([, value]) => value !== null);
  run.config = config && Object.fromEntries(packed.config.map((name, at) => [name, config[at]])
    .filter(([, at]) => at !== null).map(([name, at]) => [name, shared[at]]));
  run.curve = curve && unpackedCurve(curve);
  run.failure = failure === null ? null : shared[failure];
  return run;
}

function unpackedCurve([meta, epochs, decimals, steps]) {
  const [label, percent] = shared[meta];
  const spaced = shared[epochs];
  const scale = 10 ** decimals;
  let sum = 0;
  return {
    label, percent,
    epochs: Array.isArray(spaced) ? spaced : Array.from({ length: spaced.count }, (_, at) => spaced.first + at * spaced.step),
    values: steps.map((step) => { sum += step; return sum / scale; }),
  };
}

// As `_metric` in page.py prints it.
function metricText(value, percent) {
  if (value === null) return "";
  return percent ? `${(100 * value).toFixed(2)} %` : String(Number(value.toPrecision(5)));
}

function runTitle(run) {
  const parts = [run.role === "student" ? run.label : run.role, run.student, run.teacher && `teacher ${run.teacher}`];
  return parts.filter(Boolean).join(" · ");
}
