"""The billing control plane. `create_app` is the only place that puts its parts together."""

import logging.config
from typing import Any

import flask_smorest
from flask import Flask, Response, request
from flask.typing import ResponseReturnValue
from flask_swagger_ui import get_swaggerui_blueprint
from werkzeug.exceptions import HTTPException

from app import auth, errors
from app.blueprints import checkout, customers, health, licenses, subscriptions, usage, webhooks
from app.config import ConfigError, Settings, load_settings
from app.encoding import JsonProvider
from app.http import BODY_LIMIT
from app.observe import logging_config, observe
from app.parts import Parts
from app.ratelimit import limit_rates
from app.schemas.base import ErrorSchema

__version__ = "0.1.0"


class App(Flask):
    """Flask without asynchronous views, for which a setting that went wrong while serving (a key file)
    is no reason to exit.
    """

    json_provider_class = JsonProvider

    def ensure_sync(self, func: Any) -> Any:
        return func

    def dispatch_request(self) -> ResponseReturnValue:
        try:
            return super().dispatch_request()
        except ConfigError as error:
            self.logger.error("%s", error)
            raise errors.Unavailable("A setting of this service is wrong; its log says which.") from error


class Api(flask_smorest.Api):
    """flask-smorest with our error shape."""

    ERROR_SCHEMA = ErrorSchema
    DEFAULT_ERROR_RESPONSE_NAME = None  # every status that a route answers is documented by itself

    def handle_http_exception(self, error: HTTPException) -> Response:
        return errors.http_error(error)


def create_app(settings: Settings | None = None) -> Flask:
    """The application, for gunicorn, the console and tests. Touches neither database, keys nor network."""
    from cli import register_commands  # which needs this package to be there already

    settings = settings or load_settings()
    logging.config.dictConfig(logging_config(settings.log_level, settings.log_format))
    app = App("app", static_folder=None)
    app.extensions["parts"] = Parts(settings)
    app.url_map.merge_slashes = False  # which redirects to whatever Host the caller names
    app.config.update(
        MAX_CONTENT_LENGTH=BODY_LIMIT,  # for whoever should read one otherwise than by `read_body`
        API_TITLE="Zemfyre billing control plane",
        API_VERSION=__version__,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
        API_SPEC_OPTIONS={
            "info": {"description": "Customers, subscriptions, licenses and usage of the IoT platform."},
            "components": {
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "An admin key, or a customer's own license.",
                    }
                }
            },
        },
    )
    observe(app, settings.log_format)
    limit_rates(app, settings)
    errors.register_error_handlers(app)
    api = Api(app)
    for module in (customers, subscriptions, licenses, usage, webhooks):
        api.register_blueprint(module.blp)
    for pages in (checkout, health):
        app.register_blueprint(pages.blp)
    app.register_blueprint(
        get_swaggerui_blueprint("/docs", "/openapi.json", {"app_name": "Zemfyre billing API"})
    )
    app.add_url_rule("/docs", "swagger_ui.show")
    for endpoint in ("swagger_ui.show", "api-docs.openapi_json"):
        app.view_functions[endpoint] = auth.public(app.view_functions[endpoint])
    _protect(app, settings)
    register_commands(app)
    return app


def _protect(app: Flask, settings: Settings) -> None:
    """Security headers, and CORS only for origins that are named."""

    hardening = [
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
    ]
    if settings.base_url.startswith("https://"):
        hardening.append(("Strict-Transport-Security", "max-age=31536000"))

    @app.after_request
    def harden(response: Response) -> Response:
        headers = response.headers
        if not headers.getlist("Cache-Control"):  # setdefault and extend take far longer, on every answer
            headers.add("Cache-Control", "no-store")
        for name, value in hardening:
            headers.add(name, value)
        if response.mimetype == "text/html":
            # The API page starts itself with an inline script and draws with inline styles.
            script = "'self' 'unsafe-inline'" if request.path.startswith("/docs") else "'none'"
            headers["Content-Security-Policy"] = (
                f"default-src 'self'; script-src {script}; style-src 'self' 'unsafe-inline'; "
                "img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
            )
        if not settings.cors_origins:
            return response
        headers.add("Vary", "Origin")  # also without one: a shared cache keeps the answers apart
        origin = request.headers.get("Origin")
        if origin in settings.cors_origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Headers"] = (
                "Authorization, Content-Type, Idempotency-Key, X-Request-ID"
            )
            headers["Access-Control-Allow-Methods"] = "GET, POST, PATCH"
            headers["Access-Control-Expose-Headers"] = (
                "X-Request-ID, Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset"
            )
        return response
