"""The files of a report: pictures, page, JSON."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from hansa.core.errors import PluginError
from hansa.report import ReportContext, summarise, write_report
from hansa.report.headline import cards, headline

LOCK = "name: smol-chem\nnote: '</code></pre><img src=http://evil.example/x>'\n"


class Resources(HTMLParser):
    """Collects what a browser would load, and all elements."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [v for k, v in attrs if k in {"src", "href", "srcset", "data"}]


@pytest.fixture(scope="module")
def written(harbour_events, tmp_path_factory):
    where = tmp_path_factory.mktemp("report")
    summary = summarise(harbour_events, ReportContext(strategy="fedavg"))
    return write_report(summary, harbour_events, LOCK, where / "deep" / "report")


def test_files(written):
    assert [path.name for path in written] == [
        "index.html", "cost.png", "loss.png", "report.json", "tasks.png",
        "timeline.png",
    ]  # fmt: skip
    assert sorted(path.name for path in written[0].parent.iterdir()) == sorted(
        path.name for path in written
    )
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
    assert json.loads(written[3].read_text())["strategy"] == "fedavg"


def test_the_page_loads_nothing(written):
    text = written[0].read_text()
    parser = Resources()
    parser.feed(text)
    assert len(parser.found) == 4
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in parser.found)
    assert not {"script", "link", "iframe", "object", "form"} & set(parser.tags)
    assert "@import" not in text
    assert not re.search(r"url\(", text)


def test_words_from_facilities_and_files_are_escaped(written):
    text = written[0].read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(" in text
    assert "<img src=http" not in text
    assert "&lt;/code&gt;&lt;/pre&gt;&lt;img src=http://evil.example" in text


def test_the_page_says_what_matters(written):
    text = written[0].read_text()
    assert "12.5% below the best local model (polaris)" in text
    assert "18 of 20" in text
    assert "resumed 2 times" in text
    assert "hansa run runs/smol-chem/federation.lock.yaml" in text
    assert "6" * 64 in text


def test_the_same_events_give_the_same_bytes(make_fleet, tmp_path):
    events = make_fleet(2, 2, tasks=2)
    summary = summarise(events)
    one = write_report(summary, events, LOCK, tmp_path / "one")
    two = write_report(summary, events, LOCK, tmp_path / "two")
    for left, right in zip(one, two, strict=True):
        assert left.read_bytes() == right.read_bytes(), left.name


def test_a_run_that_only_began_has_a_page(new_story, tmp_path):
    events = new_story().sorted()
    paths = write_report(summarise(events), events, "", tmp_path)
    text = paths[0].read_text()
    assert "unfinished" in text
    assert "no version was measured" in text
    assert {path.name for path in paths} == {"index.html", "report.json"}


@pytest.mark.parametrize(
    ("facilities", "versions", "tasks"), [(1, 1, 1), (20, 2, 30), (8, 60, 2)]
)
def test_pictures_of_any_size(make_fleet, tmp_path, facilities, versions, tasks):
    events = make_fleet(facilities, versions, tasks=tasks)
    paths = write_report(summarise(events), events, "", tmp_path)
    assert {path.name for path in paths} >= {"loss.png", "tasks.png", "timeline.png"}
    assert all(path.stat().st_size < 5_000_000 for path in paths)


def test_odd_numbers_and_names_can_be_drawn(new_story, tmp_path):
    story = new_story(facilities=("a",))
    story.version(0, 0)
    story.evaluated(1, 0, 30.0, "a")
    story.update(5, "train-0001-a-1", "a", loss=float("nan"))
    story.version(6, 1, "train-0001-a-1")
    story.evaluated(7, 1, float("inf"), "a")
    story.update(8, "train-0002-a-1", "a", base=1, loss=0.5)
    story.version(9, 2, "train-0002-a-1")
    story.evaluated(10, 2, 0.4, "a")
    events = story.sorted()
    paths = write_report(summarise(events), events, "", tmp_path)
    assert "loss.png" in {path.name for path in paths}
    json.loads((tmp_path / "report.json").read_text())


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_extra_it_says_what_to_install(
    harbour_events, tmp_path, monkeypatch, missing
):
    for name in [name for name in sys.modules if name.startswith("hansa.report.")]:
        if name.endswith(("html", "plots")) or ".figures" in name:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("hansa.report.figures", raising=False)
    monkeypatch.delattr("hansa.report.html", raising=False)
    monkeypatch.delattr("hansa.report.plots", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(PluginError, match=missing) as caught:
        write_report(summarise(harbour_events), harbour_events, "", tmp_path)
    assert "hansa[report]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_figures_need_no_extra():
    code = "import sys, hansa.report; sys.exit(bool({'matplotlib', 'jinja2'} & "
    code += "set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_headline_of_a_worse_global_model(new_story):
    story = new_story()
    story.version(0, 0)
    story.evaluated(1, 0, 2.0, "polaris")
    story.update(5, "train-0001-polaris-1", "polaris", loss=1.0)
    story.version(6, 1, "train-0001-polaris-1")
    story.evaluated(7, 1, 1.1, "polaris")
    summary = summarise(story.sorted())
    assert "10.0% above the best local model (polaris)" in headline(summary)
    assert "1 new version of" in headline(summary)
    assert cards(summary)[0].value == "1.1000"
