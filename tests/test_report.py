"""The report: one file that needs no network, whose every figure a real browser draws without a complaint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from browser import CHROMIUM, look_at
from studies import OBJECTIVES, TINY, Inside, engines_disposed, place_for_a_module

import search
from search.report.page import Figures

# Its trials complete, diverge, fail and are pruned.
MOODY = OBJECTIVES / "moody.py"
TRIALS = 24
LONGEST = 2.6e6
# --ink of search/report/style.css.
INK = {"light": "rgb(27, 36, 48)", "dark": "rgb(227, 232, 238)"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a study, `tiny-1`, its report, and `draws.html`, which was written before it was confirmed."""
    with place_for_a_module(tmp_path_factory) as folder, engines_disposed():
        url = f"sqlite:///{folder / 'study.db'}"
        # Some people's folders have names wider than a phone.
        module = folder / ("experiments_" * 6) / "tiny.py"
        module.parent.mkdir()
        shutil.copy(TINY, module)
        study = search.run(module, storage=url, files=folder / "files", trials=TRIALS, workers=2, seed=1, quiet=True)
        study.report(folder / "draws.html")
        study.confirm(top=2, seeds=2, workers=2, quiet=True)
        study.report(folder / "report.html")
        yield folder


@pytest.fixture(scope="module")
def report(place: Path) -> str:
    return (place / "report.html").read_text()


def figures(report: str) -> list[dict[str, Any]]:
    """What is drawn in it."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', report, re.DOTALL)
    assert found is not None
    drawn: list[dict[str, Any]] = json.loads(found.group(1))
    return drawn


def stars(figure: dict[str, Any]) -> list[Any]:
    """Where across the best trial is."""
    return [one["x"][0] for one in figure["data"] if one.get("marker", {}).get("symbol") == "star"]


def holds(figure: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Whether a shape of the figure does, the best trial."""
    [star], axis = stars(figure), figure["layout"]["xaxis"]
    place = axis["categoryarray"].index(star) if "categoryarray" in axis else star
    return lambda shape: shape["x0"] <= place <= shape["x1"]


class TestTheFile:
    def test_it_needs_nothing_from_anywhere_else(self, report: str) -> None:
        page = re.sub(r'(<script type="text/plain" id="plotly">).*?(</script>)', r"\1\2", report, flags=re.DOTALL)
        assert re.findall(r'\b(?:src|href)="(?!#|data:)[^"]*"', page) == []
        assert re.findall(r"@import|url\(", page) == []
        assert "default-src 'none'; " in report  # and the browser sees to it
        assert report.count("Plotly.react") == 1
        assert len(report) < LONGEST

    def test_it_has_the_answer_every_section_and_every_trial(self, report: str) -> None:
        for name in ("answer", "searched", "curves", "knobs", "cost", "trials", "advice"):
            assert f'<section id="{name}"' in report
            assert f'href="#{name}"' in report
        assert report.count("unconfirmed: best of") == 0
        assert f"Save all {TRIALS} trials as CSV" in report
        titles = re.findall(r"<figcaption>(.*?)</figcaption>", report)
        assert len(titles) == len(figures(report))
        for wanted in (
            "Learning curves",
            "Best accuracy so far",
            "schedules of the best",
            "Importance",
            "lr and optimizer",
        ):
            assert any(wanted in title for title in titles), wanted
        assert any(title.startswith("accuracy by width") for title in titles)
        assert any("Which worker trained which trial" in title for title in titles)

    def test_what_fresh_seeds_have_shown_comes_first(self, place: Path, report: str) -> None:
        draws = (place / "draws.html").read_text()
        assert f"(unconfirmed: best of {TRIALS} noisy draws)" in draws
        assert "Fresh seeds" not in draws
        assert "the mean of 2 fresh seeds of trial" in report
        assert "No test split to open: " in report
        assert len(figures(report)) == len(figures(draws)) + 1
        assert "Beside these, fresh seeds of the best recipes: 16 epochs" in report

    def test_no_figure_brings_colours_of_its_own_paper(self, report: str) -> None:
        for figure in figures(report):
            assert "template" not in figure["layout"]
            assert "paper_bgcolor" not in figure["layout"]


class TestText:
    HOSTILE = '<script>alert(1)</script> & "quotes" </script><!--'

    def test_the_shaded_region_of_every_knob_holds_the_best_trial(self, place: Path) -> None:
        drawn = figures((place / "draws.html").read_text())
        shaded = [one for one in drawn if one["layout"].get("shapes") and stars(one)]
        assert len(shaded) > 5
        assert [one["layout"]["xaxis"] for one in shaded if not any(map(holds(one), one["layout"]["shapes"]))] == []

    def test_a_short_range_of_whole_numbers_has_no_halves(self, report: str) -> None:
        axes = [one["layout"]["xaxis"] for one in figures(report)]
        assert [axis["dtick"] for axis in axes if axis.get("range") == [3.84, 8.16]] == [1], "of the width"

    def test_what_others_wrote_is_shown_and_never_run(self, inside: Inside, sqlite_url: str, tmp_path: Path) -> None:
        (tmp_path / "rude.py").write_text(
            "from search import Objective\n"
            "def train(run):\n"
            f"    run.trial.suggest_categorical('kind', ['plain', {self.HOSTILE!r}])\n"
            "    for _ in run.epochs:\n        run.report(loss=0.5)\n"
            f"    if run.trial.number % 2: raise ValueError({self.HOSTILE!r})\n"
            "objective = Objective(train=train, metric='loss', epochs=2)\n"
        )
        at = ("--storage", sqlite_url)
        inside("run", tmp_path / "rude.py", "--trials", 2, "--workers", 1, *at)
        said = inside("report", "-o", tmp_path / "rude.html", *at)
        assert said.status == 0, said.err
        page = (tmp_path / "rude.html").read_text()
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert page.count("<script") == page.count("</script>") == 3

    def test_a_name_is_no_markup_for_a_figure_either(self) -> None:
        link = '<a href="https://elsewhere.org">adam</a> & <b>co</b>'
        made = go.Figure(go.Bar(x=[1], y=[link], name=link, hovertemplate="%{y}<br>%{x}<extra></extra>"))
        made.update_xaxes(title=link, ticktext=[link], tickvals=[1])
        figures = Figures()
        figures.place(made)
        [drawn] = json.loads(figures.json)
        shown = '&lt;a href="https://elsewhere.org"&gt;adam&lt;/a&gt; &amp; &lt;b&gt;co&lt;/b&gt;'
        [bar] = drawn["data"]
        assert (bar["y"], bar["name"], drawn["layout"]["xaxis"]["ticktext"]) == ([shown], shown, [shown])
        assert drawn["layout"]["xaxis"]["title"] == {"text": shown}
        assert bar["hovertemplate"] == "%{y}<br>%{x}<extra></extra>"  # our own


class TestTheCommand:
    def test_it_names_the_file_after_the_study(self, inside: Inside, place: Path, tmp_path: Path) -> None:
        said = inside("report", "--storage", f"sqlite:///{place / 'study.db'}")
        assert re.fullmatch(rf"tiny-1.html: {TRIALS} trials of tiny-1, \d\.\d MB\n", said.out)
        assert (tmp_path / "tiny-1.html").read_text().startswith("<!DOCTYPE html>")

    def test_of_a_confirmation_it_is_of_the_study_that_is_confirmed(self, inside: Inside, place: Path) -> None:
        at = ("--storage", f"sqlite:///{place / 'study.db'}")
        said = inside("report", "tiny-1-confirm", "-o", "again.html", *at)
        assert said.out.startswith(f"again.html: {TRIALS} trials of tiny-1, ")
        assert inside("advise", "tiny-1-confirm", *at).out.startswith("tiny-1: ")

    def test_what_cannot_be_written_is_said_before_anything_is_drawn(
        self, inside: Inside, place: Path, tmp_path: Path
    ) -> None:
        at = ("--storage", f"sqlite:///{place / 'study.db'}")
        for output in (tmp_path, tmp_path / "missing" / "report.html"):
            said = inside("report", "-o", output, *at)
            assert (said.status, said.out) == (2, "")
            assert said.err.startswith(f"dialin: cannot write {output}: ")

    def test_a_study_without_a_trial_says_so(self, inside: Inside, either_url: str) -> None:
        at = ("--storage", either_url)
        assert inside("run", TINY, "--trials", 1, "--workers", 1, *at).status == 0
        assert inside("report", "-o", "tiny.html", *at).status == 0  # one is enough, on either database
        with engines_disposed():
            empty_study(either_url)
        for command in ("report", "advise"):
            said = inside(command, "empty", *at)
            assert said.status == 1
            assert said.err.startswith("dialin: empty has no ")


def empty_study(url: str) -> None:
    from storage_places import SPEC

    from storage import studies
    from storage.shared import open_storage

    studies.create(open_storage(url), SPEC, name="empty", stem="")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
class TestInABrowser:
    @pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
    def test_every_figure_is_drawn_and_nothing_is_wrong(
        self, place: Path, report: str, tmp_path: Path, scheme: str, width: int
    ) -> None:
        options = [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"]
        page = look_at(place / "report.html", tmp_path, options, width)
        assert page.console == ()
        count = len(figures(report))
        # Every figure, in the ink of the scheme, and nothing to scroll sideways.
        told = {"failed": "", "drawn": str(count), "shown": str(count), "beyond": "0", "ink": INK[scheme]}
        assert page.told == told
