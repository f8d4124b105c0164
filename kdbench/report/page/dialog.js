// The runs behind an entry: the curves of all of them, then each with its facts, configuration, failure and log.

const dialog = document.getElementById("dialog");

function openEntry(cell) {
  const head = cell.closest("table").tHead.rows[0].cells[cell.cellIndex].textContent;
  const above = [cell.closest(".table").querySelector("h2"), cell.closest(".group").querySelector("h3")];
  const where = above.filter(Boolean).map((one) => one.textContent).join(" · ");
  const first = cell.cellIndex === 0;
  const shown = runsOf(cell);
  const heading = document.getElementById("dialog-title");
  heading.textContent = first ? cell.textContent : `${cell.parentElement.cells[0].textContent}: ${head}`;
  const figures = Map.groupBy(shown.filter((run) => run.curve), (run) => run.curve.label);
  // Of several runs, the first that went wrong is open.
  const open = Math.max(0, shown.findIndex((run) => run.failure || run.state === "diverged"));
  document.getElementById("dialog-body").replaceChildren(
    note(first ? where : `${cell.textContent} · ${where}`),
    ...[...figures].map(([label, mine]) => curveFigure(label, mine)),
    figures.size ? "" : note("There is no curve: no epochs are recorded."),
    ...shown.map((run, at) => runBox(run, at === open)),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
  heading.focus();
}

const note = (text) => element("p", { class: "note" }, text);

function runBox(run, open) {
  const parts = [["who", run.title], ...run.brief.map((text) => ["", text]), [`state ${run.state}`, run.state], ["id", run.id]];
  return element("details", { class: "one", ...(open && { open: "" }) },
    element("summary", {}, ...parts.flatMap(([kind, text]) => [element("span", { class: kind }, text), " "])),
    run.why && element("p", { class: "why" }, run.why),
    run.failure ? failureSection(run.failure) : "",
    facts(run.facts),
    element("h3", {}, "Configuration"),
    typeof run.config === "string" ? note(`Not available: ${run.config}.`) : text("Configuration", JSON.stringify(run.config, null, 2)),
    run.failure ? "" : note("Log lines are kept only for failed runs."));
}

function facts(pairs) {
  return element("dl", {}, ...pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function failureSection(failure) {
  const log = (failure.last_lines ?? []).join("\n");
  return element("section", { class: "failure", "aria-label": "Failure" },
    element("h3", {}, `Failure: ${failure.class}`),
    element("p", {}, failure.message ?? ""),
    facts([["host", failure.node], ["job", failure.job], ["time (UTC)", failure.at_utc]].filter(([, value]) => value)),
    ...[["Traceback", failure.traceback], ["Last log lines", log]].filter(([, value]) => value)
      .flatMap(([name, value]) => [element("h4", {}, name), text(name, value)]));
}

function text(name, value) {
  return element("pre", { tabindex: "0", role: "region", "aria-label": name }, value.trimEnd());
}

dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // outside its content
dialog.querySelector("button").addEventListener("click", () => dialog.close());
panel.hidden = false;
