"""The page in a real browser: it sorts, filters, opens runs by mouse and by keyboard, and asks for nothing."""

from __future__ import annotations

import time

import numpy as np
import pytest

from kdbench.report.document import Document
from kdbench.report.page.page import page
from kdbench.report.page.runs import Curve, RunDetails
from kdbench.report.table import Column, Entry, Group, Table

pytestmark = pytest.mark.browser

FIRST_PAINT_S = 3.0
AA = 4.5
TAB, ENTER, ESCAPE = "\ue004", "\ue007", "\ue00c"
EVIL = "<img src=x onerror=alert(1)>"

PAINTED = """
new PerformanceObserver((list) => arguments[0](list.getEntries().find((one) => one.name === "first-contentful-paint").startTime))
  .observe({type: "paint", buffered: true});
"""

CONTRASTS = """
const channel = (value) => { const c = value / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const light = (rgb) => 0.2126 * channel(rgb[0]) + 0.7152 * channel(rgb[1]) + 0.0722 * channel(rgb[2]);
const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const ground = (node) => {
  for (let at = node; at; at = at.parentElement) {
    const rgb = numbers(getComputedStyle(at).backgroundColor);
    if (rgb.length === 3 || rgb[3] > 0) return rgb;
  }
  return [255, 255, 255];
};
const seen = (node) => node.checkVisibility() && !node.closest(".heard, .skip, .figures svg")
  && [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
return [...document.body.querySelectorAll("*")].filter(seen).map((node) => {
  const style = getComputedStyle(node);
  const [one, other] = [light(numbers(node.closest("svg") ? style.fill : style.color)), light(ground(node))];
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  return [ratio, `${node.tagName}.${node.getAttribute("class")}: ${node.textContent.slice(0, 30)}`];
});
"""


def test_a_heading_sorts_numbers_as_numbers_up_down_and_back(visit, html):
    visit.open(html)
    assert visit.column(3) == ["–", "<0.001", "10", "9"]
    heading = visit.all("section.table thead th")[3]
    button = heading.find_element("css selector", "button")
    button.click()
    assert visit.column(3) == ["<0.001", "9", "10", "–"] and heading.get_attribute("aria-sort") == "ascending"
    button.click()
    assert visit.column(3) == ["10", "9", "<0.001", "–"] and heading.get_attribute("aria-sort") == "descending"
    button.click()
    assert visit.column(3) == ["–", "<0.001", "10", "9"] and heading.get_attribute("aria-sort") is None
    assert visit.column(3, table=1) == ["–", "<0.001", "10", "9"]


def test_text_sorts_as_text_and_only_one_column_is_sorted(visit, html):
    visit.open(html)
    first, second = visit.all("section.table thead th button")[:2]
    second.click()
    first.click()
    assert [text.removesuffix(" (best)") for text in visit.column(0)] == [EVIL, "cc (taylor)", "ce", "kd"]
    assert len(visit.all("[aria-sort]")) == 1


def test_filters_hide_rows_say_how_many_are_left_and_change_no_number(visit, html):
    visit.open(html)
    before = visit.column(1)
    bar = visit.one("section.table .filter")
    status = bar.find_element("css selector", "[role=status]")
    assert status.text == "8 rows" and "changes no number" in bar.text
    bar.find_element("css selector", "input").send_keys("KD")
    assert visit.column(0) == ["kd"] and visit.column(1) == [before[1]] and status.text == "2 of 8 rows left"
    choose(bar, "student", "tiny")
    assert status.text == "1 of 8 rows left" and visit.column(0) == [] and visit.column(0, table=1) == ["kd"]
    assert [group.is_displayed() for group in visit.all("section.group")] == [False, True]
    bar.find_element("css selector", "button").click()
    assert status.text == "8 rows" and visit.column(1) == before
    choose(bar, "state", "failed")
    assert visit.column(0) == ["cc (taylor)"]
    choose(bar, "state", "")
    choose(bar, "objective", EVIL)
    assert visit.column(0) == [EVIL] and not visit.all("select[name=teacher]")


def choose(bar, name, value):
    for label in bar.find_elements("css selector", "label"):
        if label.text.startswith(name):
            script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change', {bubbles: true}))"
            label.parent.execute_script(script, label.find_element("css selector", "select"), value)
            return
    raise AssertionError(f"no choice of {name}")


def test_an_entry_opens_its_runs_by_mouse_and_escape_leads_back(visit, html):
    visit.open(html)
    entry = next(one for one in visit.all("section.table button.entry") if one.text == "cc (taylor)")
    entry.click()
    dialog = visit.one("#dialog")
    assert dialog.is_displayed() and visit.one("#dialog-title").text == "cc (taylor)"
    assert "Accuracies · digits · small" in dialog.text
    failed, other = dialog.find_elements("css selector", "details.one")
    assert failed.get_attribute("open") and not other.get_attribute("open")
    for text in (
        "Failure: raised",
        "ValueError: no </script> here",
        "epoch 1\nepoch 2",
        "milestones: 1, 2",
        "loss: cc (taylor)",
        "train_s",
    ):
        assert text in failed.text
    assert len(dialog.find_elements("css selector", "svg.curves polyline")) == 1
    other.find_element("css selector", "summary").click()
    assert "weight: 1" in other.text and "Log lines are kept with a failure only." in other.text
    visit.press(ESCAPE)
    assert not dialog.is_displayed() and visit.focused() == entry


def test_an_entry_opens_with_the_keyboard_alone(visit, html):
    visit.open(html)
    for _ in range(60):
        visit.press(TAB)
        if visit.focused().text.startswith("72.50"):
            break
    entry = visit.focused()
    assert entry.text.startswith("72.50 ± 0.50") and visit.run("return getComputedStyle(arguments[0]).outlineStyle", entry) == "solid"
    visit.press(ENTER)
    dialog = visit.one("#dialog")
    assert dialog.is_displayed() and visit.one("#dialog-title").text == "kd: top-1, %"
    assert visit.focused() == visit.one("#dialog-title")
    curves = dialog.find_element("css selector", "svg.curves")
    assert curves.get_attribute("aria-label") == "test top-1, % over epochs: kd, 2 runs, ends by epoch 3 at 72.00 to 73.00"
    assert [text.text for text in curves.find_elements("css selector", "text")][-2:] == ["epoch", "test top-1, %"]
    visit.press(TAB, TAB, TAB)  # past Close and the first run, which is open, to its folded configuration
    while visit.focused().find_elements("xpath", "./parent::details[@class='one']") == []:
        visit.press(TAB)
    visit.press(ENTER)
    assert len(dialog.find_elements("css selector", "details.one[open]")) == 2
    visit.press(ESCAPE)
    assert not dialog.is_displayed() and visit.focused() == entry


def test_the_close_button_and_a_press_beside_the_dialog_lead_back_too(visit, html):
    visit.open(html)
    entry = visit.all("section.table button.entry")[0]
    for close in ("document.getElementById('dialog-close').click()", "document.getElementById('dialog').click()"):
        entry.click()
        assert visit.one("#dialog").is_displayed()
        visit.run(close)
        assert not visit.one("#dialog").is_displayed() and visit.focused() == entry


def test_the_list_of_runs_sorts_filters_and_opens(visit, html):
    visit.open(html)
    box = visit.one("#all-runs")
    assert len(box.find_elements("css selector", "tbody tr")) == 16
    choose(box.find_element("css selector", ".filter"), "state", "failed")
    assert box.find_element("css selector", "[role=status]").text == "2 of 16 rows left"
    run = box.find_element("css selector", "tbody button")
    run.click()
    assert visit.one("#dialog-title").text == f"Run {run.text}" and "Failure: raised" in visit.one("#dialog").text
    assert "There is no curve" in visit.one("#dialog").text
    visit.press(ESCAPE)
    choose(box.find_element("css selector", ".filter"), "state", "")
    heading = next(one for one in box.find_elements("css selector", "th button") if one.text.startswith("top1_last"))
    heading.click()
    heading.click()
    script = "return [...document.querySelectorAll('#all-runs tbody tr')].map(row => row.querySelectorAll('.n')[2].textContent)"
    values = visit.run(script)
    assert values[0] == "73.00 %" and values[-2:] == ["", ""] and values[:14] == sorted(values[:14], reverse=True)


def test_the_switch_changes_the_theme_whichever_the_reader_prefers(visit, html):
    ground = "return getComputedStyle(document.body).backgroundColor"
    for dark in (False, True):
        visit.open(html, dark=dark)
        first = visit.run(ground)
        assert (first == "rgb(255, 255, 255)") is not dark
        switch = visit.one("#theme")
        assert switch.text == ("Light theme" if dark else "Dark theme")
        switch.click()
        assert visit.run(ground) != first and switch.text == ("Dark theme" if dark else "Light theme")
        switch.click()
        assert visit.run(ground) == first
        assert visit.run("return [document.cookie, localStorage.length]") == ["", 0]


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_told_from_its_ground(visit, html, dark):
    visit.open(html, dark=dark)
    pale = [one for one in visit.run(CONTRASTS) if one[0] < AA]
    next(one for one in visit.all("section.table button.entry") if one.text == "cc (taylor)").click()
    found = visit.run(CONTRASTS)
    assert len(found) > 100 and pale + [one for one in found if one[0] < AA] == []


def test_whatever_can_be_pressed_or_seen_has_a_name(visit, html):
    visit.open(html)
    visit.all("section.table button.entry")[0].click()
    nodes = visit.command("Accessibility.getFullAXTree")["nodes"]
    visit.press(ESCAPE)
    nodes += visit.command("Accessibility.getFullAXTree")["nodes"]
    roles = (
        "button",
        "link",
        "combobox",
        "searchbox",
        "textbox",
        "table",
        "region",
        "dialog",
        "image",
        "img",
        "columnheader",
        "navigation",
    )
    kept = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert {"button", "combobox", "searchbox", "table", "dialog"} <= {node["role"]["value"] for node in kept}
    assert [node["role"]["value"] for node in kept if not node.get("name", {}).get("value")] == []


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_itself_never_scrolls_sideways(visit, html, width):
    visit.open(html, width=width)
    wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    whole, shown = visit.run(wide)
    assert whole <= shown
    visit.all("section.table button.entry")[8].click()
    whole, shown = visit.run("const one = document.getElementById('dialog'); return [one.scrollWidth, one.clientWidth]")
    assert whole <= shown and visit.run(wide)[0] <= width


def test_nothing_is_asked_for_and_nothing_complains(visit, html):
    visit.open(html)
    visit.all("section.table button.entry")[8].click()
    visit.press(ESCAPE)
    visit.one("#theme").click()
    visit.all("section.table thead th button")[1].click()
    visit.one("section.table input").send_keys("k")
    said, asked = visit.logs()
    assert said == [] and asked[0] == visit.url
    assert [url for url in asked if url != visit.url and not url.startswith("data:")] == []


def test_the_logs_would_tell_of_a_request_and_of_an_error(visit, html):
    visit.open(html.replace("</main>", '<img src="other.png" alt=""></main>').replace("img-src data:", "img-src data: file:"))
    asked = visit.logs()[1]
    assert any(url.endswith("other.png") for url in asked)
    visit.open(html.replace("</main>", "<script>document.title = 'changed'</script></main>"))
    said = visit.logs()[0]
    assert visit.driver.title == "A suite" and any("Content Security Policy" in one for one in said)


def test_without_script_everything_can_be_read(visit, html):
    visit.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        visit.open(html)
        text = visit.one("body").text
    finally:
        visit.command("Emulation.setScriptExecutionDisabled", value=False)
    for expected in ("72.50 ± 0.50", EVIL, "one-teacher", "Every seed", "A note.", "All runs", "000000000083", "raised: ValueError: no"):
        assert expected in text
    assert "Filter" not in text and "Dark theme" not in text


def test_paper_gets_every_row_black_on_white_without_controls(visit, html):
    visit.open(html, dark=True)
    visit.one("section.table input").send_keys("kd")
    visit.one("#theme").click()
    visit.one("#theme").click()  # the reader insists on dark
    visit.emulate(dark=True, media="print")
    assert visit.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not any(one.is_displayed() for one in visit.all(".filter, #theme, nav, .skip"))
    assert [row.is_displayed() for row in visit.all("section.table tbody tr")] == [True] * 8
    visit.emulate()


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_thousands_of_runs_can_be_used(visit, count):
    visit.open(large(count))
    assert visit.later(PAINTED) < 1000 * FIRST_PAINT_S
    rows = visit.all("#all-runs tbody tr")
    assert len(rows) == 100
    start = time.perf_counter()
    visit.one("#all-runs input").send_keys("loss7")
    assert visit.one("#all-runs [role=status]").text == f"{count // 20} of {count} rows left"
    visit.all("#all-runs th button")[0].click()
    visit.one("section.table input").send_keys("loss7")
    assert visit.one("section.table [role=status]").text == f"{count // 100} of {count // 5} rows left"
    visit.one("section.table tbody tr:not([hidden]) button.entry").click()
    assert len(visit.all("#dialog polyline")) == 5 and "milestones" in visit.one("#dialog").text
    visit.press(ESCAPE)
    assert time.perf_counter() - start < 10
    visit.one("#all-runs .filter button").click()
    visit.one("#all-runs .more").click()
    assert len(visit.all("#all-runs tbody tr")) == 200 and visit.focused() == visit.all("#all-runs tbody button")[100]


def large(count: int) -> str:
    """A page of so many runs of 20 losses, with 240 epochs and 30 options each."""
    draw = np.random.default_rng(0)
    options = {f"option_{number}": number / 3 for number in range(30)}
    runs = []
    for number in range(count):
        curve = Curve("test top-1", True, tuple(range(1, 241)), tuple((np.round(7000 + draw.normal(0, 60, 240)) / 1e4).tolist()))
        names = {"dataset": "digits", "teacher": "big", "student": f"student{number // 100}", "objective": f"loss{number // 5 % 20}"}
        place = {"label": names["objective"], "repeat": number % 5, "teacher_seed": 0, "state": "finished", "why": ""}
        config = {"objective": options, "recipe": {**options, "milestones": [1, 2]}, "repeat": number % 5}
        metrics = {
            "metrics": {"top1_last": curve.values[-1]},
            "percent": frozenset({"top1_last"}),
            "circumstance": {"train_s": 1.5 + number},
        }
        runs.append(RunDetails(f"{number:012x}", "student", **names, **place, **metrics, config=config, curve=curve))
    rows = []
    for at in range(0, count, 5):
        ids = tuple(one.id for one in runs[at : at + 5])
        rows.append((Entry(runs[at].label, runs=ids), *(Entry(place / 8, format=".2f", runs=ids) for place in range(7))))
    columns = (Column("objective", numeric=False), *(Column(f"column {place}") for place in range(7)))
    groups = tuple(Group(f"student{at // 20}", tuple(rows[at : at + 20])) for at in range(0, len(rows), 20))
    return page(Document("Large", (f"{count} runs.",), (Table("Accuracies", columns, groups),)), runs, {})
