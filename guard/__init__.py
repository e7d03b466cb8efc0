"""How a text is judged, and the memory of it. Knows nothing of HTTP."""
