"""A real browser without a window, for the report's page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTH, HEIGHT = 1200, 900
# A hang, and no measure.
_HANG_S = 60

_FIRST_SCREEN = """
const seen = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, range = document.createRange();
  let start = 0;
  for (const line of node.data.split("\\n")) {
    range.setStart(node, start);
    range.setEnd(node, start + line.length);
    const box = range.getBoundingClientRect();
    if (box.height > 0 && box.bottom <= window.innerHeight) seen.push(line);
    start += line.length + 1;
  }
}
return seen.join(" ");
"""


@contextmanager
def running_browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    # Root in a container has no user namespaces to make Chromium's own sandbox of; the page is ours and goes nowhere.
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={WIDTH},{HEIGHT}",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.set_page_load_timeout(_HANG_S)
    try:
        yield driver
    finally:
        driver.quit()


def read_first_screen(browser: webdriver.Chrome) -> str:
    """Every text that stands in the window before anybody scrolls."""
    return str(browser.execute_script(_FIRST_SCREEN))
