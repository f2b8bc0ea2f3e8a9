"""One module a figure; `hansa.report.plots` puts them together."""
