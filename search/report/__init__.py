"""A study as one HTML file: `dialin report` and `Search.report()` write it.

`data` reads it from the database, `figures`, `knob_figures` and `run_figures` draw, `sections` say what stands where,
`page` makes the file.
"""

from __future__ import annotations

from search.report.data import ReportData, gather
from search.report.page import render

__all__ = ["ReportData", "gather", "render"]
