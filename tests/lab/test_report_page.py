"""The report as a reader opens it: a real browser, the largest run that is promised, no network, keyboard, dark and
light, paper.

How it can fail: without the shared budget of outputs the page is 50 MB; with a resource from elsewhere, or a script
whose digest the page's own policy does not name, the browser's log is not empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from laboratory.browser import HEIGHT, read_first_screen, running_browser
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from ktrdr_vm.report.html import render_html
from ktrdr_vm.report.measurements import Phase, Sample
from ktrdr_vm.report.model import Denial, GateResult, RunReport, TaskResult

TASKS, FAILED_EVERY, OUTPUT = 2000, 100, 25_000
MOST_BYTES = 5_000_000


def make_large_report() -> RunReport:
    """2,000 tasks that said 50 MB."""
    tasks = tuple(
        TaskResult(
            f"task {number}",
            "shell",
            "failed" if number % FAILED_EVERY == 0 else "skipped" if number % 7 == 0 else "ok",
            False,
            "2026-01-01T00:00:00Z",
            0.1,
            message="no answer" if number % FAILED_EVERY == 0 else "",
            stdout=f"</script><script>document.title='owned'</script> line of task {number}\n" * (OUTPUT // 74),
        )
        for number in range(TASKS)
    )
    return RunReport(
        instance_id="page--large",
        run_id="20260101T000000Z-abcd",
        profile="large",
        mode="sandbox",
        plan_digest="p" * 64,
        image_digest="i" * 64,
        outcome="failed",
        exit_code=1,
        started_at="2026-01-01T00:00:00Z",
        duration_s=900.0,
        phases=tuple(
            Phase(name, "ok", f"2026-01-01T00:0{place}:00Z", 50.0)
            for place, name in enumerate(("create", "boot", "gate large"))
        ),
        samples=tuple(
            Sample(f"2026-01-01T00:{second // 60:02}:{second % 60:02}Z", "page--large", second * 0.7, 10**9, 10**7)
            for second in range(0, 900, 2)
        ),
        gates=(GateResult("large", "failed", "2026-01-01T00:00:00Z", 800.0, tasks, "task 0: no answer"),),
        denied=(
            Denial(
                "evil.test.lab",
                "",
                443,
                "tls: name",
                3,
                "2026-01-01T00:00:00Z",
                "2026-01-01T00:00:00Z",
                "large: task 0",
            ),
        ),
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with running_browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def page(browser: webdriver.Chrome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(make_large_report()), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def opened(browser: webdriver.Chrome, page: Path) -> None:
    browser.get(page.as_uri())


def count_shown(browser: webdriver.Chrome) -> int:
    return int(browser.execute_script("return document.querySelectorAll('[data-state]:not([hidden])').length"))


def test_it_is_small_and_opens(browser: webdriver.Chrome, page: Path) -> None:
    assert page.stat().st_size < MOST_BYTES
    took = browser.execute_script(
        "const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd - t.startTime"
    )
    print(
        f"{TASKS} tasks, {TASKS * OUTPUT / 1e6:.0f} MB of output: {page.stat().st_size / 1e6:.1f} MB, opened in {took / 1000:.2f} s"
    )
    assert browser.title == "failed: page--large", "no output of a guest ran"
    assert count_shown(browser) == TASKS


def test_it_asks_nobody_and_nothing_is_refused_by_its_own_policy(browser: webdriver.Chrome) -> None:
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_the_first_screen_says_the_outcome_and_why(browser: webdriver.Chrome) -> None:
    first = read_first_screen(browser)
    assert first.split()[0] == "Failed" and "task 0" in first and "no answer" in first
    assert browser.find_element(By.CSS_SELECTOR, ".notice.bad").location["y"] < HEIGHT


def test_it_filters_by_text_and_state(browser: webdriver.Chrome) -> None:
    Select(browser.find_element(By.NAME, "state")).select_by_visible_text("failed")
    assert count_shown(browser) == TASKS // FAILED_EVERY
    browser.find_element(By.NAME, "words").send_keys("task 1900")
    assert count_shown(browser) == 1
    said = browser.find_element(By.ID, "shown")
    assert said.text == f"1 of {TASKS} tasks" and said.get_attribute("aria-live") == "polite"


def test_the_keyboard_is_enough(browser: webdriver.Chrome) -> None:
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    field = browser.switch_to.active_element
    assert field.get_attribute("name") == "words"
    field.send_keys("task 7", Keys.ESCAPE)
    assert field.get_attribute("value") == "" and count_shown(browser) == TASKS
    browser.execute_script("document.querySelector('details:not([open]) summary').focus()")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.parentElement.open") is True


def test_who_hears_it_finds_names_for_everything(browser: webdriver.Chrome) -> None:
    """Landmarks and headings in order, a label for each field, and for each picture that says more than the table
    beneath it."""
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    assert browser.execute_script(
        "return [...document.querySelectorAll('section')].every(s => document.getElementById(s.getAttribute('aria-labelledby')))"
    )
    assert browser.execute_script(
        "return [...document.querySelectorAll('input, select')].every(f => f.labels.length > 0)"
    )
    assert browser.execute_script(
        "return [...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label') || s.getAttribute('aria-hidden'))"
    )
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))


def emulate(browser: webdriver.Chrome, **media: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def contrast(browser: webdriver.Chrome) -> float:
    """WCAG's ratio between the text and the paper."""
    script = """
    const c = getComputedStyle(document.body), l = (t) => { const [r, g, b] = t.match(/\\d+/g).map(v => v / 255).map(
      v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
    const [a, b] = [l(c.color), l(c.backgroundColor)].sort((x, y) => y - x); return (a + .05) / (b + .05);"""
    return float(browser.execute_script(script))


def test_it_is_readable_dark_and_light_and_on_paper(browser: webdriver.Chrome) -> None:
    colours = []
    for scheme in ("light", "dark"):
        emulate(browser, features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert contrast(browser) >= 7
    assert colours[0] != colours[1]
    emulate(browser, media="print", features=[])
    assert not browser.find_element(By.ID, "filter").is_displayed(), "nobody types on paper"
    assert browser.execute_script("return getComputedStyle(document.querySelector('pre')).maxHeight") == "none"
    emulate(browser, media="")


def test_it_is_whole_without_its_script(browser: webdriver.Chrome, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        assert len(browser.find_elements(By.CSS_SELECTOR, "[data-state]")) == TASKS
        assert not browser.find_element(By.ID, "filter").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
