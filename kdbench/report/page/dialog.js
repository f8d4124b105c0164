// The runs behind an entry: curves of all of them, then each with its configuration, log and failure.

const dialog = document.getElementById("dialog");
let opener = null;

function openDialog(button, title, value, where, places) {
  opener = button;
  const runs = places.map(runAt);
  const heading = document.getElementById("dialog-title");
  heading.textContent = title;
  const body = document.getElementById("dialog-body");
  body.replaceChildren(
    element("p", { class: "where" }, ...(value ? [element("b", {}, value), " · "] : []), where),
    ...curveFigures(runs),
    ...(runs.some((run) => run.curve) ? [] : [element("p", { class: "note" }, "There is no curve: no epochs are recorded.")]),
    ...runs.map((run, at) => runDetails(run, at === firstOpen(runs))),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
  heading.focus();
}

// Who opens several runs of which one went wrong wants to see that one.
function firstOpen(runs) {
  return Math.max(0, runs.findIndex((run) => run.failure || run.state === "diverged"));
}

function closeDialog() {
  dialog.close();
}

dialog.addEventListener("close", () => {
  document.getElementById("dialog-body").replaceChildren();
  if (opener) opener.focus();
  opener = null;
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) closeDialog(); });
document.getElementById("dialog-close").addEventListener("click", closeDialog);

// Filled when it is opened.
function runDetails(run, open) {
  const primary = packed.metrics.length ? metricText(run.metrics[0], packed.percent[0]) : "";
  const repeat = run.repeat === null ? "" : `repeat ${run.repeat}`;
  const parts = [
    element("span", { class: "who" }, runTitle(run)),
    ...[repeat, primary].filter(Boolean).map((text) => element("span", {}, text)),
    element("span", { class: `state ${run.state}` }, run.state),
    element("code", {}, run.id),
  ];
  const summary = element("summary", {}, ...parts.flatMap((part) => [part, " "]));
  const box = element("details", { class: "one", open }, summary);
  const fill = () => { if (box.open && box.children.length === 1) box.append(...runSections(run)); };
  box.addEventListener("toggle", fill);
  fill();
  return box;
}

function runSections(run) {
  const metrics = packed.metrics.map((name, at) => [name, metricText(run.metrics[at], packed.percent[at])]).filter(([, text]) => text);
  const identity = [["dataset", run.dataset], ["student", run.student], ["teacher", run.teacher], ["objective", run.label], ["teacher seed", run.teacherSeed]];
  const facts = [...metrics, ...identity.filter(([, value]) => value !== null && value !== ""), ...run.circumstance];
  return [
    run.why ? element("p", { class: "why" }, run.why) : null,
    run.failure && failureSection(run.failure),
    element("dl", { class: "facts" }, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, factText(value))))),
    element("h3", {}, "Configuration"),
    run.config ? tree(run.config) : element("p", { class: "note" }, `There is none here: ${run.noConfig}.`),
    run.failure ? null : element("p", { class: "note" }, "Log lines are kept with a failure only."),
  ].filter(Boolean);
}

function factText(value) {
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(6))) : String(value);
}

function failureSection(failure) {
  const told = [["where", [failure.node, failure.job && `job ${failure.job}`].filter(Boolean).join(", ")], ["at (UTC)", failure.at_utc]];
  const lines = failure.last_lines || [];
  return element("section", { class: "failure", "aria-label": "Failure" },
    element("h3", {}, `Failure: ${failure.class}`),
    element("p", {}, failure.message || ""),
    element("dl", { class: "facts" }, ...told.filter(([, value]) => value).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    ...(failure.traceback ? [element("details", { open: true }, element("summary", {}, "Traceback"), block(failure.traceback, "Traceback"))] : []),
    ...(lines.length ? [element("h4", {}, "Last log lines"), block(lines.join("\n"), "Last log lines")] : []));
}

function block(text, name) {
  return element("pre", { tabindex: "0", role: "region", "aria-label": name }, text.replace(/\n+$/, ""));
}

// Nested lists: a name and its value a line; what holds more can be folded.
function tree(node) {
  const entries = Array.isArray(node) ? node.map((value, at) => [String(at + 1), value]) : Object.entries(node);
  return element("ul", { class: "tree" }, ...entries.map(([name, value]) => branch(name, value)));
}

function branch(name, value) {
  const nested = value !== null && typeof value === "object";
  const plain = Array.isArray(value) && value.every((one) => one === null || typeof one !== "object");
  if (nested && !plain && Object.keys(value).length) {
    return element("li", {}, element("details", { open: true }, element("summary", {}, name), tree(value)));
  }
  const text = nested ? (plain && value.length ? value.map(leaf).join(", ") : "none") : leaf(value);
  return element("li", {}, element("span", { class: "name" }, `${name}:`), " ", element("span", { class: "value" }, text));
}

function leaf(value) {
  return value === null ? "none" : typeof value === "string" ? value || "(empty)" : String(value);
}
