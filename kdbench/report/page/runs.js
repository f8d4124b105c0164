// The list of all runs: rows are made as far as somebody looks.

const STEP = 100;

function runColumns() {
  const runs = packed.runs;
  const word = (name) => (run) => shared[run[1][packed.words.indexOf(name)]];
  const columns = [
    { title: "run", value: (run) => run[0] },
    { title: "role", value: word("role") },
    { title: "dataset", value: word("dataset") },
    { title: "student", value: word("student") },
    { title: "teacher", value: word("teacher") },
    { title: "objective", value: word("label") },
    { title: "repeat", value: (run) => run[2], numeric: true },
    { title: "teacher seed", value: (run) => run[3], numeric: true },
    { title: "state", value: word("state") },
    ...packed.metrics.map((name, at) => ({
      title: name, value: (run) => run[4][at], numeric: true, text: (value) => metricText(value, packed.percent[at]),
    })),
    { title: "why", value: word("why"), wide: true },
  ];
  const empty = (value) => value === null || value === "";
  return columns.filter((column) => runs.some((run) => !empty(column.value(run))));
}

function enhanceRuns(section) {
  const columns = runColumns();
  const heads = columns.map((column) => element("th", { scope: "col", class: column.numeric ? "n" : null }, column.title));
  const body = element("tbody");
  const table = element("table", { "aria-labelledby": "runs", class: "list" }, element("thead", {}, element("tr", {}, ...heads)), body);
  const more = element("button", { type: "button", class: "more" });
  const all = packed.runs.map((_, place) => place);
  let order = all;
  let kept = all;
  let shown = 0;

  const extend = () => {
    body.append(...kept.slice(shown, shown + STEP).map((place) => runRow(place, columns)));
    shown = Math.min(shown + STEP, kept.length);
    more.hidden = shown === kept.length;
    more.textContent = `Show ${Math.min(STEP, kept.length - shown)} more (${shown} of ${kept.length} shown)`;
  };
  const restart = () => { body.replaceChildren(); shown = 0; extend(); };

  const texts = packed.runs.map((run) => columns.map((column) => printed(column, run)).join(" "));
  const names = { student: "student", teacher: "teacher", objective: "label", state: "state" };
  const own = (place) => (name) => [shared[packed.runs[place][1][packed.words.indexOf(names[name])]]];
  const values = Object.fromEntries(CHOICES.map((name) => [name, [...new Set(all.flatMap((place) => own(place)(name)).filter(Boolean))]]));
  let matching = () => true;
  const filter = () => { kept = order.filter((place) => matching(texts[place], own(place))); restart(); };

  makeSortable(heads, (column, direction) => {
    const value = (place) => columns[column].value(packed.runs[place]);
    order = direction ? [...all].sort((one, other) => compared(value(one), value(other), direction)) : all;
    filter();
  });
  const bar = filterBar("all runs", values, (matches) => { matching = matches; filter(); return [kept.length, all.length]; });
  more.addEventListener("click", () => {
    const first = shown;
    extend();
    body.rows[first].querySelector("button").focus();
  });
  const box = element("div", { class: "scroll tall", role: "region", tabindex: "0", "aria-labelledby": "runs" }, table, more);
  section.append(bar, box);
}

function printed(column, run) {
  const value = column.value(run);
  if (value === null) return "";
  return column.text ? column.text(value) : String(value);
}

function runRow(place, columns) {
  const run = packed.runs[place];
  return element("tr", {}, ...columns.map((column, at) => {
    const text = printed(column, run);
    if (at === 0) {
      const button = element("button", { type: "button", class: "entry run", "aria-haspopup": "dialog", "data-place": place }, text);
      return element("th", { scope: "row" }, button);
    }
    const kind = [column.numeric && "n", column.wide && "wide", column.title === "state" && `state ${text}`].filter(Boolean).join(" ");
    return element("td", { class: kind || null }, text);
  }));
}
