"""Is it alive, is it ready, and the metrics."""

from flask import Blueprint, Response, jsonify

from app.auth import public, unlimited
from app.services.health import failing_parts, metrics_text

blp = Blueprint("health", __name__)


@blp.get("/")
@public
def index() -> Response:
    """What this is, and where to read on."""
    return jsonify(service="Zemfyre billing control plane", docs="/docs", openapi="/openapi.json")


@blp.get("/health")
@unlimited
def alive() -> Response:
    """The process answers; nothing else is checked."""
    return jsonify(status="ok")


@blp.get("/health/ready")
@unlimited
def ready() -> tuple[Response, int, dict[str, str]]:
    """200 when requests can be served, else 503 with what fails."""
    failing = failing_parts()
    if failing:
        return jsonify(status="unavailable", failing=failing), 503, {"Retry-After": "5"}
    return jsonify(status="ready", failing={}), 200, {}


@blp.get("/metrics")
@unlimited
def metrics() -> Response:
    text, content_type = metrics_text()
    return Response(text, content_type=content_type)
