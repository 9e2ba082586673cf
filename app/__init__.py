"""The billing control plane. `create_app` is the only place that puts its parts together."""

from flask import Flask

from app.config import Settings, load_settings
from app.extensions import init_extensions

__version__ = "0.2.0"


def create_app(settings: Settings | None = None, *, with_web: bool = True) -> Flask:
    """The application for gunicorn, the console and tests. Opens neither database, keys nor network.

    Without `with_web` it has only its commands, for which most of the web's modules need not be loaded.
    """
    from cli import register_commands  # which needs this package to be there already

    settings = settings or load_settings()
    app = Flask("app", static_folder=None)
    init_extensions(app, settings)
    register_commands(app)
    if with_web:
        from app.web import add_web

        add_web(app, settings)
    return app
