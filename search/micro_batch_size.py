"""How many samples of a batch are trained at a time: all of them, until memory is wanting; then half, and half again.

Used by `search.steps`, which does the training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from search.exactness import Comparison
from search.failures import first_line, out_of_memory
from search.micro_batches import WontFit, count, head

# Owners of a trial killed for want of memory, one after the other, whose batches cannot be cut: a first one may have
# been killed for what a neighbour took.
KILLS_IN_A_ROW = 2

_log = logging.getLogger(__name__)


class Sizes(Protocol):
    """Remembers how many samples at a time have fitted: for how long, and for whom, is its own affair."""

    def find(self, model: str) -> int | None:
        """The size known for a model's digest; None: nothing was ever too large."""

    def keep(self, model: str, samples: int) -> None:
        """Remember that this many fit and more do not."""


class OneTrial:
    """Remembers nothing beyond a trial."""

    def find(self, model: str) -> int | None:
        return None

    def keep(self, model: str, samples: int) -> None:
        pass


class MicroBatchSize:
    """Of one trial. `size`: the most samples at a time, None while whole batches are trained. `evaluated`: the same
    for evaluation, which is the same in any batches.
    """

    def __init__(self, sizes: Sizes | None = None, kills: int = 0) -> None:
        """`kills`: so many owners before this one, in a row, were killed by the system for want of memory."""
        self._sizes, self._kills = sizes or OneTrial(), kills
        self._model: str | None = None
        self._compare: Callable[[Any], Comparison] = lambda _batch: Comparison(False)
        self._compared: Comparison | None = None
        self._kept: int | None = None
        self._goes_on = False
        self.size: int | None = None
        self.evaluated: int | None = None

    def go_on(self, size: int | None) -> None:
        """From a checkpoint of a trial that had this size: what others have found since would round otherwise."""
        self.size, self._goes_on = size, True

    def begin(self, model: str, batch: Any, compare: Callable[[Any], Comparison]) -> None:
        """Look up what is known of the model; after an owner's death for want of memory half of that.

        Called before the first batch of a network; the next fold's is of the same model.

        Args:
            model: its `search.micro_batches.digest`.
            batch: the first one.
            compare: says whether halves of a batch come to the same as the whole.

        Raises:
            WontFit: owners before this one were killed for want of memory, and nothing smaller is left to try.
        """
        self._compare = compare
        if model == self._model:
            return
        self._model = model
        known = self._kept = self._sizes.find(model)
        if self._goes_on and not self._kills:
            return
        if self._kills:
            known = self._after_kills(known, batch)
        if known is None or (self.size is not None and self.size <= known):
            return
        samples = count(batch)
        if samples is not None and known < samples and self._exact(batch).exact:
            self.size = known

    def _after_kills(self, known: int | None, batch: Any) -> int | None:
        """Half of what the owner before was killed with, kept before it is tried: it may kill, too.

        So may the comparison: of a smaller part after each kill. What cannot be cut halves no size, which no one uses.
        """
        said = "killed for want of memory"
        samples = count(batch)
        if samples is not None:
            before = min(known or samples, self.size or samples, samples)
            if samples == 1 or self._exact(head(batch, max(2, before >> (self._kills - 1)))).exact:
                if before == 1:
                    raise WontFit(f"{said} while it trained on one sample at a time")
                half = -(-before // 2)
                self._keep(half)
                _log.warning("the worker before was %s: its batches are trained %d samples at a time now", said, half)
                return half
        if self._kills >= KILLS_IN_A_ROW:
            raise WontFit(f"{said} {self._kills} times in a row; {self._no_way(batch)}")
        return known

    def smaller(self, said: str, batch: Any) -> None:
        """Halve the size, since this batch did not fit; `said`: what the system said of it.

        Raises:
            WontFit: it cannot be halved, or halves would train otherwise than the whole.
        """
        samples = count(batch)
        tried = min(self.size or samples, samples) if samples is not None else None
        if tried == 1:
            raise WontFit(f"{said}; even one sample at a time is too much")
        if tried is None or not self._exact(batch).exact:
            raise WontFit(f"{said}; {self._no_way(batch)}")
        self.size = -(-tried // 2)
        _log.warning("%s; batches of %d are trained %d samples at a time now", said, samples, self.size)

    def fitted(self) -> None:
        """A batch went through: the size that it took is remembered."""
        if self.size is not None and (self._kept is None or self.size < self._kept):
            self._keep(self.size)

    def _keep(self, size: int) -> None:
        self._kept = size
        if self._model is not None:
            self._sizes.keep(self._model, size)

    def _no_way(self, batch: Any) -> str:
        return f"trained in parts, it would not train the same: {self._exact(batch).why}"

    def _exact(self, batch: Any) -> Comparison:
        """Found out once, on as much of the batch as fits twice."""
        if self._compared is None:
            self._compared = self._on_part_of(batch)
        return self._compared

    def _on_part_of(self, batch: Any) -> Comparison:
        samples = count(batch)
        if samples is None:
            return self._compare(batch)  # which says why it cannot be cut
        while True:
            samples = max(min(2, samples), samples // 2)
            try:
                return self._compare(head(batch, samples))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                said = first_line(error)
            if samples <= 2:
                return Comparison(False, f"not even two samples fit to find out ({said})")
