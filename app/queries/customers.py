"""Customers: one function, one statement."""

from datetime import datetime

from app.db import Cursor, Row

COLUMNS = """customer_id, email, name, company_name, stripe_customer_id, max_devices, retention_days,
             overage_price, overage_cap, trial_used_at, revoked_at, revoke_reason, tokens_revoked_at,
             erased_at, created_at, updated_at, id"""


def insert_customer(
    cur: Cursor, *, customer_id: str, email: str, name: str | None, company_name: str | None
) -> Row | None:
    """Add a customer; None when the address is taken, in whatever letter case."""
    return cur.one(
        f"""
        INSERT INTO customers (customer_id, email, name, company_name)
        VALUES (%(customer_id)s, %(email)s, %(name)s, %(company_name)s)
            ON CONFLICT (LOWER(email COLLATE "C")) DO NOTHING
     RETURNING {COLUMNS}
        """,
        {"customer_id": customer_id, "email": email, "name": name, "company_name": company_name},
    )


def select_customer(cur: Cursor, customer_id: str) -> Row | None:
    """One customer."""
    return cur.one(
        f"SELECT {COLUMNS} FROM customers WHERE customer_id = %(customer_id)s",
        {"customer_id": customer_id},
    )


def lock_customer(cur: Cursor, customer_id: str) -> Row | None:
    """One customer, held against other changes until the transaction ends; reports may go on."""
    return cur.one(
        f"SELECT {COLUMNS} FROM customers WHERE customer_id = %(customer_id)s FOR NO KEY UPDATE",
        {"customer_id": customer_id},
    )


def select_customer_by_stripe_id(cur: Cursor, stripe_customer_id: str) -> Row | None:
    """The customer whom Stripe knows by this id."""
    return cur.one(
        f"SELECT {COLUMNS} FROM customers WHERE stripe_customer_id = %(stripe_customer_id)s",
        {"stripe_customer_id": stripe_customer_id},
    )


def find_customer(cur: Cursor, text: str) -> Row | None:
    """The customer with this id, email, Stripe id or subscription; also one that was erased, by its id."""
    return cur.one(
        f"""
        SELECT {COLUMNS}
          FROM customers
         WHERE customer_id = %(text)s
            OR LOWER(email COLLATE "C") = LOWER(%(text)s COLLATE "C")
            OR stripe_customer_id = %(text)s
            OR customer_id = (SELECT customer_id FROM subscriptions WHERE subscription_id = %(text)s)
         LIMIT 1
        """,
        {"text": text},
    )


def select_customers_like(cur: Cursor, beginning: str, limit: int) -> list[Row]:
    """Ids and addresses that begin like this, newest first."""
    return cur.all(
        """
        SELECT customer_id, email
          FROM customers
         WHERE erased_at IS NULL
           AND (STARTS_WITH(customer_id, %(beginning)s) OR STARTS_WITH(LOWER(email), LOWER(%(beginning)s)))
         ORDER BY id DESC
         LIMIT %(limit)s
        """,
        {"beginning": beginning, "limit": limit},
    )


def select_linked_to_others(cur: Cursor, customer_id: str, stripe_ids: list[str]) -> set[str]:
    """Those of Stripe's ids that another customer is linked to."""
    rows = cur.all(
        """
        SELECT stripe_customer_id
          FROM customers
         WHERE stripe_customer_id = ANY(%(stripe_ids)s)
           AND customer_id <> %(customer_id)s
        """,
        {"stripe_ids": stripe_ids, "customer_id": customer_id},
    )
    return {row["stripe_customer_id"] for row in rows}


def select_customers(
    cur: Cursor, *, limit: int | None = None, after: int | None = None, email: str | None = None
) -> list[Row]:
    """A page of customers (or all), oldest first, erased ones left out."""
    return cur.all(
        f"""
        SELECT {COLUMNS}
          FROM customers
         WHERE erased_at IS NULL
           AND (%(after)s::BIGINT IS NULL OR id > %(after)s)
           AND (%(email)s::TEXT IS NULL OR LOWER(email COLLATE "C") = LOWER(%(email)s COLLATE "C"))
         ORDER BY id
         LIMIT %(limit)s
        """,
        {"limit": limit, "after": after, "email": email},
    )


def update_customer(
    cur: Cursor, *, customer_id: str, email: str, name: str | None, company_name: str | None
) -> Row:
    """Change who the customer is. A taken address raises psycopg2's UniqueViolation."""
    return cur.exactly_one(
        f"""
        UPDATE customers
           SET email = %(email)s, name = %(name)s, company_name = %(company_name)s,
               updated_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
     RETURNING {COLUMNS}
        """,
        {"customer_id": customer_id, "email": email, "name": name, "company_name": company_name},
    )


def update_stripe_customer_id(cur: Cursor, customer_id: str, stripe_customer_id: str | None) -> Row:
    """Remember (or forget) whom Stripe knows this customer as."""
    return cur.exactly_one(
        f"""
        UPDATE customers
           SET stripe_customer_id = %(stripe_customer_id)s, updated_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
     RETURNING {COLUMNS}
        """,
        {"customer_id": customer_id, "stripe_customer_id": stripe_customer_id},
    )


def update_overrides(
    cur: Cursor, customer_id: str, *, max_devices: int | None, retention_days: int | None
) -> Row:
    """An enterprise customer's own figures; None is the plan's."""
    return cur.exactly_one(
        f"""
        UPDATE customers
           SET max_devices = %(max_devices)s, retention_days = %(retention_days)s,
               updated_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
     RETURNING {COLUMNS}
        """,
        {"customer_id": customer_id, "max_devices": max_devices, "retention_days": retention_days},
    )


def update_trial_used(cur: Cursor, customer_id: str, used_at: datetime) -> None:
    """The one trial of a paid plan is used up."""
    cur.execute(
        "UPDATE customers SET trial_used_at = %(used_at)s WHERE customer_id = %(customer_id)s",
        {"customer_id": customer_id, "used_at": used_at},
    )


def update_revocation(
    cur: Cursor, customer_id: str, *, revoked_at: datetime | None, reason: str | None
) -> Row:
    """Give this customer no license from now on; or, with None, again."""
    return cur.exactly_one(
        f"""
        UPDATE customers
           SET revoked_at = %(revoked_at)s, revoke_reason = %(reason)s,
               tokens_revoked_at = COALESCE(%(revoked_at)s, tokens_revoked_at),
               updated_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
     RETURNING {COLUMNS}
        """,
        {"customer_id": customer_id, "revoked_at": revoked_at, "reason": reason},
    )


def erase_customer(cur: Cursor, customer_id: str, erased_at: datetime) -> None:
    """Clear every personal field; the row stays for the figures that hang on it."""
    cur.execute(
        """
        UPDATE customers
           SET email = NULL, name = NULL, company_name = NULL, stripe_customer_id = NULL,
               revoke_reason = NULL, erased_at = %(erased_at)s, updated_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
        """,
        {"customer_id": customer_id, "erased_at": erased_at},
    )


def insert_erased_email(cur: Cursor, email_hash: str) -> None:
    """Remember that the trial of this address is used up."""
    cur.execute(
        "INSERT INTO erased_emails (email_hash) VALUES (%(email_hash)s) ON CONFLICT DO NOTHING",
        {"email_hash": email_hash},
    )


def select_email_was_erased(cur: Cursor, email_hash: str) -> bool:
    """Whether a customer of this address was erased before."""
    return bool(
        cur.exactly_one(
            "SELECT EXISTS (SELECT 1 FROM erased_emails WHERE email_hash = %(email_hash)s) AS known",
            {"email_hash": email_hash},
        )["known"]
    )


def select_email_hash_key(cur: Cursor) -> str:
    """The secret under which addresses are hashed."""
    return str(cur.exactly_one("SELECT key FROM email_hash_key")["key"])
