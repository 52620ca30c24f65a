"""The report in a real browser, headless: it is alive, throws no error, and can be read on a small screen."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.released_table import KEEP, dag_of_paper, released_table, report_of
from tests.helpers.synthetic import dag_of, make

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
OPTIONS += ("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr")
GRID = [{"hidden": 32, "experts": [4, 8, 16, 32], "topk": 2}, {"hidden": 32, "experts": 32, "topk": 8}]
DRAWN = ("finding", "task_loss_by_loss")

# What a reader would do, and what becomes of it; written into the page, since its policy lets nothing else in.
SCRIPT = """
<script>
addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });
addEventListener("unhandledrejection", (event) => { document.documentElement.dataset.error = String(event.reason); });
setTimeout(() => {
  const seen = {};
  const table = document.querySelector("table[data-name='the grid']");
  const heading = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === "E");
  table.tHead.rows[0].cells[heading].querySelector("button").click();
  seen.up = [...table.tBodies[0].rows].map((row) => Number(row.cells[heading].textContent));
  table.tHead.rows[0].cells[heading].querySelector("button").click();
  seen.down = [...table.tBodies[0].rows].map((row) => Number(row.cells[heading].textContent));
  const claims = document.querySelector("table[data-name=claims]");
  const filter = document.querySelector("input[aria-label='filter rows of claims']");
  filter.value = "training loss falls";
  filter.dispatchEvent(new Event("input"));
  seen.filtered = [...claims.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.textContent);
  seen.claims = claims.tBodies[0].rows.length;
  seen.charts = document.querySelectorAll(".alive .chart svg.marks").length;
  const places = [...document.querySelectorAll(".chart svg")[0].querySelectorAll(".role-title-text text")];
  seen.columns = new Set(places.map((title) => Math.round(title.getBoundingClientRect().x / 20))).size;
  seen.scrolled = [...document.querySelectorAll(".alive .chart")].filter((c) => c.scrollWidth > c.clientWidth).length;
  seen.width = document.documentElement.scrollWidth;
  seen.screen = document.documentElement.clientWidth;
  const mark = document.querySelector(".chart svg .mark-symbol path[aria-label]");
  const place = mark.getBoundingClientRect();
  mark.dispatchEvent(new MouseEvent("mousemove", { bubbles: true, clientX: place.x + 3, clientY: place.y + 3 }));
  mark.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: place.x + 3, clientY: place.y + 3 }));
  setTimeout(() => {
    seen.hover = document.querySelector("#vg-tooltip-element")?.textContent || "";
    mark.dispatchEvent(new MouseEvent("click", { bubbles: true, clientX: place.x + 3, clientY: place.y + 3 }));
    seen.ink = getComputedStyle(document.body).color;
    setTimeout(() => {
      seen.target = document.querySelector(":target")?.textContent || "";
      const result = document.createElement("pre");
      result.id = "seen";
      result.textContent = JSON.stringify(seen);
      document.body.append(result);
    }, 300);
  }, 300);
}, 2500);
</script>
"""

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (Debian package chromium)")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of invented results, with the reader's doings in it."""
    made = make(tmp_path_factory.mktemp("results"), dag_of(*GRID), drawn=DRAWN)
    path = made / "report" / "report.html"
    played = path.with_name("played.html")
    text = path.read_text()
    played.write_text(text.replace("<style>", f"{SCRIPT}<style>", 1))
    return played


def visit(page: Path, profile: Path, width: int, *options: str) -> tuple[dict[str, Any], str]:
    """What was seen, and what the browser's console said."""
    where = (f"--user-data-dir={profile}", f"--window-size={width},900", "--virtual-time-budget=9000", "--dump-dom")
    command = [CHROMIUM, *OPTIONS, *options, *where, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    match = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, "\n".join(said)
    text = match[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    return json.loads(text), "\n".join(said)


@pytest.fixture(scope="module")
def seen(page: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return visit(page, tmp_path_factory.mktemp("profile"), 1280)


def test_the_console_says_nothing(seen: tuple[dict[str, Any], str]) -> None:
    assert seen[1] == ""


def test_figures_are_drawn_and_their_points_lead_to_records(seen: tuple[dict[str, Any], str]) -> None:
    assert seen[0]["charts"] == len(DRAWN) + 1, "and when each job ran"
    assert "record.json" in seen[0]["target"] and "d32-E" in seen[0]["target"]


def test_a_point_says_its_model_and_value(seen: tuple[dict[str, Any], str]) -> None:
    for word in ("d32-k2, E ", "seeds", "record"):
        assert word in seen[0]["hover"]


def test_tables_sort_both_ways_and_filter(seen: tuple[dict[str, Any], str]) -> None:
    assert seen[0]["up"] == sorted(seen[0]["up"]) and len(set(seen[0]["up"])) == 4
    assert seen[0]["down"] == sorted(seen[0]["down"], reverse=True)
    assert 0 < len(seen[0]["filtered"]) < seen[0]["claims"]
    assert all(word in row.lower() for row in seen[0]["filtered"] for word in ("training", "loss", "falls"))


def test_a_small_dark_screen_scrolls_down_only(page: Path, seen: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    small, said = visit(page, tmp_path, 400, "--blink-settings=preferredColorScheme=0")
    assert small["width"] <= small["screen"] <= 500 and said == ""
    assert small["charts"] == seen[0]["charts"] and small["scrolled"] == 0
    assert seen[0]["columns"] == 2 and small["columns"] == 1, "panels beside each other, and below each other"
    assert small["ink"] == "rgb(230, 237, 243)"


@pytest.mark.slow
def test_the_page_of_the_papers_models_is_small_and_all_of_it_is_drawn(tmp_path: Path) -> None:
    """All 65 models with intermediate checkpoints, GRPO and every evaluation; a minute and a half of drawing."""
    dag = dag_of_paper("math", KEEP)
    path = report_of(dag, released_table(dag), tmp_path / "made")
    assert path.stat().st_size < 5_000_000
    described = json.loads((path.parent / "figures" / "figures.json").read_text())
    path.write_text(path.read_text().replace("<style>", f"{SCRIPT}<style>", 1))
    seen, said = visit(path, tmp_path / "profile", 1280)
    assert seen["charts"] == len(described) + 1 > 13 and said == ""
