"""Trials as Optuna hands them out, built from their rows without its ORM; called by `storage.trial_cache`.

Optuna loads an object for every parameter, value and attribute, which is most of what a first read of a large study
takes. Here rows come as tuples, and equal distributions are one object.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial
from sqlalchemy import Float, Integer, Select, Text, bindparam, cast, literal, null, select, union_all
from sqlalchemy.orm import Session

from storage.optuna_internals import models
from storage.uncollected import uncollected

# So many trials are asked for by their ids in one statement; SQLite takes 32,766 parameters.
_CHUNK = 1000
# Of more than so many the range of their ids is asked for, where it has few others: drivers are slow with long lists.
_FEW = 100
# So many rows are fetched at a time: one by one is slow with psycopg, and all at once takes memory.
_PORTION = 200

_PARAM, _VALUE, _STEP, _USER, _SYSTEM = range(5)
_UNUSUAL = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}


@dataclass
class _Parts:
    """What hangs on one trial."""

    params: list[tuple[int, str, float, str]] = field(default_factory=list)
    values: dict[int, float] = field(default_factory=dict)
    steps: dict[int, float] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)


def heads() -> Select[Any]:
    """Trials without what hangs on them: their `trial_id`, `number`, `state`, `start` and `complete`."""
    trial = models.TrialModel
    return select(
        trial.trial_id,
        trial.number,
        trial.state,
        trial._datetime_start_utc.label("start"),
        trial._datetime_complete_utc.label("complete"),
    ).order_by(trial.trial_id)


def frozen(session: Session, rows: Iterable[Any]) -> Iterator[FrozenTrial]:
    """The trials of rows of `heads`. They were read before: what has finished by then is whole."""
    rows = list(rows)
    for first in range(0, len(rows), _CHUNK):
        chunk = rows[first : first + _CHUNK]
        with uncollected():
            parts = _parts(session, [row.trial_id for row in chunk])
            trials = [_build(row, parts[row.trial_id]) for row in chunk]
        yield from trials


def _build(row: Any, parts: _Parts) -> FrozenTrial:
    params, distributions = {}, {}
    for _place, name, value, text in sorted(parts.params):
        distributions[name] = distribution = _distribution(text)
        params[name] = distribution.to_external_repr(value)
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[value for _objective, value in sorted(parts.values.items())] or None,
        datetime_start=_local(row.start),
        datetime_complete=_local(row.complete),
        params=params,
        distributions=distributions,
        user_attrs=parts.user,
        system_attrs=parts.system,
        intermediate_values=dict(sorted(parts.steps.items())),
        trial_id=row.trial_id,
    )


@functools.lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _local(moment: datetime | None) -> datetime | None:
    """Optuna keeps UTC, and hands out local time, both without saying so."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _parts(session: Session, ids: Collection[int]) -> dict[int, _Parts]:
    found = {one: _Parts() for one in ids}
    first, last = min(ids), max(ids)
    dense = len(ids) > _FEW and last - first < 2 * len(ids)
    connection = session.connection()  # its rows are plain tuples
    given = {"first": first, "last": last} if dense else {"ids": [*ids]}
    portions = connection.execute(_hanging(dense), given).partitions(_PORTION)
    for kind, trial_id, place, name, number, text in chain.from_iterable(portions):
        parts = found.get(trial_id)
        if parts is None:
            continue
        if kind == _STEP:
            parts.steps[place] = _value(number, text)
        elif kind == _PARAM:
            parts.params.append((place, sys.intern(name), number, text))
        elif kind == _VALUE:
            parts.values[place] = _value(number, text)
        else:
            (parts.user if kind == _USER else parts.system)[sys.intern(name)] = json.loads(text)
    return found


def _value(number: float, kind: str) -> float:
    """A value as Optuna stores it: a kind stands for what is no finite number."""
    return number if kind == "FINITE" else _UNUSUAL[kind]


@functools.cache
def _hanging(dense: bool) -> Any:
    """What hangs on the trials with `ids`, or where those are `dense` on all from `first` to `last`, in one form.

    Kind, trial, place among its like, name, number, text. An enumeration stays text: making one of each takes long.
    """
    param, value, step = models.TrialParamModel, models.TrialValueModel, models.TrialIntermediateValueModel
    user, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
    unnamed, unnumbered = cast(null(), Text), cast(null(), Float(53))
    rows = (
        (_PARAM, param, param.param_id, param.param_name, param.param_value, param.distribution_json),
        (_VALUE, value, value.objective, unnamed, value.value, cast(value.value_type, Text)),
        (_STEP, step, step.step, unnamed, step.intermediate_value, cast(step.intermediate_value_type, Text)),
        (_USER, user, cast(null(), Integer), user.key, unnumbered, user.value_json),
        (_SYSTEM, system, cast(null(), Integer), system.key, unnumbered, system.value_json),
    )
    first, last = bindparam("first", type_=Integer), bindparam("last", type_=Integer)
    ids = bindparam("ids", type_=Integer, expanding=True)
    return union_all(
        *(
            select(literal(kind, Integer), table.trial_id, *columns).where(
                table.trial_id.between(first, last) if dense else table.trial_id.in_(ids)
            )
            for kind, table, *columns in rows
        )
    )
