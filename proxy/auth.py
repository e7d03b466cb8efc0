"""Who may call: everyone on this machine, or whoever has the key; no page of another site on anybody's behalf."""

import base64
import binascii
from hmac import compare_digest
from urllib.parse import urlsplit

from starlette.requests import Request

from ringfence.proxy.settings import Settings


class Unauthorized(Exception):
    """The caller has not shown the key."""


class CrossSite(Exception):
    """A page of another site sent the request through somebody's browser."""


def authorize(request: Request, settings: Settings) -> None:
    """Let the request pass, or raise. Bearer tokens and the password of Basic logins both count.

    Raises:
        CrossSite: a browser says that another site's page is behind it (Fetch Metadata, and RFC 6454's Origin).
        Unauthorized: the key is wrong or missing.
    """
    origin = request.headers.get("origin")
    same = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not same or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise CrossSite
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
