// The tables of the page: a heading sorts, the filter hides rows, an entry opens its runs.

const SVG = ["svg", "line", "text", "polyline"];

// Text from a run becomes a text node, never markup.
function element(name, attributes = {}, ...children) {
  const made = SVG.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// The runs, as RunDetails.shown in runs.py gives them.
const packed = Uint8Array.from(atob(document.getElementById("data").textContent), (one) => one.charCodeAt(0));
const runs = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
const runsOf = (cell) => cell.dataset.r.split(" ").map((place) => runs[place]);

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

// Numbers stand before texts, and entries without a value last, in both directions.
function sortKey(cell) {
  const value = "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent;
  return { value, kind: value === "" || value === "–" || Number.isNaN(value) ? 2 : Number(typeof value === "string") };
}

function compared(one, other, direction) {
  const ascending = one.kind === 1 ? collator.compare(one.value, other.value) : one.value - other.value || 0;
  return one.kind - other.kind || direction * ascending;
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button", class: "sort" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[head.ariaSort] ?? (head.ariaSort ? null : "ascending");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const keys = new Map(rows.map((row) => [row, sortKey(row.cells[column])]));
      const direction = next === "ascending" ? 1 : -1;
      table.tBodies[0].append(...(next ? rows.toSorted((one, other) => compared(keys.get(one), keys.get(other), direction)) : rows));
    });
  });
}

for (const cell of document.querySelectorAll("[data-r]")) {
  const count = runsOf(cell).length;
  const title = `Show ${count} ${count === 1 ? "run" : "runs"}`;
  const button = element("button", { type: "button", class: "entry", "aria-haspopup": "dialog", title }, ...cell.childNodes);
  button.addEventListener("click", () => openEntry(cell));
  cell.append(button);
}

// A row is filtered by the runs behind its first entry that has any: later ones also rest on those of a baseline. A student trained
// alone is compared beside every teacher of its group.
const chosen = (runs) => [0, 1, 2, 3].map((at) => new Set(runs.map((run) => run.choices[at])));
const groups = [...document.querySelectorAll(".group")].map((group) => {
  const title = group.querySelector("h3")?.textContent ?? "";
  const teachers = chosen([...group.querySelectorAll("[data-r]")].flatMap(runsOf))[1];
  const rows = [...group.querySelectorAll("tbody tr")].map((row) => {
    const choices = chosen([...row.querySelectorAll("[data-r]")].slice(0, 1).flatMap(runsOf));
    if (choices[1].has(null)) choices[1] = teachers;
    return { row, text: `${title} ${row.textContent}`.toLowerCase(), choices };
  });
  return { group, rows };
});

const panel = document.getElementById("filter");
const search = panel.querySelector("input");
const selects = [...panel.querySelectorAll("select")];

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const active = words.length > 0 || selects.some((one) => one.value);
  let left = 0;
  for (const { group, rows } of groups) {
    for (const { row, text, choices } of rows) {
      row.hidden = !(words.every((word) => text.includes(word)) && selects.every(({ value }, at) => !value || choices[at].has(value)));
      left += row.hidden ? 0 : 1;
    }
    group.hidden = rows.length > 0 && rows.every(({ row }) => row.hidden);
  }
  if (active) document.querySelectorAll(".fold").forEach((fold) => { fold.open = true; });
  const all = groups.reduce((sum, { rows }) => sum + rows.length, 0);
  document.getElementById("count").textContent = active ? `${left} of ${all} rows` : "";
}

panel.addEventListener("input", filter);
document.querySelector("nav").addEventListener("click", (event) => { event.currentTarget.closest("details").open = false; });
panel.querySelector("button").addEventListener("click", () => {
  [search, ...selects].forEach((one) => { one.value = ""; });
  filter();
});
