"""One self-contained HTML page from stored results."""

from isthmus.report.page import write_report as write_report
