"""The report: one page that holds everything, from records made by the real runner to what a reader sees."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from pipeline.artifacts.store import read_record
from pipeline.dag.dag import Dag
from tests.helpers.synthetic import LOSSES_ONLY, PAIR, dag_of, in_two_ways, make

DRAWN = ("finding", "grpo_reward")


@pytest.fixture(scope="module")
def dag() -> Dag:
    return dag_of()


@pytest.fixture(scope="module")
def made(dag: Dag, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scale's folder, with table, two figures and report."""
    return make(tmp_path_factory.mktemp("results"), dag, drawn=DRAWN)


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return (made / "report" / "report.html").read_text()


def without_library(page: str) -> str:
    """The page without the library that draws the figures, which is not ours and speaks of many things."""
    return re.sub(r"<script>(?!//).*?</script>", "", page, count=1, flags=re.DOTALL)


class Page(HTMLParser):
    """What the tests ask of the page: tags closed, references, images, identifiers."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.charts: list[dict[str, str | None]] = []
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(attributes)
        if attributes.get("class") == "chart":
            self.charts.append(attributes)
        self.links |= {attributes["href"]} if "href" in attributes else set()
        self.ids |= {attributes["id"]} if "id" in attributes else set()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_every_link_stays_within_it(page):
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.links and {link.removeprefix("#") for link in parsed.links} <= parsed.ids
    own = re.sub(r"base64,[A-Za-z0-9+/=]+|>[A-Za-z0-9+/=]{99,}<", "", without_library(page))
    assert len(own) < len(page) / 2 and not re.search(r"https?://|//[a-z]", own)


def test_page_embeds_every_figure_with_an_alt_text(made, page):
    described = json.loads((made / "figures" / "figures.json").read_text())
    parsed = Page(page)
    *figures, times = [chart["aria-label"] for chart in parsed.charts]
    assert figures == [figure["alt"] for figure in described]
    assert re.fullmatch(r"14 jobs over \d.*, at most \d+ at a time", str(times))
    assert len(described) == 2
    for figure in described:
        (packed,) = re.findall(rf'<script type="text/plain" id="spec-{figure["name"]}">([\w+/=]+)</script>', page)
        assert gzip.decompress(base64.b64decode(packed)) == (made / "figures" / f"{figure['name']}.json").read_bytes()
    # Only the first screen's has its picture too.
    assert [image["alt"] for image in parsed.images] == [f["alt"] for f in described if f["name"] == "finding"]
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in parsed.images)


def test_page_shows_every_cell_of_the_wide_table_and_every_record(made, dag, page):
    wide = pd.read_csv(made / "table" / "wide.csv", dtype=str, keep_default_na=False)
    for cell in set(wide.to_numpy().ravel()) - {""}:
        assert f">{cell}<" in page
    for job in dag.inputs(dag.job("table")).values():
        assert f'id="{dag.fingerprint(job)}"' in page and job.record.as_posix() in page


def test_entries_of_one_task_are_told_apart(tmp_path):
    made = make(tmp_path, dag_of(PAIR | {"grpo": True}), in_two_ways)
    page = (made / "report" / "report.html").read_text()
    assert "sums (0 shots), exact match" in page and ">0.163 ± 0.020<" in page and ">0.362 ± 0.020<" in page
    assert "sums (first 200 items, variant authors)" in page


def test_a_scale_without_evaluations_has_a_report(tmp_path):
    page = (make(tmp_path, dag_of(PAIR, **LOSSES_ONLY)) / "report" / "report.html").read_text()
    assert "Without error bars" in page and "There is nothing to draw." in page


def test_text_from_the_configuration_cannot_become_markup(tmp_path):
    dag = dag_of(PAIR, title="<script>x</script>", **LOSSES_ONLY)
    page = (make(tmp_path, dag) / "report" / "report.html").read_text()
    assert "<script>x" not in page and "&lt;script&gt;" in page


def test_same_records_give_the_same_bytes(made, dag):
    """Run again on the same records, each stage of the analysis makes the same files."""
    before = {stage: read_record(made / stage).outputs for stage in ("table", "claims", "figures", "report")}
    for stage in before:
        for record in (made / stage).glob("*record.json"):
            record.unlink()
    make(made.parent, dag, drawn=DRAWN)
    assert {stage: read_record(made / stage).outputs for stage in before} == before
