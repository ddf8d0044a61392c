"""The web console: one page that shows the fleet live, rendered on the server, refreshed by htmx, charted by uPlot."""
