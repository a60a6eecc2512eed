"""What is taken out of the site's style sheets and pages is what nothing names."""

import importlib.util
from pathlib import Path

import pytest
from pygments.styles import get_style_by_name
from pygments.token import Name, Punctuation, Text, Whitespace

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("light_pages", ROOT / "book/_ext/light_pages.py")
light_pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(light_pages)


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        ("a, .b .c, .b > i {d: e}", "a,.b > i{d: e}"),
        ("/* .b {} */ .c {d: e}", ""),
        (".b:not(.c), .b:is(.c, i) {d: e}", ".b:not(.c),.b:is(.c, i){d: e}"),
        (":is(.b, i:not(.c)), .c {d: e}", ":is(.b, i:not(.c)){d: e}"),
        ("@import 'x'; .c {d: e} .b {f: g}", "@import 'x';.b{f: g}"),
        ("@media print {.c {d: e} .b {f: g}} @media all {.c {}}", "@media print{.b{f: g}}"),
        ("@keyframes c {0% {d: e} to {f: g}}", "@keyframes c{0% {d: e} to {f: g}}"),
        (".bs-tip-auto, .bs {d: e}", ".bs-tip-auto{d: e}"),
    ],
)
def test_a_style_sheet_keeps_what_pages_and_scripts_name(css, kept):
    assert light_pages.shaken(css, {"b", "bs-"}) == kept


def test_but_for_operators_what_loses_its_mark_up_in_code_has_the_colour_of_plain_text():
    line = '<span class="n">a</span><span class="w"> </span><span class="o">=</span>'
    assert light_pages.PLAIN.sub(r"\1", line) == "a ="
    for name in ("a11y-high-contrast-light", "a11y-high-contrast-dark"):
        style = get_style_by_name(name)
        colours = {style.style_for_token(t)["color"] for t in (Text, Name, Punctuation, Whitespace)}
        assert len(colours) == 1
