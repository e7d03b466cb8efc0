"""The ASGI application around a service. No globals; nothing happens at import."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ringfence.proxy.routes import add_routes
from ringfence.proxy.service import Service


def create_app(service: Service, *beside: Callable[[], Awaitable[None]]) -> FastAPI:
    """Return the ASGI application that serves it, and closes it when it ends.

    Args:
        beside: what else runs for as long as it serves, and is cancelled then.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await to_thread.run_sync(service.live.guard.warm)
        running = [asyncio.ensure_future(work()) for work in beside]
        yield
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await service.upstream.aclose()
        service.store.close()

    app = FastAPI(title="ringfence", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    if not service.settings.needs_key:
        # A page in the operator's browser must not reach the audit log through a name that it points at this machine.
        app.add_middleware(
            TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", service.settings.host]
        )
    add_routes(app, service)
    return app
