"""Pages in a headless browser: what stands outside the viewport, and what the console says. Skipped where none is."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = 420, 1280
# In each page: everything opened up, then what reaches beyond the window and is in no box that scrolls.
LOOK = """<script>addEventListener("load", () => {
  for (const one of document.querySelectorAll("details")) one.open = true
  const boxed = e => getComputedStyle(e).overflowX == "auto"
  const scrolled = e => e && e != document.body && (boxed(e) || scrolled(e.parentElement))
  const out = e => e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < -1
  const wide = [...document.querySelectorAll("body *")].filter(e => out(e) && !scrolled(e.parentElement))
  const size = document.documentElement.scrollWidth
  parent.postMessage({size, window: innerWidth, wide: wide.map(e => e.outerHTML.slice(0, 90))}, "*")
})</script>"""
KEEP = """<script>const found = []
onmessage = event => { found.push(event.data); document.title = JSON.stringify(found) }</script>"""


def opened(pages, folder):
    """Opens each page at each of WIDTHS -> [{"size", "window", "wide"}], and the console's lines."""
    if BROWSER is None:
        pytest.skip("no chromium or Chrome is installed, so no page is opened")
    frames = ""
    for i, page in enumerate(pages):
        (folder / f"copy{i}.html").write_text(page.read_text() + LOOK)
        frames += "".join(f"<iframe src=copy{i}.html width={w} height=900 frameborder=0></iframe>" for w in WIDTHS)
    (folder / "frames.html").write_text(f"<!doctype html><meta charset=utf-8><title></title>{KEEP}{frames}")
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    words += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", f"file://{folder / 'frames.html'}"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    found = json.loads(unescape(re.search("<title>(.*?)</title>", ended.stdout, re.DOTALL)[1]))
    return found, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


def assert_fits(pages, folder):
    found, console = opened(pages, folder)
    assert [one["window"] for one in found].count(420) == [one["window"] for one in found].count(1280) == len(pages)
    assert not console and all(not one["wide"] and one["size"] <= one["window"] for one in found), (console, found)
