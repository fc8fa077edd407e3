"""Screenshots of a report in Chromium, wide and narrow, light and dark, and a walk over it by keyboard and by touch.

Needs `pip install playwright` in an environment of its own and Debian's chromium:
`python scripts/look_at_report.py REPORT.html OUT`. It exits with 1 if the page is wider than its window or loads
anything, if the keyboard reaches something whose focus is not visible or opens nothing, or if a tap shows no figures.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")
MOST_STOPS = 500
TALL = 1600
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
TOO_WIDE = """() => [...document.querySelectorAll('body *, svg text')]
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => `${e.tagName} ${e.textContent.trim().slice(0, 50)}`)"""
FOCUSED = """() => { const e = document.activeElement; if (e === document.body) return null;
  const style = getComputedStyle(e), box = e.getBoundingClientRect();
  return {tag: e.tagName, name: e.textContent.trim().slice(0, 60),
    visible: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
    inside: box.bottom > 0 && box.top < innerHeight}; }"""
OPEN = "() => document.activeElement.parentElement.open"
AT_TARGET = "() => { const top = document.querySelector(':target')?.getBoundingClientRect().top; return top > -2 && top < innerHeight; }"
BUBBLE = """() => getComputedStyle(document.querySelector('.t[data-note]:focus') ?? document.body, '::after').content"""


def open_page(browser: Browser, report: Path, wrong: list[str], *, width: int, scheme: str) -> Page:
    """Open the report at a width and in a colour scheme; what it asks for or complains about goes to `wrong`."""
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
        has_touch=width < 800,
    )
    page.on(
        "request", lambda asked: None if asked.url.startswith("file:") else wrong.append(f"loads {asked.url}")
    )
    page.on("console", lambda message: wrong.append(f"console: {message.text}"))
    page.goto(report.resolve().as_uri())
    return page


def shoot(page: Page, out: Path, name: str) -> None:
    """Write the whole page as pictures below each other."""
    for old in out.glob(f"{name}-[0-9]*.png"):
        old.unlink()
    size = page.evaluate(
        "() => [document.documentElement.clientWidth, document.documentElement.scrollHeight]"
    )
    for number, top in enumerate(range(0, size[1], TALL)):
        part = {"x": 0, "y": top, "width": size[0], "height": min(TALL, size[1] - top)}
        page.screenshot(path=out / f"{name}-{number:02d}.png", full_page=True, clip=part)


def walk(page: Page) -> Iterator[str]:
    """Press Tab until the focus leaves the page, and Enter at each stop; print the stops and yield the faults."""
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop is None:
            return
        print(stop["tag"].lower(), stop["name"])
        if not (stop["visible"] and stop["inside"]):
            yield f"keyboard: focus is not visible at {stop['name']}"
        if stop["tag"] == "SUMMARY":
            page.keyboard.press("Enter")
            if not page.evaluate(OPEN):
                yield f"keyboard: Enter does not open {stop['name']}"
    yield f"keyboard: more than {MOST_STOPS} stops"


def links(page: Page) -> Iterator[str]:
    """Follow each link of the contents by keyboard; yield those that lead nowhere."""
    for link in page.query_selector_all("nav a"):
        link.focus()
        page.keyboard.press("Enter")
        if not page.evaluate(AT_TARGET):
            yield f"keyboard: {link.inner_text()} leads nowhere"


def taps(page: Page) -> Iterator[str]:
    """Tap a token; yield a fault if its figures are not shown."""
    token = page.query_selector(".t[data-note]")
    if token:
        token.tap()
        if page.evaluate(BUBBLE) in ("none", "normal"):
            yield "touch: a tapped token shows no figures"


def main(report: Path, out: Path) -> int:
    """Write the screenshots to `out`, print the keyboard's stops and the faults, and return the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for width in WIDTHS:
            for scheme in SCHEMES:
                page = open_page(browser, report, wrong, width=width, scheme=scheme)
                name = f"{width}-{scheme}"
                shoot(page, out, name)
                wrong += [f"{name}: too wide: {text}" for text in page.evaluate(TOO_WIDE)]
                if scheme == SCHEMES[0]:
                    wrong += [*walk(page), *links(page)]
                    shoot(page, out, f"{name}-open")
                    wrong += [f"{name}, opened: too wide: {text}" for text in page.evaluate(TOO_WIDE)]
                if width < 800:
                    wrong += taps(page)
                    page.screenshot(path=out / f"{name}-tapped.png")
                page.close()
        browser.close()
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
