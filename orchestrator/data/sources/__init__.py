"""One module for each kind of source; `source` holds what they share."""
