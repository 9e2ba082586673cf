"""What is remembered of the Stripe account: itself, what its prices sold, payers to be ignored."""

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


def select_price_plan(cur: Cursor, price_id: str) -> str | None:
    """The plan that a price sold."""
    row = cur.one("SELECT plan FROM stripe_prices WHERE price_id = %(price_id)s", {"price_id": price_id})
    return str(row["plan"]) if row else None


def upsert_price(cur: Cursor, price_id: str, plan: str) -> None:
    """Remember what a price sells; locks nothing when it is known."""
    cur.execute(
        """
        INSERT INTO stripe_prices (price_id, plan)
        SELECT %(price_id)s, %(plan)s
         WHERE NOT EXISTS (
               SELECT 1
                 FROM stripe_prices
                WHERE price_id = %(price_id)s
                  AND plan = %(plan)s)
            ON CONFLICT (price_id) DO UPDATE
           SET plan = EXCLUDED.plan
        """,
        {"price_id": price_id, "plan": plan},
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


def lock_syncs(cur: Cursor, customer_ids: list[str]) -> None:
    """Take the locks of `stripe_sync.sync_customer` for many, in the order given."""
    cur.execute(
        """
        SELECT PG_ADVISORY_XACT_LOCK(HASHTEXTEXTENDED('sync ' || customer_id, 0))
          FROM UNNEST(%(customer_ids)s::TEXT[]) AS customer_id
        """,
        {"customer_ids": customer_ids},
    )
