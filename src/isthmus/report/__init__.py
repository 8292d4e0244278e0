"""One self-contained HTML page from stored results."""

from isthmus.report.page import write_report as write_report
from isthmus.report.strings import write_string_page as write_string_page
