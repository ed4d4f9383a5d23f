"""The site builds in strict mode, needs nothing from elsewhere, and draws every formula.

The last two are looked at in a browser (Chromium without a window); where there is none, what the files ask for is
still read.  A strict build fails on a dead link, a missing anchor and a missing page.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# text of the page without formulas, programs and what the theme hides: nothing in it should look like TeX
PROSE = """() => {
    const copy = document.querySelector("article").cloneNode(true);
    copy.querySelectorAll(".katex, pre, code, script, style").forEach(e => e.remove());
    return copy.textContent;
}"""
TEX = re.compile(r"\$[^$\n]{1,200}\$|\\(?:frac|tfrac|int|sum|sigma|tau|lambda|beta|begin|nabla|mathrm|big|cdot)\b")


def zensical(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("zensical")
    if not script.is_file():
        pytest.skip("zensical is not installed: pip install '.[docs]'")
    environment = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run([str(script), "build", *options], cwd=folder, env=environment, capture_output=True, text=True)


def prepared(folder: Path) -> Path:
    """What the site is made of, where a build leaves nothing in the repository."""
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copytree(ROOT / "tests" / "docs", folder / "tests" / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "aid_control").symlink_to(ROOT / "aid_control")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = prepared(tmp_path_factory.mktemp("site"))
    done = zensical(folder, "--clean", "--strict")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert "warning" not in (done.stdout + done.stderr).lower()
    return folder / "site"


def addresses(site: Path) -> list[str]:
    """Of every page, as a browser asks for them."""
    return sorted(p.parent.relative_to(site).as_posix().removeprefix(".") + "/" for p in site.rglob("index.html"))


class Wanted(HTMLParser):
    """Addresses a page loads by itself, and the inner links of its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {k: v or "" for k, v in attrs}
        if tag in {"script", "img", "iframe", "source", "video", "audio", "embed"} and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") not in {"canonical", "next", "prev", "sitemap", "alternate"}:
            self.loaded.append(given.get("href", ""))


def test_no_page_asks_for_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        reader = Wanted()
        reader.feed(page.read_text())
        foreign = [a for a in reader.loaded if re.match(r"(?:[a-z]+:)?//", a)]
        assert not foreign, f"{page.relative_to(site)}: {foreign}"
    for sheet in site.rglob("*.css"):
        asked = re.findall(r"""(?:url\(|@import\s*)["']?((?:https?:)?//[^"')]+)""", sheet.read_text())
        assert not asked, f"{sheet.relative_to(site)}: {asked}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("[a](nothing.md)", "page does not exist"), ("[a](explanation/hjb.md#nothing)", "anchor does not exist")],
)
def test_a_dead_link_stops_the_build(tmp_path, text, complaint):
    folder = prepared(tmp_path)
    with (folder / "docs" / "index.md").open("a") as page:
        page.write(f"\n{text}\n")
    done = zensical(folder, "--clean", "--strict")
    assert done.returncode != 0 and complaint in done.stdout + done.stderr


@pytest.fixture(scope="module")
def served(site) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_every_page_loads_alone_and_draws_its_formulas(site, served):
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api")
    complaints: list[str] = []
    formulas = 0
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        here = ""

        def asked(request) -> None:
            if not request.url.startswith((served, "data:", "blob:")):
                complaints.append(f"{here} asks for {request.url}")

        page.on("request", asked)
        # leaving a page stops what it still loads: aborted, which is no fault (a file that is missing answers 404)
        page.on(
            "requestfailed",
            lambda r: (
                "ABORTED" in (r.failure or "") or complaints.append(f"{here}: no answer for {r.url}: {r.failure}")
            ),
        )
        page.on("response", lambda r: r.status >= 400 and complaints.append(f"{here}: {r.status} for {r.url}"))
        page.on("pageerror", lambda e: complaints.append(f"{here}: {e}"))
        for address in addresses(site):
            here = address
            page.goto(served + address.lstrip("/"), wait_until="load")
            places, drawn = (
                page.locator(".arithmatex").count(),
                page.locator(".arithmatex.drawn > .katex, .arithmatex.drawn > .katex-display").count(),
            )
            wrong = page.locator(".katex-error").all_inner_texts()
            formulas += drawn
            if places != drawn or wrong:
                complaints.append(f"{here}: {drawn} of {places} formulas drawn; {wrong[:3]}")
            raw = TEX.findall(page.evaluate(PROSE))
            if raw:
                complaints.append(f"{here}: raw TeX {raw[:3]}")
        browser.close()
    assert not complaints, "\n".join(complaints)
    assert formulas > 1000
