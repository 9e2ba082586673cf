"""The extensions of the running application: `create_app` initialises them, services import them."""

from typing import TYPE_CHECKING, cast

from flask import Flask, current_app
from werkzeug.local import LocalProxy

from app.config import ConfigError, Settings
from app.db import Database, Row
from app.keyring import Keyring
from app.queries.stripe import insert_account

if TYPE_CHECKING:
    from app.stripe_gateway import StripeGateway

settings = cast(Settings, LocalProxy(lambda: current_app.extensions["billing.settings"]))
db = cast(Database, LocalProxy(lambda: current_app.extensions["billing.db"]))
keyring = cast(Keyring, LocalProxy(lambda: current_app.extensions["billing.keyring"]))


def _stripe() -> "StripeGateway":
    """Made when first needed: importing Stripe's SDK takes a fifth of a second, most commands do without."""
    extensions = current_app.extensions
    if "billing.stripe" not in extensions:
        from app.stripe_gateway import StripeGateway

        gateway = StripeGateway(extensions["billing.settings"], _remember_account)
        extensions.setdefault("billing.stripe", gateway)
    return cast("StripeGateway", extensions["billing.stripe"])


def _remember_account(account_id: str, livemode: bool) -> Row:
    with db.statement() as cur:
        return insert_account(cur, account_id, livemode)


stripe = cast("StripeGateway", LocalProxy(_stripe))


def init_extensions(app: Flask, settings: Settings) -> None:
    """Attach everything to `app`; nothing is opened yet."""
    app.extensions["billing.settings"] = settings
    app.extensions["billing.db"] = Database(lambda: _database_url(settings))
    app.extensions["billing.keyring"] = Keyring(settings)


def _database_url(settings: Settings) -> str:
    if settings.database_url:
        return settings.database_url
    if not settings.embedded_postgres:
        raise ConfigError(
            "DATABASE_URL: not set. Run `make run` in another terminal, name a server here, "
            "or set EMBEDDED_POSTGRES=1"
        )
    from app import embedded

    return embedded.start(settings.data_dir)
