// The tables of the report: entries open their runs, headings sort, a bar filters.

function enhanceTable(section) {
  section.querySelectorAll("[data-r]").forEach(makeEntry);
  section.querySelectorAll("table").forEach((table) => {
    const body = table.tBodies[0];
    const order = [...body.rows];
    makeSortable([...table.tHead.rows[0].cells], (column, direction) => {
      body.append(...(direction ? sortedRows(order, column, direction) : order));
    });
  });
  const rows = [...section.querySelectorAll("tbody tr")];
  const groups = [...section.querySelectorAll(".group")];
  const own = (row, name) => (row.dataset[name] || "").split("\n").filter(Boolean);
  const values = Object.fromEntries(CHOICES.map((name) => [name, [...new Set(rows.flatMap((row) => own(row, name)))]]));
  const title = section.querySelector("h2").textContent;
  const bar = filterBar(title, values, (matches) => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !matches(row.textContent, (name) => own(row, name));
      shown += row.hidden ? 0 : 1;
    }
    // One that was empty from the start stays: nothing was filtered away from it.
    for (const group of groups) {
      const mine = group.querySelectorAll("tbody tr");
      group.hidden = mine.length > 0 && ![...mine].some((row) => !row.hidden);
    }
    return [shown, rows.length];
  });
  if (rows.length > 1) section.querySelector("h2").after(bar);
}

function sortedRows(order, column, direction) {
  const keys = new Map(order.map((row) => [row, sortKey(row.cells[column])]));
  return [...order].sort((one, other) => compared(keys.get(one), keys.get(other), direction));
}

function sortKey(cell) {
  if (!("v" in cell.dataset)) return cell.textContent;
  return cell.dataset.v === "" ? null : Number(cell.dataset.v);
}

function makeEntry(cell) {
  const count = cell.dataset.r.split(" ").length;
  const button = element("button", { type: "button", class: "entry", "aria-haspopup": "dialog", title: count === 1 ? "1 run" : `${count} runs` });
  button.append(...cell.childNodes);
  cell.append(button);
}

// What an entry is, in words: its row, its column, its block.
function openEntry(button) {
  const cell = button.closest("[data-r]");
  const row = cell.parentElement;
  const group = cell.closest(".group");
  const heads = group.querySelector("thead tr").cells;
  const above = [cell.closest("section.table").querySelector("h2"), group.querySelector("h3")].filter(Boolean).map((one) => one.textContent);
  const said = row.cells[0] === cell ? cell.textContent : `${row.cells[0].textContent}: ${heads[cell.cellIndex].textContent}`;
  const value = row.cells[0] === cell ? null : cell.textContent;
  openDialog(button, said, value, above.join(" · "), cell.dataset.r.split(" ").map(Number));
}
