"""What stands in a report, from the answer to the advice; each function is one section."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Iterator

from search import advice_text, cost_table, printing, trial_table
from search.knobs import Knob
from search.report import figures, knob_figures, run_figures
from search.report.answer import answer
from search.report.data import ReportData
from search.report.markup import command, paragraph, section, table, text
from storage.outcomes import Outcome
from storage.words import counted

Place = Callable[..., str]

# So many trials are listed, the best first; all of them are in the table that can be saved.
LISTED = 50
# So many go into the file as CSV: 400 bytes each.
CARRIED = 1000
FAILURES = (Outcome.ERROR, Outcome.OUT_OF_MEMORY, Outcome.LOST, Outcome.DIVERGED)


def titles(data: ReportData) -> list[tuple[str, str]]:
    """Names and headings of the sections, for the links at the top."""
    found = [
        ("answer", "The answer"),
        ("searched", "What was searched"),
        ("curves", "Curves"),
        ("knobs", "Knobs"),
        ("cost", "Cost"),
    ]
    if _failed(data):
        found.append(("failures", "Failures"))
    return [*found, ("trials", "Trials"), ("advice", "Advice")]


def all_of(data: ReportData, place: Place) -> Iterator[str]:
    """Every section, in this order. `place` gives a figure its place in the page."""
    named = dict(titles(data))
    yield answer(data, place, named["answer"])
    yield _searched(data, named["searched"])
    yield _curves(data, place, named["curves"])
    yield _knobs(data, place, named["knobs"])
    yield _cost(data, place, named["cost"])
    if "failures" in named:
        yield _failures(data, named["failures"])
    yield _trials(data, named["trials"])
    yield _advice(data, named["advice"])


def lead(data: ReportData) -> str:
    """What study it is, and its figures at a glance."""
    study, status = data.study, data.status
    words = (
        f"{study.direction} {study.metric} of {study.objective}, {printing.length(study)}, {printing.strategy(study)}"
    )
    best = (printing.number(data.best[0].value) if data.best else "-", f"best {study.metric}")
    if data.answer is not None and data.answer.winner is not None:
        best = printing.number(data.answer.winner.mean.estimate), f"mean {study.metric}, confirmed"
    facts = [
        best,
        (printing.progress(status), printing.state_of(status)),
        (printing.duration(data.cost.total.device_seconds), "device time"),
        (f"{data.cost.total.epochs:,}", "epochs trained"),
        (f"{data.cost.pruning.epochs + data.cost.patience.epochs:,}", "epochs spared"),
        (cost_table.size(data.cost.total.peak_memory), "peak memory"),
    ]
    shown = "".join(f"<div><b>{text(value)}</b><span>{text(what)}</span></div>" for value, what in facts)
    return f'{paragraph(words, "soft")}\n<div class="facts">{shown}</div>'


def _searched(data: ReportData, title: str) -> str:
    had = Counter(name for one in data.trials for name in one.params)
    drawn = sum(1 for one in data.trials if one.params)
    own = {name for one in data.trials for name in one.model}
    rows = [
        (
            knob_figures.title_of(name),
            Knob(name, distribution).range,
            "model" if name in own else "recipe",
            "all trials" if had[name] == drawn else f"{had[name]} of {drawn}",
        )
        for name, distribution in data.distributions.items()
    ]
    told = [
        ("Narrowed to", printing.narrowing(data.study)),
        ("Limits", printing.limits(data.study)),
        ("First trials", printing.first_trials(data.first)),
    ]
    lines = "".join(paragraph(f"{what}: {said}") for what, said in told if said)
    body = table(("knob", "range", "of the", "sampled in"), rows) if rows else paragraph("nothing is sampled yet")
    return section("searched", title, body, lines, paragraph(f"Seed {data.study.seed}.", "soft"))


def _curves(data: ReportData, place: Place, title: str) -> str:
    drawn = (figures.learning_curves(data), figures.best_so_far(data), run_figures.schedules(data))
    body = "\n".join(place(one) for one in drawn if one is not None)
    return section("curves", title, body or paragraph("No epoch has a value yet."), page=True)


def _knobs(data: ReportData, place: Place, title: str) -> str:
    importance = place(knob_figures.importance(data))
    count = counted(len(data.evidence.judged), "trial")
    note = (
        f"How much of the differences between {count} each knob explains, of the knobs that every trial has (fANOVA). "
        "Pruned trials count too: each by the share of the others that it beats at the last epoch that both have "
        "reached. Small differences mean nothing."
    )
    pairs = [place(knob_figures.pair(data, "lr", other)) for other in ("optimizer", "batch_size")]
    slices = "".join(place(one, half=True) for _, one in knob_figures.slices(data))
    told = "Blue dots are complete trials, grey ones were stopped early; shaded is where most of the best trials lie."
    grid = f'<h3>Each knob</h3>{paragraph(told, "soft")}<div class="grid">{slices}</div>' if slices else ""
    nothing = "" if importance or slices or any(pairs) else paragraph("Too few trials to tell knobs apart.")
    said = paragraph(note, "soft") if importance else ""
    return section("knobs", title, importance, said, *pairs, grid, nothing, page=True)


def _cost(data: ReportData, place: Place, title: str) -> str:
    body = table(cost_table.HEADINGS, cost_table.rows(data.cost), range(1, len(cost_table.HEADINGS)))
    spared = cost_table.saved_line(data.cost)
    bars, lanes = place(run_figures.saved(data)), place(run_figures.timeline(data))
    handed = printing.handovers_line(data.status)
    told = "".join(paragraph(one) for one in (spared, handed, _again(data)) if one)
    return section("cost", title, body, told, bars, lanes, page=True)


def _again(data: ReportData) -> str:
    """What a confirmation has cost beside the search; empty without one."""
    if data.again is None:
        return ""
    time = printing.duration(data.again.device_seconds)
    return f"Beside these, fresh seeds of the best recipes: {data.again.epochs:,} epochs, {time} of device time."


def _failed(data: ReportData) -> list[tuple[str, str, int, int]]:
    """Outcome, reason, how many trials and the last of them, the most frequent first."""
    kinds: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], int] = {}
    for one in data.trials:
        if one.outcome in FAILURES:
            kind = one.state.replace("_", " "), one.reason
            kinds[kind] += 1
            last[kind] = one.number
    return [(*kind, count, last[kind]) for kind, count in kinds.most_common()]


def _failures(data: ReportData, title: str) -> str:
    rows = [(outcome, count, reason, number) for outcome, reason, count, number in _failed(data)]
    body = table(("outcome", "trials", "reason", "last trial"), rows, (1, 3), wide=2)
    return section("failures", title, body, command(f"dialin logs {data.study.name} {rows[0][3]}"))


def _trials(data: ReportData, title: str) -> str:
    order = {data.evidence.judged[index].number: place for place, index in enumerate(data.evidence.ranked)}
    lines = sorted(data.lines, key=lambda line: (order.get(line.number, len(order)), line.number))[:LISTED]
    rows = [
        (
            line.number,
            line.state.replace("_", " "),
            printing.number(line.value),
            line.cost.epochs,
            f"{line.cost.seconds:.1f} s",
            trial_table.in_words(line),
        )
        for line in lines
    ]
    heading = ("trial", "outcome", data.study.metric, "epochs", "time", "knobs")
    body = table(heading, rows, (0, 2, 3, 4), wide=5)
    which = "All trials" if len(data.lines) <= LISTED else f"The best {LISTED} of {len(data.lines)} trials"
    listed = f"<details><summary>{which}, the best first</summary>{body}</details>"
    return section("trials", title, listed, _saved(data))


def _saved(data: ReportData) -> str:
    """A link to all of them as CSV, which the file carries; of very many the command that writes it."""
    if len(data.lines) > CARRIED:
        return command(f"dialin trials {data.study.name} -o trials.csv")
    saved = base64.b64encode(trial_table.as_csv(data.lines).encode()).decode()
    return (
        f'<p class="screen"><a download="{text(data.study.name)}.csv" href="data:text/csv;base64,{saved}">'
        f"Save all {len(data.lines)} trials as CSV</a></p>"
    )


def _advice(data: ReportData, title: str) -> str:
    advice = data.advice
    items = []
    for finding in advice.findings:
        acts = "".join(
            command(one) if one.startswith(advice_text.COMMANDS) else paragraph(f"Edit: {one}")
            for one in finding.actions
        )
        items.append(f"<li><b>{text(finding.says)}</b>{paragraph(finding.evidence, 'soft')}{acts}</li>")
    body = f'<ol class="advice">{"".join(items)}</ol>' if items else paragraph("Nothing to advise from these trials.")
    if advice.together:
        body += paragraph("All of these searches in one:") + command(advice.together)
    later = [f"{rule.asks} ({rule.least})" for rule in advice.not_asked]
    told = f"Not looked at yet, since they want more trials than {advice.judged}: {'; '.join(later)}." if later else ""
    return section("advice", title, body, paragraph(told, "soft") if told else "", page=True)
