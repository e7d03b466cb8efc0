"""The outside world: HTTP, command line, settings, pages. The top layer, and the composition root."""
