// What the page can do beside being read.

function themeSwitch() {
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const button = element("button", { type: "button", id: "theme" });
  const told = () => { button.textContent = dark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    told();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", told);
  told();
  return button;
}

document.querySelector("header").append(themeSwitch());
if (packed.runs.length) {
  const hint = "Press an entry to see its runs; press a heading to sort: within each block, once up, once down, once back.";
  document.querySelector("nav").after(element("p", { class: "hint use" }, hint));
}
document.querySelectorAll("section.table").forEach(enhanceTable);
const list = document.getElementById("all-runs");
if (list) enhanceRuns(list);
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.entry");
  if (!button) return;
  if (button.dataset.place === undefined) return openEntry(button);
  const run = runAt(Number(button.dataset.place));
  return openDialog(button, `Run ${run.id}`, null, [run.dataset, runTitle(run)].filter(Boolean).join(" · "), [run.place]);
});
