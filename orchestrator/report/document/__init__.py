"""What a report consists of: `blocks`, `plots` and the HTML `page`."""
