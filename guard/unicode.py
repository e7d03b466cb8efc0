"""What Python takes for text and is none: half a surrogate pair, for which UTF-8, and so a tokenizer, has no bytes."""

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def whole(text: str) -> str:
    """Return the text with U+FFFD for every lone surrogate."""
    return _SURROGATE.sub("\ufffd", text)


def readable(text: str) -> str:
    """Return the text with U+FFFD for every lone surrogate and null; for what goes to others, and comes from them."""
    return whole(text).replace("\0", "\ufffd")
