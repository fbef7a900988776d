"""The answer of a confirmation in words: a table of recipes, which of them tie, which is preferred, what the test says.

Printed by `dialin confirm`; `dialin status` and `dialin best` take single lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from search import printing
from search.confirmation import Confirmation, Confirmed, mean_on_test
from search.intervals import LEVEL, Interval
from search.ranking import confirmed_as_record, spread
from storage.confirmed import Opened
from storage.outcomes import Outcome
from storage.studies import StudyRecord
from storage.words import counted

BETWEEN = f"{LEVEL:.0%} interval"
HEADINGS = ("rank", "trial", "mean", BETWEEN, "seeds", "in the search", "seconds")


def print_answer(console: Console, answer: Confirmation, study: StudyRecord, settled: int) -> None:
    """All of it. `settled`: trials of the search, whose best the values seen there are."""
    title = f"{answer.study}: {answer.metric} with fresh seeds"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows(answer):
        table.add_row(*row)
    console.print(table)
    for one in answer.recipes:  # not in the table, where a terminal leaves them no room
        printing.say(console, f"trial {one.trial}: {printing.full_recipe(one.found)}")
    for line in lines(answer, study, settled):
        printing.say(console, line)


def rows(answer: Confirmation) -> Iterator[tuple[str, ...]]:
    """A row for each recipe, the preferred one first."""
    for rank, one in enumerate(answer.recipes, start=1):
        between = f"{_number(one.mean.low)} to {_number(one.mean.high)}" if one.is_confirmed else "-"
        mean = _number(one.mean.estimate) if one.values else "-"
        yield str(rank), str(one.trial), mean, between, _seeds(one), _number(one.found.value), f"{one.seconds:.1f}"


def lines(answer: Confirmation, study: StudyRecord, settled: int) -> Iterator[str]:
    """What follows from the table, a sentence a line."""
    winner = answer.winner
    for one in answer.recipes:
        if one.ended:
            yield f"trial {one.trial} has failed: {_ended(one)}"
        if one.violating:
            seeds = counted(len(one.values), "seed")
            yield f"trial {one.trial} does not keep to the constraints: of {seeds} {one.violating} violate one"
    if winner is None:
        least = "no recipe has two seeds that were trained to their end, so nothing can be said of any"
        yield f"{least}: see `dialin status {answer.name}`"
        return
    if len(answer.confirmed) > 1:
        yield _verdict(answer)
    yield from _preference(answer)
    if _is_worse(winner.found.value, winner.mean, answer.direction):
        value = _number(winner.found.value)
        yield f"the search saw {value} of trial {winner.trial}: the {_drawn(settled)}"
    if all(_agree(one) for one in answer.confirmed):
        yield "all seeds of a recipe gave the same value: the metric can get no better, or the objective seeds itself"
    yield _method(answer)
    yield from _test(answer, study)


def _verdict(answer: Confirmation) -> str:
    """Whether the best mean can be told from the others'."""
    best = answer.best
    assert best is not None
    if answer.ties:
        return _tie(best, answer.ties)
    others_ = [one for one in answer.confirmed if one is not best]
    following = min(others_, key=lambda one: (one.unfit, one.behind.estimate if one.behind else 0.0))
    if following.unfit > best.unfit:
        return f"trial {best.trial} is preferred to the others, of which more seeds failed or violate a constraint"
    return f"trial {best.trial} is better than every other: {_behind(following)}"


def _tie(best: Confirmed, ties: Sequence[Confirmed]) -> str:
    """Of one or several, the nearest first."""
    equal = [one for one in ties if one.equals(best)]
    others = [one for one in ties if one not in equal]
    listed = _listed([str(one.trial) for one in others])
    if not equal:
        return f"trial {best.trial} has the best mean, but cannot be told from trial {listed}: {_behind(others[0])}"
    same = f"trials {_listed([str(one.trial) for one in (best, *equal)])} have the same mean"
    return f"{same}, and cannot be told from trial {listed}: {_behind(others[0])}" if others else same


def _behind(one: Confirmed) -> str:
    gap = one.behind
    assert gap is not None
    return f"trial {one.trial} is behind by {_gap(gap.estimate)} ({BETWEEN} {_gap(gap.low)} to {_gap(gap.high)})"


def _preference(answer: Confirmation) -> Iterator[str]:
    winner, best = answer.winner, answer.best
    if winner is None or best is None or not answer.ties:
        return
    cheaper = [str(one.trial) for one in answer.ties if one.is_cheaper(best)]
    if winner is not best:
        costs = f"{_seconds(winner.seconds)} a seed, trial {best.trial} {_seconds(best.seconds)}"
        yield f"preferred: trial {winner.trial}, which is cheaper: it takes {costs}"
    elif cheaper:
        yield f"preferred: trial {best.trial}, as the mean of trial {_listed(cheaper)}, cheaper, is not in its interval"
    else:
        yield f"preferred: trial {best.trial}, as none of these is surely cheaper by a tenth"


def _method(answer: Confirmation) -> str:
    """How the intervals are made."""
    how = "intervals: of means Student's t over seeds"
    count = len(answer.confirmed) - 1
    if count > 0:
        how += ", of differences Welch's t"
    if count > 1:
        how += f", all {count} at once (Bonferroni)"
    if answer.resolution and any(_agree(one) for one in answer.confirmed):
        how += f"; values of {answer.metric} lie {_gap(answer.resolution)} apart, and equal ones may differ by as much"
    return how


def _agree(one: Confirmed) -> bool:
    return len({*one.values.values()}) == 1


def _test(answer: Confirmation, study: StudyRecord) -> Iterator[str]:
    said, winner = answer.test, answer.winner
    assert winner is not None
    if said is None:
        if answer.finished:
            yield f"the test split is closed: {printing.confirm_command(study)} opens it for trial {winner.trial}"
        return
    if said.models is None:
        yield f"no test split to open: {said.why}"
        return
    yield test_line(said, answer)


def test_line(said: Opened, answer: Confirmation) -> str:
    """`test split, opened once, for trial 7: accuracy 0.9812, 95% interval ...`."""
    looks = [one.recipe for one in answer.tests if one.models is not None]
    when = "opened once" if len(looks) == 1 else f"opened for {counted(len(looks), 'recipe')} by now"
    mean, count = mean_on_test(said, answer.metric), len(said.models or {})
    value = "is no number" if mean is None else _number(mean.estimate)
    between = f", {BETWEEN} {_number(mean.low)} to {_number(mean.high)}" if mean is not None and count > 1 else ""
    if mean is not None and mean.low == mean.high:
        between = " by each"
    return (
        f"test split, {when}, for trial {said.recipe}: {answer.metric} {value}{between} "
        f"({counted(count, 'model')}, {said.samples:,} samples)"
    )


def summary(answer: Confirmation) -> str:
    """One line: `accuracy 0.9889 (0.9851 to 0.9927) over 5 seeds of trial 12: RECIPE`; or how far it has got."""
    left = sum(one.left for one in answer.recipes)
    going_on = f"; {counted(left, 'trial')} left in {answer.name}" if left else ""
    winner = answer.winner
    if winner is None:
        return f"no recipe has two seeds yet{going_on}"
    seeds = counted(len(winner.values), "seed")
    recipe = printing.full_recipe(winner.found)
    return f"{answer.metric} {spread(winner)} over {seeds} of trial {winner.trial}: {recipe}{going_on}"


def as_record(answer: Confirmation) -> dict[str, Any]:
    """All of it as plain values."""
    test = answer.test
    return {
        "study": answer.name,
        "finished": answer.finished,
        "seeds": answer.seeds,
        "preferred": answer.winner.trial if answer.winner is not None else None,
        "best": answer.best.trial if answer.best is not None else None,
        "ties": [one.trial for one in answer.ties],
        "recipes": [{"trial": one.trial} | confirmed_as_record(one) for one in answer.recipes],
        "test": None
        if test is None
        else {"trial": test.recipe, "samples": test.samples, "why": test.why}
        | {"models": None if test.models is None else [*test.models.values()]},
    }


def _seeds(one: Confirmed) -> str:
    """`5`, or `3 of 5`."""
    wanted = len(one.values) + one.failed + one.left
    return str(wanted) if len(one.values) == wanted else f"{len(one.values)} of {wanted}"


def _ended(one: Confirmed) -> str:
    """`1 of 5 seeds diverged`."""
    wanted = len(one.values) + one.failed + one.left
    how = ", ".join(f"{count} {Outcome(outcome).text}" for outcome, count in one.ended.items())
    return f"of {counted(wanted, 'seed')} {how}"


def _is_worse(seen: float, mean: Interval, direction: str) -> bool:
    """Whether what the search saw is better than the mean can be."""
    return seen > mean.high if direction == "maximize" else seen < mean.low


def _drawn(settled: int) -> str:
    return f"best of {counted(settled, 'noisy draw')} is partly luck"


def _listed(words: list[str]) -> str:
    """`3`, `3 and 7`, `3, 7 and 9`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _number(value: float) -> str:
    return printing.number(value)


def _gap(value: float) -> str:
    """A difference, which may be small beside its metric."""
    return f"{value:.2g}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s"
