"""A real browser, and pages to open in it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdbench.failure import Failure
from kdbench.report.document import Document, Figure, ReportWarning
from kdbench.report.page.page import page
from kdbench.report.page.runs import Curve, RunDetails
from kdbench.report.table import BEST, TIED, Entry, Group, Table
from tests.report.columns import VERSUS_KD

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
LOSSES = {"ce": 0.70, "kd": 0.72, "cc (taylor)": 0.71, "<img src=x onerror=alert(1)>": 0.69}
STUDENTS = ("small", "tiny")
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="100"><style>*{fill: none}</style><text id="t" x="9" y="20">points</text></svg>'


class Visit:
    """A page in the browser: what tests ask of it again and again."""

    def __init__(self, driver: Any, folder: Path):
        self.driver, self.file = driver, folder / "report.html"
        self.url = self.file.as_uri()

    def open(self, html: str, width: int = 1200, dark: bool = False, wait: bool = True) -> Visit:
        """Open the page; `wait` until its script has prepared the tables."""
        self.file.write_text(html, encoding="utf-8")
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.emulate(dark=dark)
        self.logs()
        self.driver.get(self.url)
        if wait:
            self.later("const at = setInterval(() => document.querySelector('#filter[hidden]') || (clearInterval(at), arguments[0]()), 5)")
        return self

    def command(self, name: str, **options: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, options)

    def emulate(self, dark: bool = False, media: str = "") -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", media=media, features=features)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def later(self, script: str) -> Any:
        """What the script gives its last argument, a function, once it has it."""
        return self.driver.execute_async_script(script)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> Any:
        return self.driver.switch_to.active_element

    def column(self, place: int, table: int = 0) -> list[str]:
        """The texts of a column in the rows that are shown."""
        script = "return [...document.querySelectorAll('section.table table')[arguments[0]].tBodies[0].rows].filter(row => !row.hidden)"
        return self.run(f"{script}.map(row => row.cells[arguments[1]].textContent)", table, place)

    def logs(self) -> tuple[list[str], list[str]]:
        """What the console said, and every address that was asked for, since the last call."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
        return said, asked


def lacking() -> str:
    """What is not installed that a browser test needs; empty when all is there."""
    programs = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return ", ".join(programs + ([] if importlib.util.find_spec("selenium") else ["selenium"]))


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if lacks := lacking():
        (pytest.fail if os.environ.get("KDBENCH_NO_SKIP") else pytest.skip)(f"not installed: {lacks}")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With the path of the driver given, selenium looks for none and fetches none.
    browser = webdriver.Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def visit(driver: Any, tmp_path: Path) -> Visit:
    driver.get("about:blank")
    return Visit(driver, tmp_path)


@pytest.fixture(scope="session")
def html() -> str:
    """Two students, four losses, two repeats each; the first run of `cc (taylor)` has failed."""
    return suite_page(STUDENTS)


@pytest.fixture(scope="session")
def crowded() -> str:
    """The same with 200 students."""
    return suite_page([f"student{number}" for number in range(200)])


def suite_page(students: Sequence[str]) -> str:
    """A page whose main table begins with the mean over all pairs: four losses and two repeats for each student."""
    runs = [_run(student, label, repeat) for student in students for label in LOSSES for repeat in range(2)]
    everything = _group(f"all pairs ({len(students)} students x 1 teacher)", runs)
    groups = (everything, *(_group(f"digits: big → {student}", [one for one in runs if one.student == student]) for student in students))
    caption = (
        "top-1 at the last epoch; ± is the standard deviation over 2 repeats.",
        "Δ is paired by repeat, -0.5 means half a point less.",
    )
    table = Table("top-1 compared with kd", VERSUS_KD, groups, caption, ("A note.",), "vs_kd")
    warnings = (
        ReportWarning("one-teacher", "digits: The claims are for this teacher."),
        ReportWarning("test-set", "Intervals do not include test-set sampling error."),
        ReportWarning("one-teacher", "There is one teacher seed."),
    )
    figures = (Figure("seeds", "Every repeat", "A point is a run."), Figure("forest", "Differences", "Differences to kd."))
    facts = (
        f"Three losses are compared with kd on {len(students)} pairs of a student and a teacher, with 2 repeats each.",
        "cc (taylor) is better than kd over all pairs: +1.00 points, 95 % CI [+0.40, +1.60].",
        "Nothing can be said about other teachers: there is one.",
    )
    return page(Document("A suite", facts, (table,), warnings, figures), runs, {"seeds": SVG, "forest": SVG})


def _run(student: str, label: str, repeat: int) -> RunDetails:
    bad = label.startswith("cc") and repeat == 0
    number = list(LOSSES).index(label) * 10 + repeat
    value = LOSSES[label] + repeat / 100
    trace = 'Traceback (most recent call last):\n  File "cc.py", line 3\nValueError: no </script> here'
    failure = Failure("raised", "ValueError: no", trace, ("epoch 1", "epoch 2")).to_json()
    return RunDetails(
        **{"id": f"{student}-{number:06d}", "role": "student", "dataset": "digits", "student": student, "label": label},
        **{"teacher": None if label == "ce" else "big", "repeat": repeat, "teacher_seed": None if label == "ce" else 0},
        **{"state": "failed" if bad else "finished", "why": "raised: ValueError: no" if bad else ""},
        metrics={"top1_last, %": Entry(None if bad else value, format=".2f", scale=100)},
        circumstance={"n_train": 300, "device": "cpu", "train_s": 1.5},
        config={"recipe": {"epochs": 3, "milestones": [1.0, 2.0]}, "objective": {"terms": [{"loss": label, "weight": 1.0}]}},
        curve=None if bad else Curve("test top-1, %", (1, 2, 3), (30.0, 50.0, 100 * value)),
        failure=failure if bad else None,
    )


def _group(title: str, runs: list[RunDetails]) -> Group:
    rows = []
    for place, label in enumerate(LOSSES):
        ids = tuple(one.id for one in runs if one.label == label)
        emphasis = {"kd": BEST, "cc (taylor)": TIED}.get(label, "")
        value = Entry(LOSSES[label] + 0.005, spread=0.005, format=".2f", scale=100, emphasis=emphasis, runs=ids)
        difference = None if label == "kd" else LOSSES[label] - LOSSES["kd"]
        low_high = None if difference is None else (difference - 0.006, difference + 0.0125)
        delta = Entry(difference, interval=low_high, format="+.2f", scale=100, runs=ids)
        # As text, 10 is before 9, <0.001 before all, and a dash anywhere.
        p = (Entry(None), Entry(0.0002, format=".3f", least=0.001), Entry(10.0, format="g"), Entry(9.0, format="g"))[place]
        verdict = ("▼ worse", "", "△ better, below the margin", "! unstable")[place]
        rows.append((Entry(label, runs=ids), value, delta, p, Entry(verdict)))
    return Group(title, tuple(rows), ("300 training images.",), ("† a note.",))
