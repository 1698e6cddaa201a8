"""What a run found, for people and for machines: terminal matrix, results.json, JUnit XML, a page, a table
for Markdown.

Nothing here decides anything: verdicts come from verdict.py, counts from checkers.py. No report holds a secret or a
message's body; both stay out of histories in the first place.
"""

from brokerkit_conformance.report.files import write
from brokerkit_conformance.report.results import results
from brokerkit_conformance.report.terminal import matrix

__all__ = ["matrix", "results", "write"]
