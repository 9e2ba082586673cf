"""Everything that answers HTTP, put onto an application: logs, limits, errors, blueprints, headers."""

import logging.config
from typing import Any

from flask import Flask, Response, g, request
from flask_swagger_ui import get_swaggerui_blueprint
from werkzeug.middleware.proxy_fix import ProxyFix

from app import __version__, auth, errors
from app.api import LONG_BODY_LIMIT, Api
from app.blueprints import checkout, customers, health, licenses, overage, subscriptions, usage, webhooks
from app.config import KEEP_ALIVE_SECONDS, Settings
from app.encoding import JsonProvider
from app.observe import logging_config, observe
from app.ratelimit import RateLimiter


def add_web(app: Flask, settings: Settings) -> None:
    """Make `app` answer requests."""
    logging.config.dictConfig(logging_config(settings.log_level, settings.log_format))
    app.json = JsonProvider(app)
    app.url_map.merge_slashes = False  # which redirects to any Host that the caller names
    bearer = {"type": "http", "scheme": "bearer", "description": "An admin key, or a customer's own license."}
    app.config.update(
        MAX_CONTENT_LENGTH=LONG_BODY_LIMIT,
        API_TITLE="Zemfyre billing control plane",
        API_VERSION=__version__,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
        API_SPEC_OPTIONS={
            "info": {"description": "Customers, subscriptions, licenses and usage of the IoT platform."},
            "servers": [{"url": settings.base_url}],
            "components": {"securitySchemes": {"bearer": bearer}},
        },
    )
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=0)  # type: ignore[method-assign]
    observe(app)
    if settings.ratelimit_enabled:
        app.extensions["ratelimiter"] = RateLimiter(settings)
    api = Api(app)
    errors.register_error_handlers(app)  # instead of flask-smorest's
    for module in (customers, subscriptions, licenses, usage, overage, webhooks):
        api.register_blueprint(module.blp)
    for pages in (checkout, health):
        app.register_blueprint(pages.blp)
    app.register_blueprint(
        get_swaggerui_blueprint("/docs", "/openapi.json", {"app_name": "Zemfyre billing API"})
    )
    app.add_url_rule("/docs", "swagger_ui.show")
    for endpoint in ("swagger_ui.show", "api-docs.openapi_json"):
        app.view_functions[endpoint] = auth.public(app.view_functions[endpoint])
    _add_headers(app, settings)


def _add_headers(app: Flask, settings: Settings) -> None:
    fixed = {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Keep-Alive": f"timeout={KEEP_ALIVE_SECONDS}",
    }
    if settings.base_url.startswith("https://"):
        fixed["Strict-Transport-Security"] = "max-age=31536000"

    @app.after_request
    def add_headers(response: Response) -> Response:
        headers: Any = response.headers
        headers.setdefault("Cache-Control", "no-store")
        headers.extend(fixed | g.get("ratelimit", {}))
        if response.mimetype == "text/html":
            # The API page starts itself with an inline script and draws with inline styles.
            script = "'self' 'unsafe-inline'" if request.path.startswith("/docs") else "'none'"
            headers["Content-Security-Policy"] = (
                f"default-src 'self'; script-src {script}; style-src 'self' 'unsafe-inline'; "
                "img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
            )
        return response
