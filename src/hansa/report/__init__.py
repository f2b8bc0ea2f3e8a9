"""From the journal to numbers, pictures and one page that can be shown.

Everything here is a fold over `hansa.core.events`: nothing is measured again and
nothing is written but the report itself.
"""

from hansa.report.model import RunSummary
from hansa.report.summary import ReportContext, summarise
from hansa.report.write import write_report

__all__ = [
    "ReportContext",
    "RunSummary",
    "summarise",
    "write_report",
]
