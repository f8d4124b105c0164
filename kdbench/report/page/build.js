// Elements and texts. Whatever comes from a run becomes a text node, never markup.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function drawn(name, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

// What has no value stands last in both directions.
function compared(one, other, direction) {
  const empty = (value) => value === null || value === "";
  if (empty(one) || empty(other)) return Number(empty(one)) - Number(empty(other));
  if (typeof one === "number" && typeof other === "number") return direction * (one - other || 0);
  if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
  return direction * collator.compare(one, other);
}

// Puts a button into each heading. `sort(column, direction)` is called with 1, -1, or 0 for the order of the report.
function makeSortable(heads, sort) {
  heads.forEach((head, column) => {
    const button = element("button", { type: "button", class: "sort" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { none: 1, ascending: -1, descending: 0 }[head.getAttribute("aria-sort") || "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next === 1 ? "ascending" : "descending");
      sort(column, next);
    });
  });
}

const CHOICES = ["student", "teacher", "objective", "state"];

// A bar with a text filter and a choice for whatever differs. `apply(matches)` hides rows and returns [shown, all];
// `matches(text, values)` says whether a row stays, where values(name) lists what it can be chosen by.
function filterBar(title, values, apply) {
  const text = element("input", { type: "search", autocomplete: "off", spellcheck: "false" });
  const status = element("p", { role: "status", class: "count" });
  const selects = CHOICES.filter((name) => values[name].length > 1).map((name) => [name, element("select", {},
    element("option", { value: "" }, "all"), ...values[name].map((value) => element("option", { value }, value)))]);
  const reset = element("button", { type: "button" }, "Clear");
  const bar = element("div", { class: "filter", role: "search", "aria-label": `Filter ${title}` },
    element("label", {}, "Filter ", text),
    ...selects.map(([name, select]) => element("label", {}, `${name} `, select)),
    reset, status, element("p", { class: "hint" }, "Filtering hides rows; it changes no number."));
  const update = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = selects.filter(([, select]) => select.value !== "").map(([name, select]) => [name, select.value]);
    const [shown, all] = apply((whole, own) => words.every((word) => whole.toLowerCase().includes(word))
      && chosen.every(([name, value]) => own(name).includes(value)));
    status.textContent = shown === all ? `${all} rows` : `${shown} of ${all} rows left`;
  };
  text.addEventListener("input", update);
  selects.forEach(([, select]) => select.addEventListener("change", update));
  reset.addEventListener("click", () => {
    text.value = "";
    selects.forEach(([, select]) => { select.value = ""; });
    update();
    text.focus();
  });
  update();
  return bar;
}
