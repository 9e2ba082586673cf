"""What is remembered of the Stripe account: itself, what its prices sold, payers to be ignored."""

from typing import Any

from app.db import Cursor, Row


def insert_account(cur: Cursor, account_id: str, livemode: bool) -> Row:
    """Remember the account at first contact; the one that is remembered."""
    return cur.exactly_one(
        """
        INSERT INTO stripe_account AS known (account_id, livemode)
        VALUES (%(account_id)s, %(livemode)s)
            ON CONFLICT (only_row) DO UPDATE
           SET account_id = known.account_id
     RETURNING account_id, livemode
        """,
        {"account_id": account_id, "livemode": livemode},
    )


def select_price_plans(cur: Cursor) -> dict[str, str]:
    """What each known price sold: plans by price id."""
    return {row["price_id"]: row["plan"] for row in cur.all("SELECT price_id, plan FROM stripe_prices")}


def upsert_price(cur: Cursor, price: dict[str, Any]) -> None:
    """Remember what a price sells."""
    cur.execute(
        """
        INSERT INTO stripe_prices (price_id, plan, billing_interval, amount, currency)
        VALUES (%(price_id)s, %(plan)s, %(billing_interval)s, %(amount)s, %(currency)s)
            ON CONFLICT (price_id) DO UPDATE
           SET plan = EXCLUDED.plan
        """,
        price,
    )


def select_ignored(cur: Cursor) -> set[str]:
    """Stripe's ids that `flask stripe sync --ignore` named."""
    return {row["stripe_id"] for row in cur.all("SELECT stripe_id FROM stripe_ignored")}


def insert_ignored(cur: Cursor, stripe_id: str) -> None:
    """Leave this payer out of what a sync complains about."""
    cur.execute(
        "INSERT INTO stripe_ignored (stripe_id) VALUES (%(stripe_id)s) ON CONFLICT DO NOTHING",
        {"stripe_id": stripe_id},
    )
