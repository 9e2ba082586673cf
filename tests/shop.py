"""A service with an account at the Stripe sandbox, and what callers and customers do with both."""

from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import ADMIN, WEBHOOK_SECRET
from tests.factories import make_customer
from tests.stripe_sandbox import Delivery, Sandbox, billing, routes, shapes
from tests.stripe_sandbox.world import copied

HOOK = "http://service.test/webhooks/stripe"
_made_by_setup: list[dict[str, Any]] = []  # by the first shop of this process; the others' setup finds it


def assert_refused(answer: TestResponse, code: int, word: str) -> None:
    """Refused with this code, and the message has this word."""
    assert (answer.status_code, word in answer.json["message"]) == (code, True), answer.json


class Shop:
    """Prices for starter and professional are there; the sandbox's events wait for `deliver`."""

    def __init__(self, app: Flask, sandbox: Sandbox) -> None:
        self.app, self.sandbox = app, sandbox
        self.client: FlaskClient = app.test_client()
        with sandbox.world.transaction() as world:
            if not world.every("price"):
                for made in _made_by_setup:
                    world.add(copied(made))
        result = app.test_cli_runner().invoke(args=["stripe", "setup"])
        assert result.exit_code == 0, result.output
        if not _made_by_setup:
            made_now = [*sandbox.world.every("product"), *sandbox.world.every("price")]
            _made_by_setup.extend(copied(obj) for obj in made_now)
        by_key = {price["lookup_key"]: price["id"] for price in sandbox.every("price")}
        self.prices = {plan: by_key[f"zemfyre_{plan}"] for plan in ("starter", "professional")}
        self.yearly = {plan: by_key[f"zemfyre_{plan}_year"] for plan in self.prices}
        sandbox.webhooks.targets[HOOK] = WEBHOOK_SECRET
        sandbox.webhooks.transport = lambda url, body, headers: self.hook(body, headers).status_code
        sandbox.requests.clear()
        sandbox.webhooks.clear()

    # What callers do

    def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> TestResponse:
        return self.client.post(path, json=body, headers=ADMIN if headers is None else headers)

    def get(self, path: str) -> dict[str, Any]:
        answer = self.client.get(path, headers=ADMIN)
        assert answer.status_code == 200, answer.json
        return dict(answer.json)

    def customer(self, **fields: Any) -> str:
        """A new customer's id."""
        return str(make_customer(self.client, **fields)["customerId"])

    def try_checkout(self, customer_id: str, plan: str = "starter", **more: Any) -> TestResponse:
        body = {"customerId": customer_id, "plan": plan, **more}
        return self.post("/api/subscriptions/create-checkout", body)

    def checkout(self, customer_id: str, plan: str = "starter", **more: Any) -> dict[str, Any]:
        answer = self.try_checkout(customer_id, plan, **more)
        assert answer.status_code == 201, answer.json
        return dict(answer.json)

    def subscribe(self, plan: str = "starter", **fields: Any) -> tuple[str, str]:
        """A customer who has paid, and the subscription; the service knows of it."""
        customer_id = self.customer(**fields)
        session = self.sandbox.pay(self.checkout(customer_id, plan)["sessionId"])
        self.deliver()
        return customer_id, str(session["subscription"])

    def act(self, subscription_id: str, what: str, body: Any = None) -> TestResponse:
        """`upgrade`, `cancel` or `resume`."""
        return self.post(f"/api/subscriptions/{subscription_id}/{what}", body)

    # What Stripe does

    def hook(self, body: bytes, headers: dict[str, str]) -> TestResponse:
        return self.app.test_client().post("/webhooks/stripe", data=body, headers=headers)

    def deliver(self) -> list[Delivery]:
        """Bring every waiting event, in order."""
        return self.sandbox.webhooks.deliver_all()

    def make_price(self, cents: int, **given: Any) -> str:
        """A monthly price made in the dashboard."""
        with self.sandbox.world.transaction() as world:
            product = world.every("product")[0]["id"]
            month = {"interval": "month"}
            price = {"product": product, "currency": "usd", "unit_amount": cents, "recurring": month, **given}
            return str(routes.create_price(world, price)["id"])

    def second_at_stripe(self, customer_id: str, email: str | None = None) -> str:
        """A customer made in the dashboard that names ours and pays for professional; its events are lost."""
        email = email or self.get(f"/api/customers/{customer_id}")["email"]
        with self.sandbox.world.transaction() as world:
            wish = {"email": email, "metadata": {"customer_id": customer_id}}
            stripe_id = str(world.add(shapes.customer(world.now(), wish))["id"])
            world.cards[stripe_id] = "ok"
            price = billing.recurring_price(world, self.prices["professional"], "price")
            billing.create(world, stripe_id, [(price, 1)])
        self.sandbox.webhooks.clear()
        return stripe_id

    # What there is

    def stripe_id(self, customer_id: str) -> str:
        return str(self.get(f"/api/customers/{customer_id}")["stripeCustomerId"])

    def subscription(self, any_id: str) -> dict[str, Any]:
        return dict(self.get(f"/api/subscriptions/{any_id}")["subscription"])

    def plan_and_status(self, customer_id: str) -> tuple[str, str]:
        """As the license that is given out now says."""
        license_answer = self.get(f"/api/licenses/{customer_id}")
        return license_answer["plan"], license_answer["status"]

    def live(self) -> list[dict[str, Any]]:
        """The subscriptions that are live at Stripe."""
        found = self.sandbox.every("subscription")
        return [sub for sub in found if sub["status"] in ("active", "trialing", "past_due")]

    def charges(self) -> list[int]:
        """What was paid at Stripe, in cents, oldest first."""
        return [i["amount_paid"] for i in self.sandbox.every("invoice") if i["amount_paid"]]
