"""The parts of a report: `blocks`, `plots` and the HTML `page`."""
