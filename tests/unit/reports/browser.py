"""Chromium without a window: what it complains of, and how wide a page really is."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
without_browser = pytest.mark.skipif(PROGRAM is None, reason="no chromium here (apt install chromium)")
MEASURE = """
<script>addEventListener("load", () => {
  const wide = document.documentElement.scrollWidth, cut = [];
  for (const one of document.querySelectorAll("h1,h2,h3,p,li,dd,dt,summary,figure,nav,pre,.scroll,.drawing"))
    if (one.getBoundingClientRect().right > innerWidth + 0.5)
      cut.push(one.tagName + " " + one.textContent.slice(0, 60));
  parent.postMessage({inner: innerWidth, scroll: wide, cut}, "*");
});</script>
"""
FRAME = """<!doctype html><body><pre id="found"></pre><script>
  const all = {};
  addEventListener("message", (m) => {
    all[m.data.inner] = m.data;
    document.getElementById("found").textContent = JSON.stringify(all);
  });
</script>"""


@dataclass(frozen=True)
class Shown:
    """What a browser said of a page, by width."""

    complaints: list[str]
    inner: dict[int, int]
    scroll: dict[int, int]
    cut: dict[int, list[str]]


def run(address: str) -> tuple[str, str]:
    assert PROGRAM is not None
    told = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
            "--disable-dev-shm-usage", "--window-size=1500,3000", "--virtual-time-budget=4000",
            "--dump-dom"]  # fmt: skip
    done = subprocess.run([PROGRAM, *told, address], capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, done.stderr


def opened(page: Path, place: Path, widths: tuple[int, ...]) -> Shown:
    """Returns what Chromium says of a page as it is, and its width in frames of these widths.

    A window of Chromium has 500 pixels at least, a frame as many as it is told.
    """
    dom, said = run(page.resolve().as_uri())
    assert "</html>" in dom
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    measured = policy.sub("", page.read_text()).replace("</body>", f"{MEASURE}</body>")
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border:0" srcdoc="{html.escape(measured, quote=True)}"></iframe>'
        for width in widths
    )
    wrapper = place / "frames.html"
    wrapper.write_text(f"{FRAME}{frames}</body>", encoding="utf-8")
    dom, _ = run(wrapper.resolve().as_uri())
    told = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert told is not None
    found = {int(width): about for width, about in json.loads(html.unescape(told[1])).items()}
    return Shown(
        [line for line in said.splitlines() if "CONSOLE" in line],
        {width: about["inner"] for width, about in found.items()},
        {width: about["scroll"] for width, about in found.items()},
        {width: about["cut"] for width, about in found.items()},
    )
