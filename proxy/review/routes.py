"""The audit log on the web: a list, one record, and the chain's proof, each as a page and as JSON. Changes nothing.

Records hold text that strangers wrote, some of it to do harm. It is escaped wherever it is shown, and the pages carry
a policy under which a browser would run no script even if one got through.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ringfence.guard.audit.record import Body, parse_receipt
from ringfence.guard.audit.store import Store, StoreError
from ringfence.guard.audit.verify import Broken, Unreadable, Verified, verify
from ringfence.policies.types import Action
from ringfence.proxy.review.visible import visible

TEMPLATES = Path(__file__).with_name("templates")

Before = Annotated[int | None, Query(ge=1, le=2**53, description="Only records before this number: the next page.")]
Limit = Annotated[int, Query(ge=1, le=200, description="How many, newest first.")]
Only = Annotated[Action | None, Query(description="Only what ended in this action.")]
Expect = Annotated[str | None, Query(description="A receipt, SEQ:HASH, that must be found.")]


def review_router(open_store: Callable[[], Store]) -> APIRouter:
    """Return the routes under `/audit`; they ask nobody who they are, so mount them where only operators come.

    Args:
        open_store: gives the log to read for each request; whoever gives it also closes it.
    """
    router = APIRouter(tags=["audit"])
    render = _renderer()

    @router.get("/audit", response_class=HTMLResponse, include_in_schema=False)
    def list_page(action: Only = None, before: Before = None, limit: Limit = 50) -> HTMLResponse:
        try:
            page = _page(open_store(), action, before, limit)
        except StoreError as error:
            return render("message.html", 503, title="The log cannot be read", message=str(error))
        return render("list.html", **page, action=action, before=before, limit=limit, actions=list(Action)[::-1])

    @router.get("/audit.json")
    def list_json(action: Only = None, before: Before = None, limit: Limit = 50) -> JSONResponse:
        """Return records, newest first, with the number to ask the next page by."""
        try:
            page = _page(open_store(), action, before, limit)
        except StoreError as error:
            raise HTTPException(503, str(error)) from error
        return _json({**page, "records": [kept.json for kept in page["records"]]})

    @router.get("/audit/verify", response_class=HTMLResponse, include_in_schema=False)
    def verify_page(expect: Expect = None) -> HTMLResponse:
        try:
            verdict = _verdict(open_store(), expect)
        except (ValueError, Unreadable, StoreError) as error:
            return render("message.html", 400, title="Nothing was verified", message=str(error))
        return render("verify.html", verdict=verdict, whole=isinstance(verdict, Verified), expect=expect)

    @router.get("/audit/verify.json")
    def verify_json(expect: Expect = None) -> JSONResponse:
        """Recompute the chain and say whether every record is as it was written."""
        try:
            verdict = _verdict(open_store(), expect)
        except (ValueError, Unreadable, StoreError) as error:
            raise HTTPException(400, str(error)) from error
        return _json({"whole": isinstance(verdict, Verified), **asdict(verdict)})

    @router.get("/audit/{key}.json")
    def record_json(key: str) -> JSONResponse:
        """Return one record, by exchange id or by number."""
        try:
            kept = open_store().get(key)
        except StoreError as error:
            raise HTTPException(503, str(error)) from error
        if kept is None:
            raise HTTPException(404, f"no record {key}")
        return _json(kept.json)

    @router.get("/audit/{key}", response_class=HTMLResponse, include_in_schema=False)
    def record_page(key: str) -> HTMLResponse:
        try:
            kept = open_store().get(key)
        except StoreError as error:
            return render("message.html", 503, title="The log cannot be read", message=str(error))
        if kept is None:
            return render("message.html", 404, title="No such record", message=f"There is no record {key}.")
        return render("record.html", kept=kept, coverage=_coverage(kept.body))

    return router


def _page(store: Store, action: Action | None, before: int | None, limit: int) -> dict[str, Any]:
    kept = store.list(limit=limit + 1, before=before, action=action)  # one more says whether there is a next page
    return {
        "records": kept[:limit],
        "next": kept[limit - 1].seq if len(kept) > limit else None,
        "counts": {"all": store.count(), **{action.value: store.count(action) for action in reversed(Action)}},
    }


def _verdict(store: Store, expect: str | None) -> Verified | Broken:
    return verify(store.path, expect=parse_receipt(expect) if expect else None)


def _coverage(body: Body | None) -> dict[str, Body]:
    return {seen["where"]: seen for seen in body["coverage"]} if body else {}


def _gist(body: Body) -> str:
    """What the exchange was about, in one line: the last thing the user said, or what stands for it."""
    parts = [part for part in body["request"] if part["role"] == "user"] or body["request"]
    texts = [part["text"] for part in parts if part.get("text")]
    if texts:
        return str(texts[-1][:160])
    return "(text not kept)" if parts else ""


def _renderer() -> Callable[..., HTMLResponse]:
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    style = (TEMPLATES / "style.css").read_text("utf-8")
    pages.globals |= {"style": Markup(style), "gist": _gist}  # noqa: S704 ours, from the package
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    headers = {
        "content-security-policy": (
            f"default-src 'none'; style-src 'sha256-{digest}'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }

    def render(template: str, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(pages.get_template(template).render(values), status, headers)

    return render


def _json(content: Any) -> JSONResponse:
    return JSONResponse(content, headers={"cache-control": "no-store", "x-content-type-options": "nosniff"})
