"""Who may call: everyone on this machine, or whoever has the key."""

import base64
import binascii
from hmac import compare_digest

from starlette.requests import Request

from ringfence.proxy.settings import Settings


class Unauthorized(Exception):
    """The caller has not shown the key."""


def authorize(request: Request, settings: Settings) -> None:
    """Let the request pass, or raise `Unauthorized`. Bearer tokens and the password of Basic logins both count."""
    if settings.api_key is None:
        return
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            shown = base64.b64decode(shown, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            shown = ""
    if not compare_digest(shown.encode(), settings.api_key.get_secret_value().encode()):
        raise Unauthorized
