"""The built site in a browser: every page, wide and narrow, light and dark, by eye and by keyboard.

The site is what the last ``jupyter-book build book/`` left in ``_build/html``. Without it, or
without chromium, these tests are skipped; with ``MNLIB_BROWSER=1``, as in ``.ci/run``, they fail.
"""

import functools
import html
import http.server
import os
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from axe_playwright_python.sync_playwright import Axe

SITE = Path(__file__).resolve().parents[1] / "_build" / "html"
CHROMIUM = shutil.which("chromium")
MUST = bool(os.environ.get("MNLIB_BROWSER"))
PAGES = sorted(path.name for path in SITE.glob("*.html"))
FILES = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("files/*.html"))
WIDTHS = {"wide": (1440, 900), "narrow": (390, 844)}

pytestmark = pytest.mark.slow

# What the theme does and we cannot mend: rule of axe, selector, reason.
OF_THE_THEME = (
    ("region", "sidebar-primary-item", "its sidebar is a plain div, outside of landmarks"),
    ("region", "sidebar-header-items", "the same"),
    ("region", "pst-back-to-top", "its button stands outside of landmarks"),
    ("aria-allowed-role", "doc-biblioentry", "docutils gives it to an entry of a bibliography"),
    ("aria-deprecated-role", "doc-biblioentry", "the same"),
    ("aria-required-children", "citation-list", "the same"),
)


@pytest.fixture(scope="module")
def address():
    """Serve the site."""
    if not CHROMIUM or not PAGES:
        reason = "chromium is not installed" if PAGES else f"{SITE} holds no site: make book"
        (pytest.fail if MUST else pytest.skip)(reason)
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def tab(address):
    """Return a tab, and lists of what it asked for elsewhere and of what went wrong in it."""
    from playwright.sync_api import sync_playwright

    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        tab = browser.new_page()
        tab.set_default_timeout(300_000)  # on a busy machine a page takes as long as it takes
        tab.faults = []
        tab.on("pageerror", lambda error: tab.faults.append(f"script: {error}"))
        tab.on(
            "console",
            lambda said: (
                said.type == "error"
                and not said.text.startswith("Failed to load resource")  # told with its address
                and tab.faults.append(f"console: {said.text}")
            ),
        )
        tab.on(
            "response",
            lambda answer: (
                answer.status >= 400 and tab.faults.append(f"{answer.status} {answer.url}")
            ),
        )
        tab.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:"))
                or tab.faults.append(f"asks {request.url}")
            ),
        )
        yield tab
        browser.close()


def show(tab, url, width="wide", theme="light"):
    """Open a page and wait until its formulas are set."""
    tab.faults.clear()
    tab.set_viewport_size(dict(zip(("width", "height"), WIDTHS[width], strict=True)))
    tab.goto(url)
    tab.wait_for_function("!window.MathJax || window.MathJax.startup?.promise")
    tab.evaluate("window.MathJax?.startup.promise")
    dress(tab, width, theme)


def dress(tab, width, theme):
    """Change width and theme of the page that is open."""
    tab.set_viewport_size(dict(zip(("width", "height"), WIDTHS[width], strict=True)))
    tab.evaluate(
        "async theme => {document.documentElement.dataset.mode = theme;"
        "document.documentElement.dataset.theme = theme;"
        "await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))}",
        theme,
    )


def axe(tab, only=None):
    """Return axe's violations but the theme's; formulas and code are checked once, elsewhere."""
    # preloading, it would ask for style sheets at wrong addresses
    options = {"resultTypes": ["violations"], "preload": False} | (
        {"runOnly": only} if only else {}
    )
    context = {"exclude": [["mjx-container"], [".highlight pre"]]}
    found = Axe().run(tab, context=context, options=options).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:120]}"
        for violation in found
        for node in violation["nodes"]
        if not any(
            rule == violation["id"] and selector in node["html"]
            for rule, selector, _ in OF_THE_THEME
        )
    ]


# Everything in the article that is wider than its place and neither scrolls nor says so.
CUT = """() => [...document.querySelectorAll('.bd-article *')].filter(e => {
    const style = getComputedStyle(e);
    if (style.display === 'inline') return;
    if (e.closest('mjx-container, span.math, svg, .visually-hidden')) return;
    if (e.scrollWidth <= e.clientWidth + 2 || style.overflowX === 'visible') return;
    return !(e.classList.contains('mnlib-wide') && e.tabIndex === 0
             && (e.classList.contains('mnlib-more') || e.scrollLeft > 0));
}).map(e => e.outerHTML.slice(0, 150))"""

# What a reader should never see: TeX, roles and directives as they stand in the source.
RAW = re.compile(r"\\[a-zA-Z]{2,}|\\\(|\$\$|\{(?:ref|eq|numref|glue|cite|deck|doc)\b|IPython\.core")
TEXT = """() => {
    const copy = document.querySelector('main').cloneNode(true);
    copy.querySelectorAll('pre, code, script, mjx-container').forEach(e => e.remove());
    return copy.textContent;
}"""
ALTS = "() => [...document.querySelectorAll('.bd-article img')].map(e => e.alt)"
CONTRAST = {"runOnly": ["color-contrast"], "resultTypes": ["violations"], "preload": False}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_in_two_widths_and_two_themes(tab, address, page):
    show(tab, address + page)
    assert tab.locator("merror, mjx-merror").count() == 0
    assert not RAW.findall(tab.evaluate(TEXT))
    assert "CC BY 4.0" in tab.locator(".bd-footer-content").inner_text()
    assert all(alt and len(alt) > 20 for alt in tab.evaluate(ALTS))
    found = []
    for width in WIDTHS:
        for theme in ("light", "dark"):
            dress(tab, width, theme)
            wide = tab.evaluate("document.documentElement.scrollWidth")
            assert wide <= WIDTHS[width][0], f"{wide} px at {width}"
            found += [f"{width}, {theme}: {fault}" for fault in tab.evaluate(CUT)]
            # what axe finds depends on the theme by contrast, on the width by what scrolls
            if (width, theme) in (("wide", "light"), ("narrow", "dark")):
                found += [f"{width}, {theme}: {fault}" for fault in axe(tab)]
    assert not found + tab.faults


def test_contrast_of_code_and_of_the_files_pages(tab, address):
    files = ["files/mnlib-lab-style.html", "files/tests-test_wiring.html"]
    for page in ["data.html", *files]:
        show(tab, address + page)
        for theme in ("light", "dark"):
            tab.emulate_media(color_scheme=theme)
            dress(tab, "wide", theme)
            wrong = Axe().run(tab, context=".highlight", options=CONTRAST).response["violations"]
            assert not wrong, (page, theme, wrong[0]["nodes"][0]["html"])
        if page in files:
            assert tab.evaluate("document.documentElement.scrollWidth") <= 1440
            assert tab.locator("a[href='../index.html']").count()
    tab.emulate_media(color_scheme="light")


def test_every_link_and_anchor_of_the_site_resolves(address):
    texts = {name: (SITE / name).read_text(encoding="utf-8") for name in PAGES + FILES}
    anchors = {
        name: set(re.findall(r'\s(?:id|name)="([^"]*)"', text)) for name, text in texts.items()
    }
    dead = []
    for name, text in texts.items():
        for link in set(re.findall(r'<a\s[^>]*?href="([^"]*)"', text)):
            target, anchor = urldefrag(urljoin(name, html.unescape(link)))
            if urlparse(target).scheme or link == "#":
                continue
            target = unquote(target)
            there = not anchor or target not in anchors or unquote(anchor) in anchors[target]
            if not (SITE / target).exists() or not there:
                dead.append(f"{name}: {link}")
    assert not dead


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("43.15", "vgg_pca.html"),
        ("99.58", "resnet_neural_ode.html"),
        ("85.14", "resnet_neural_ode.html"),
        ("test_adjoint", "files/tests-test_ode_gradients.html"),
        ("Pontryagin", "references.html"),
    ],
)
def test_the_search_finds_numbers_and_names(tab, address, query, page):
    show(tab, f"{address}search.html?q={query}")
    tab.wait_for_function(
        "/found|did not match/.test(document.querySelector('.search-summary')?.innerText)"
    )
    found = tab.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any(page in href for href in found), found


def test_the_keyboard_reaches_whatever_can_be_clicked(tab, address):
    show(tab, address + "depthwise_separable.html")
    wanted = tab.evaluate(
        """() => {
        let n = 0;
        for (const e of document.querySelectorAll(
            'a[href], button, input, select, summary, abbr.mnlib-recorded, .mnlib-wide')) {
            if (e.checkVisibility({visibilityProperty: true, opacityProperty: false})
                && e.tabIndex >= 0 && !e.disabled && !e.closest('[inert]')) e.dataset.want = n++;
        }
        return n; }"""
    )
    tab.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    reached = set()
    for _ in range(2 * wanted):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.dataset.want"))
        if len(reached) > wanted:
            break
    missed = [str(n) for n in range(wanted) if str(n) not in reached]
    assert not [
        tab.evaluate(f"document.querySelector('[data-want=\"{n}\"]').outerHTML.slice(0, 120)")
        for n in missed
    ]


def test_a_figure_on_a_phone_is_as_large_as_its_type_needs_and_scrolls(tab, address):
    show(tab, address + "vgg_pca.html", "narrow")
    for image in tab.locator(".mnlib-figure img").all():
        natural = image.evaluate("image => image.naturalWidth")
        assert image.bounding_box()["width"] >= min(natural, 440)
    wide = tab.locator(".mnlib-figure.mnlib-wide.mnlib-more")
    assert wide.count()
    assert wide.first.evaluate("figure => (figure.scrollLeft = 999, figure.scrollLeft)") > 99


def test_a_figure_opens_and_closes_by_keyboard(tab, address):
    show(tab, address + "vgg_pca.html", "narrow")
    button = tab.locator("button.mnlib-enlarge").first
    small = button.bounding_box()["width"]
    button.focus()
    tab.keyboard.press("Enter")
    large = tab.locator("dialog.mnlib-large img")
    assert large.is_visible()
    assert large.bounding_box()["width"] > 1.5 * small
    tab.keyboard.press("Escape")
    assert not large.is_visible()


def test_a_ledger_shows_its_verdicts_on_a_phone_and_is_filtered(tab, address):
    show(tab, address + "conclusion.html", "narrow")
    chips = tab.locator("table.mnlib-ledger .mnlib-chip")
    assert chips.count() > 20
    for box in (chip.bounding_box() for chip in chips.all()[:20]):
        assert 0 <= box["x"] < box["x"] + box["width"] <= 390
    rows = tab.locator("table.mnlib-ledger").first.locator("tbody tr")
    count = rows.count()
    tab.locator(".mnlib-filter select").first.select_option("reproduced")
    shown = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert 0 < len(shown) < count
    assert not any("with remark" in text or "not reproduced" in text for text in shown)


def test_a_link_shows_what_it_leads_to(tab, address):
    show(tab, address + "inverted_residual_ode.html")
    link = tab.locator(".bd-article a.internal[href*='#equation-']").first
    link.scroll_into_view_if_needed()
    link.focus()
    tab.wait_for_selector(".mnlib-preview mjx-container")
    tab.keyboard.press("Escape")
    assert tab.locator(".mnlib-preview").count() == 0
    link = tab.locator(".bd-article a.internal[href*='.html#sec-']").first
    link.focus()
    tab.wait_for_selector(".mnlib-preview :is(h1, h2, h3)")


def test_a_page_says_what_it_is(tab, address):
    show(tab, address + "vgg_pca.html")
    about = {
        key: tab.get_attribute(f"meta[{key}]", "content")
        for key in ('name="description"', 'property="og:title"', 'property="og:description"')
    }
    assert all(len(text) > 20 for text in about.values()), about
    assert tab.get_attribute("link[rel*=icon]", "href").startswith("_static/favicon.svg")


def test_print_has_no_empty_box_and_cuts_nothing(tab, address):
    for page in ("vgg_pca.html", "conclusion.html"):
        show(tab, address + page)
        tab.emulate_media(media="print")
        tab.set_viewport_size({"width": 720, "height": 1000})  # A4 within its margins
        empty = tab.evaluate(
            """() => [...document.querySelectorAll('.bd-article :is(.cell, .cell_input, details)')]
            .filter(e => e.getBoundingClientRect().height > 4 && !e.innerText.trim()
                         && !e.querySelector('img')).map(e => e.outerHTML.slice(0, 200))"""
        )
        code = tab.evaluate(
            """() => [...document.querySelectorAll('.bd-article pre')].filter(e =>
            e.scrollWidth > e.clientWidth + 2).map(e => e.outerHTML.slice(0, 200))"""
        )
        tab.emulate_media(media="screen")
        assert not empty + code


@pytest.mark.parametrize("page", PAGES)
def test_a_page_weighs_under_a_megabyte_and_a_half_without_its_pictures(tab, address, page):
    sizes = {}

    def weigh(answer):
        if answer.request.resource_type != "image":
            path = SITE / urlparse(answer.url).path.lstrip("/")
            sizes[path.relative_to(SITE).as_posix()] = path.stat().st_size

    tab.on("response", weigh)
    show(tab, address + page)
    tab.wait_for_load_state("networkidle")
    tab.remove_listener("response", weigh)
    assert len(sizes) > 20
    assert sum(sizes.values()) < 1.5e6, sorted(sizes.items(), key=lambda item: -item[1])[:9]
