"""The page in a real browser: it sorts, filters, opens runs by mouse and by keyboard, fits a phone, and loads nothing."""

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
NARROW, WIDE = 400, 1280
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
const seen = (node) => node.checkVisibility() && !node.closest(".heard, .skip")
  && [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
return [...document.body.querySelectorAll("*")].filter(seen).map((node) => {
  const style = getComputedStyle(node);
  const [one, other] = [light(numbers(node.closest("svg") ? style.fill : style.color)), light(ground(node))];
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  return [ratio, `${node.tagName}.${node.getAttribute("class")}: ${node.textContent.slice(0, 30)}`];
});
"""


def test_the_question_is_answered_first(visit, html):
    visit.open(html, width=WIDE)
    places = [visit.one(selector).location["y"] for selector in ("h1", ".lead", "#table-1", "#warnings", "#figures", "#runs")]
    assert places == sorted(places) and len(visit.all(".lead")) == 3
    assert [one.text for one in visit.all(".warnings li code")] == ["one-teacher", "test-set"]
    assert visit.one("#table-1-1").text == "all pairs (2 students x 1 teacher)"
    visit.one(".bar summary").click()
    links = visit.all("nav a")
    assert [one.text for one in links] == ["top-1 compared with kd", "Warnings", "Figures", "All runs (16)"]
    links[1].click()
    assert not visit.one("nav").is_displayed() and visit.one("#warnings").is_displayed()


def test_the_first_table_stands_within_the_first_screen_however_many_pairs_there_are(visit, crowded):
    for width in (NARROW, WIDE):
        visit.open(crowded, width=width)
        last = visit.all("section.group")[0].find_elements("css selector", "tbody tr")[-1]
        assert last.is_displayed() and visit.run("return arguments[0].getBoundingClientRect().bottom", last) < 800
        fold = visit.one("section.table .fold")
        assert fold.find_element("css selector", "summary").text == "200 more: digits: big → student0 to digits: big → student199"
    fold.find_element("css selector", "summary").click()
    assert visit.one("#table-1-201").is_displayed()


def test_loss_difference_and_verdict_fit_a_narrow_screen_and_the_other_columns_can_be_shown(visit, html):
    visit.open(html, width=NARROW)
    box = visit.one("section.table .scroll")
    heads = box.find_elements("css selector", "thead button")
    assert [one.text for one in heads if one.is_displayed()] == ["loss", "Δ to kd, points [95 % CI]", "verdict"]
    inside = "return [arguments[0].scrollWidth, arguments[0].clientWidth]"
    assert len(set(visit.run(inside, box))) == 1
    visit.one("section.table .all input").click()
    assert all(one.is_displayed() for one in heads)
    visit.open(html, width=WIDE)
    assert all(one.is_displayed() for one in visit.all("#table-1 ~ .group thead button"))
    assert not visit.one("section.table .all").is_displayed()


def test_negative_numbers_have_a_true_minus_sign(visit, html):
    visit.open(html)
    assert visit.column(2)[0] == "−2.00 [−2.60, −0.75]" and "−0.5 means" in visit.one("main").text
    assert "small-000000" in visit.run("return document.getElementById('main').textContent")


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
    visit.all("section.table thead th button")[2].click()
    assert visit.column(2) == [*(f"−{one}" for one in ("3.00 [−3.60, −1.75]", "2.00 [−2.60, −0.75]", "1.00 [−1.60, +0.25]")), "–"]


def test_text_sorts_as_text_and_only_one_column_is_sorted(visit, html):
    visit.open(html)
    first, second = visit.all("section.table thead th button")[:2]
    second.click()
    first.click()
    assert visit.column(0) == [EVIL, "cc (taylor)", "ce", "kd"]
    assert len(visit.all("[aria-sort]")) == 1


def test_filters_hide_rows_count_those_that_are_left_and_change_no_number(visit, html):
    visit.open(html)
    before = visit.column(1)
    bar, status = visit.one("#filter"), visit.one("#count")
    bar.find_element("css selector", "summary").click()
    assert status.text == "" and "does not change any number" in bar.text
    bar.find_element("css selector", "input").send_keys("KD")
    # Three groups with a row of kd each, and its four runs.
    assert visit.column(0) == ["kd"] and visit.column(1) == [before[1]] and status.text == "7 of 28 rows"
    choose(bar, "student", "tiny")
    assert status.text == "4 of 28 rows" and visit.column(0, table=1) == [] and visit.column(0, table=2) == ["kd"]
    assert [group.is_displayed() for group in visit.all("section.group")] == [True, False, True, True]
    bar.find_element("css selector", "button").click()
    assert status.text == "" and visit.column(1) == before
    choose(bar, "state", "failed")
    assert visit.column(0) == ["cc (taylor)"] and visit.column(0, table=3) == ["small-000020", "tiny-000020"]
    choose(bar, "state", "")
    choose(bar, "loss", EVIL)
    assert visit.column(0) == [EVIL] and not visit.one("select[name=teacher]").is_displayed()


def test_a_filter_opens_what_is_folded(visit, crowded):
    visit.open(crowded)
    choose(visit.one("#filter"), "student", "student7")
    assert [one.text for one in visit.all("h3") if one.is_displayed()] == ["all pairs (200 students x 1 teacher)", "digits: big → student7"]


def choose(bar, name, value):
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
    bar.parent.execute_script(script, bar.find_element("css selector", f"select[name={name}]"), value)


def test_an_entry_opens_its_runs_by_mouse_and_escape_leads_back(visit, html):
    visit.open(html)
    entry = [one for one in visit.all("section.table button.entry") if one.text == "cc (taylor)"][1]
    entry.click()
    dialog = visit.one("#dialog")
    assert dialog.is_displayed() and visit.one("#dialog-title").text == "cc (taylor)"
    assert "top-1 compared with kd · digits: big → small" in dialog.text
    failed, other = dialog.find_elements("css selector", "details.one")
    assert failed.get_attribute("open") and not other.get_attribute("open")
    for text in (
        "Failure: raised",
        "ValueError: no </script> here",
        "epoch 1\nepoch 2",
        '"milestones": [',
        '"loss": "cc (taylor)"',
        "train_s",
    ):
        assert text in failed.text
    assert len(dialog.find_elements("css selector", "svg.curves polyline")) == 1
    other.find_element("css selector", "summary").click()
    assert '"weight": 1' in other.text and "Log lines are kept only for failed runs." in other.text
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
    assert curves.get_attribute("aria-label") == "test top-1, % over epochs. kd, 4 runs, at epoch 3: 72.00 to 73.00"
    assert [text.text for text in curves.find_elements("css selector", "text")][-2:] == ["epoch", "test top-1, %"]
    visit.press(TAB, TAB, TAB)  # past Close and the first run, which is open, to its configuration
    while visit.focused().tag_name != "summary":
        visit.press(TAB)
    visit.press(ENTER)
    assert len(dialog.find_elements("css selector", "details.one[open]")) == 2
    visit.press(ESCAPE)
    assert not dialog.is_displayed() and visit.focused() == entry


def test_the_close_button_and_a_press_beside_the_dialog_lead_back_too(visit, html):
    visit.open(html)
    entry = visit.all("section.table button.entry")[0]
    for close in ("document.querySelector('#dialog button').click()", "document.getElementById('dialog').click()"):
        entry.click()
        assert visit.one("#dialog").is_displayed()
        visit.run(close)
        assert not visit.one("#dialog").is_displayed() and visit.focused() == entry


def test_the_list_of_runs_sorts_and_opens_a_run(visit, html):
    visit.open(html)
    visit.one("#runs ~ details summary").click()
    heads = visit.all("#runs ~ details th button")
    metric = next(place for place, one in enumerate(heads) if one.text == "top1_last, %")
    heads[metric].click()
    heads[metric].click()
    values = visit.column(metric, table=3)
    assert len(values) == 16 and values[0] == "73.00" and values[-2:] == ["–", "–"] and values[:14] == sorted(values[:14], reverse=True)
    run = next(one for one in visit.all("#runs ~ details button.entry") if one.text == "small-000020")
    run.click()
    assert visit.one("#dialog-title").text == "small-000020" and "Failure: raised" in visit.one("#dialog").text
    assert "There is no curve" in visit.one("#dialog").text


def test_the_switch_changes_the_theme_whichever_the_reader_prefers(visit, html):
    ground = "return getComputedStyle(document.body).backgroundColor"
    for dark in (False, True):
        visit.open(html, dark=dark)
        first = visit.run(ground)
        assert (first == "rgb(255, 255, 255)") is not dark
        visit.one("#theme").click()
        assert visit.run(ground) != first
        assert visit.run("return getComputedStyle(document.querySelector('.card')).backgroundColor") == "rgb(255, 255, 255)"
        visit.one("#theme").click()
        assert visit.run(ground) == first
        assert visit.run("return [document.cookie, localStorage.length]") == ["", 0]


def test_every_text_can_be_told_from_its_ground(visit, html):
    for dark in (False, True):
        visit.open(html, dark=dark)
        pale = [one for one in visit.run(CONTRASTS) if one[0] < AA]
        next(one for one in visit.all("section.table button.entry") if one.text == "cc (taylor)").click()
        found = visit.run(CONTRASTS)
        assert len(found) > 100 and pale + [one for one in found if one[0] < AA] == []


def test_whatever_can_be_pressed_or_seen_has_a_name(visit, html):
    visit.open(html)
    visit.one("#filter summary").click()
    visit.all("section.table button.entry")[0].click()
    nodes = visit.command("Accessibility.getFullAXTree")["nodes"]
    visit.press(ESCAPE)
    nodes += visit.command("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "link", "combobox", "searchbox", "textbox", "checkbox", "table", "region", "dialog", "image", "img")
    roles += ("columnheader", "navigation")
    kept = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert {"button", "combobox", "searchbox", "table", "dialog", "checkbox"} <= {node["role"]["value"] for node in kept}
    assert {"image", "img"} & {node["role"]["value"] for node in kept}
    assert [node["role"]["value"] for node in kept if not node.get("name", {}).get("value")] == []


def test_the_page_itself_never_scrolls_sideways(visit, html):
    for width in (360, NARROW, 1200):
        visit.open(html, width=width)
        visit.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        whole, shown = visit.run(wide)
        assert whole <= shown
        visit.run("document.querySelectorAll('.bar details').forEach((one) => { one.open = false; })")
        visit.all("section.table button.entry")[0].click()
        whole, shown = visit.run("const one = document.getElementById('dialog'); return [one.scrollWidth, one.clientWidth]")
        assert whole <= shown and visit.run(wide)[0] <= width


def test_nothing_is_asked_for_and_nothing_complains(visit, html):
    visit.open(html)
    assert visit.run("return [...document.images].map((one) => one.complete && one.naturalWidth)") == [200, 200]
    visit.all("section.table button.entry")[8].click()
    visit.press(ESCAPE)
    visit.one("#theme").click()
    visit.all("section.table thead th button")[1].click()
    visit.one("#filter summary").click()
    visit.one("#filter input").send_keys("k")
    said, asked = visit.logs()
    assert said == [] and asked[0] == visit.url
    assert [url for url in asked if url != visit.url and not url.startswith(("data:", "blob:"))] == []


def test_a_request_and_an_error_would_stand_in_the_logs(visit, html):
    visit.open(html.replace("</main>", '<img src="other.png" alt=""></main>').replace("img-src data:", "img-src data: file:"))
    asked = visit.logs()[1]
    assert any(url.endswith("other.png") for url in asked)
    visit.open(html.replace("</main>", "<script>document.title = 'changed'</script></main>"))
    said = visit.logs()[0]
    assert visit.driver.title == "A suite" and any("Content Security Policy" in one for one in said)


def test_without_script_everything_can_be_read(visit, html):
    visit.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        visit.open(html, wait=False)
        visit.one("#runs ~ details summary").click()
        text = visit.one("body").text
    finally:
        visit.command("Emulation.setScriptExecutionDisabled", value=False)
    for expected in ("72.50 ± 0.50", EVIL, "one-teacher", "Every repeat", "A note.", "All runs", "tiny-000020", "raised: ValueError: no"):
        assert expected in text
    assert "Filter" not in text


def test_paper_gets_every_row_black_on_white_without_controls(visit, crowded):
    visit.open(crowded, dark=True)
    visit.one("#filter summary").click()
    visit.one("#filter input").send_keys("kd")
    visit.run("document.querySelectorAll('.fold').forEach((one) => { one.open = false; })")
    visit.emulate(dark=True, media="print")
    assert visit.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not any(one.is_displayed() for one in visit.all(".bar, .all, .skip, #runs"))
    rows = "return [...document.querySelectorAll('#table-1 ~ * tbody tr')].filter((row) => row.getClientRects().length).length"
    assert visit.run(rows) == 201 * 4
    visit.emulate()


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_thousands_of_runs_can_be_used(visit, count):
    visit.open(large(count))
    assert visit.later(PAINTED) < 1000 * FIRST_PAINT_S
    start = time.perf_counter()
    visit.one("#filter summary").click()
    visit.one("#filter input").send_keys("loss7")
    assert visit.one("#count").text == f"{count // 100 + count // 20} of {count // 5 + count} rows"
    visit.one("#filter summary").click()
    visit.all("#runs ~ details th button")[0].click()
    entry = visit.one("section.table tbody tr:not([hidden]) button.entry")
    visit.run("arguments[0].scrollIntoView({block: 'center'})", entry)
    entry.click()
    assert len(visit.all("#dialog polyline")) == 5 and "milestones" in visit.one("#dialog").text
    visit.press(ESCAPE)
    assert time.perf_counter() - start < 10


def large(count: int) -> str:
    """A page of so many runs of 20 losses, with 240 epochs and 30 options each."""
    draw = np.random.default_rng(0)
    options = {f"option_{number}": number / 3 for number in range(30)}
    runs = []
    for number in range(count):
        curve = Curve("test top-1, %", tuple(range(1, 241)), tuple((np.round(7000 + draw.normal(0, 60, 240)) / 100).tolist()))
        loss = f"loss{number // 5 % 20}"
        names = {"dataset": "digits", "teacher": "big", "student": f"student{number // 100}", "label": loss}
        place = {"repeat": number % 5, "teacher_seed": 0, "state": "finished", "why": ""}
        config = {"objective": options, "recipe": {**options, "milestones": [1, 2]}, "repeat": number % 5}
        measured = {"metrics": {"top1_last": Entry(curve.values[-1])}, "circumstance": {"train_s": 1.5 + number}}
        runs.append(RunDetails(f"{number:012x}", "student", **names, **place, **measured, config=config, curve=curve))
    rows = []
    for at in range(0, count, 5):
        ids = tuple(one.id for one in runs[at : at + 5])
        rows.append((Entry(runs[at].label, runs=ids), *(Entry(place / 8, format=".2f", runs=ids) for place in range(7))))
    columns = (Column("loss", numeric=False), *(Column(f"column {place}") for place in range(7)))
    groups = tuple(Group(f"student{at // 20}", tuple(rows[at : at + 20])) for at in range(0, len(rows), 20))
    return page(Document("Large", (f"{count} runs.",), (Table("Accuracies", columns, groups),)), runs, {})
