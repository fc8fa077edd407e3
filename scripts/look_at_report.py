"""Screenshots of a report in Chromium, wide and narrow, light and dark, and a walk over it by keyboard.

Needs `pip install playwright` in an environment of its own and Debian's chromium:
`python scripts/look_at_report.py REPORT.html OUT`. It exits with 1 if a page is wider than its window, loads anything,
or the keyboard reaches something whose focus cannot be seen.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
TOO_WIDE = """() => [...document.querySelectorAll('body *')]
  .filter(e => !e.closest('svg *') && e.getBoundingClientRect().right > innerWidth + 1
    && !e.closest('.scrolls'))
  .map(e => `<${e.tagName.toLowerCase()} class="${e.className.baseVal ?? e.className}"> ${e.textContent.slice(0, 40)}`)"""
FOCUSED = """() => { const e = document.activeElement; if (e === document.body) return null;
  const style = getComputedStyle(e), box = e.getBoundingClientRect();
  return {what: `${e.tagName.toLowerCase()}.${e.className.baseVal ?? e.className} ${(e.ariaLabel || e.textContent).trim().slice(0, 50)}`,
    seen: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
    inside: box.bottom > 0 && box.top < innerHeight}; }"""


def faults(page: Page, name: str) -> list[str]:
    """Return what is wrong with a page as it is shown."""
    return [f"{name}: wider than its window: {text}" for text in page.evaluate(TOO_WIDE)]


def walk(page: Page, *, most: int = 400) -> tuple[list[str], list[str]]:
    """Press Tab until the focus leaves the page; return the stops, and what is wrong with them."""
    stops, wrong = [], []
    for _ in range(most):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop is None:
            break
        stops.append(stop["what"])
        wrong += [f"keyboard: {stop['what']}: focus not visible"] if not (stop["seen"] and stop["inside"]) else []
    return stops, wrong


def main(report: Path, out: Path) -> int:
    """Write the screenshots to `out`, print the keyboard's stops and the faults, and return the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for width in WIDTHS:
            for scheme in SCHEMES:
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore
                page.on("request", lambda request: wrong.append(f"loads {request.url}") if request.url[:5] != "file:" else None)
                page.on("console", lambda message: wrong.append(f"console: {message.text}"))
                page.goto(report.resolve().as_uri())
                name = f"{width}-{scheme}"
                page.screenshot(path=out / f"{name}.png", full_page=True)
                wrong += faults(page, name)
                if (width, scheme) == (WIDTHS[0], SCHEMES[0]):
                    stops, unseen = walk(page)
                    wrong += unseen
                    print(*stops, sep="\n")
                page.close()
        browser.close()
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
