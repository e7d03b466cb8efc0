"""What guards have in common that are asked about one category at a time, and answer yes or no."""

import re

UNSAFE, SAFE = "Yes", "No"

ANSWER = re.compile(r"\s*(?P<verdict>Yes|No)(?:\.?\s*|\s*\n[\s\S]*)")
"""The word by itself, or reasons on the lines after it. `No problem!` is no verdict."""

LONGEST = 8

MARKS = r"<(?=[\s/]{0,8}(?:start|end)_of_)"
"""Where `<start_of_turn>` and its like come apart."""
