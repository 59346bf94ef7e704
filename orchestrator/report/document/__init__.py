"""The parts of a report: `blocks`, `plots` and the template of the HTML page."""
