"""Customers: one function, one statement."""

from app.db import Cursor, Row

COLUMNS = """customer_id, email, name, company_name, stripe_customer_id, max_devices, retention_days,
             overage_price, overage_cap, trial_used_at, revoked_at, revoke_reason, tokens_revoked_at,
             erased_at, created_at, updated_at, id"""
# Keyed, and hashed twice so that nobody can extend the text (as HMAC does): recognisable to us alone.
EMAIL_HASH = """ENCODE(SHA256(CONVERT_TO(key, 'UTF8') ||
                       SHA256(CONVERT_TO(key || LOWER(%(email)s COLLATE "C"), 'UTF8'))), 'hex')::CHAR(64)"""


def insert_customer(cur: Cursor, customer: Row) -> Row | None:
    """Add a customer; None when the address is taken, in whatever letter case."""
    return cur.one(
        f"""
        INSERT INTO customers (customer_id, email, name, company_name, trial_used_at)
        VALUES (%(customer_id)s, %(email)s, %(name)s, %(company_name)s, %(trial_used_at)s)
            ON CONFLICT (LOWER(email COLLATE "C")) DO NOTHING
     RETURNING {COLUMNS}
        """,
        customer,
    )


def select_customer(cur: Cursor, customer_id: str) -> Row | None:
    """One customer."""
    return cur.one(
        f"SELECT {COLUMNS} FROM customers WHERE customer_id = %(customer_id)s",
        {"customer_id": customer_id},
    )


def lock_customer(cur: Cursor, customer_id: str) -> Row | None:
    """One customer, locked against other changes until the transaction ends; reports may go on."""
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


def select_customers(cur: Cursor) -> list[Row]:
    """Every customer, oldest first, erased ones left out."""
    return cur.all(f"SELECT {COLUMNS} FROM customers WHERE erased_at IS NULL ORDER BY id")


def update_customer(cur: Cursor, customer: Row) -> Row:
    """Store the columns that may change, of a row that was locked. A taken address raises UniqueViolation."""
    return cur.exactly_one(
        f"""
        UPDATE customers
           SET email = %(email)s, name = %(name)s, company_name = %(company_name)s,
               stripe_customer_id = %(stripe_customer_id)s, max_devices = %(max_devices)s,
               retention_days = %(retention_days)s, trial_used_at = %(trial_used_at)s,
               revoked_at = %(revoked_at)s, revoke_reason = %(revoke_reason)s,
               tokens_revoked_at = %(tokens_revoked_at)s, erased_at = %(erased_at)s,
               updated_at = CURRENT_TIMESTAMP
         WHERE customer_id = %(customer_id)s
     RETURNING {COLUMNS}
        """,
        customer,
    )


def insert_erased_email(cur: Cursor, email: str) -> None:
    """Remember that the trial of this address is used up."""
    cur.execute(
        f"""
        INSERT INTO erased_emails (email_hash)
        SELECT {EMAIL_HASH} FROM email_hash_key
            ON CONFLICT DO NOTHING
        """,
        {"email": email},
    )


def select_email_was_erased(cur: Cursor, email: str) -> bool:
    """Whether a customer of this address was erased: its trial is used up."""
    sql = f"SELECT 1 FROM erased_emails, email_hash_key WHERE email_hash = {EMAIL_HASH}"
    return cur.one(sql, {"email": email}) is not None
