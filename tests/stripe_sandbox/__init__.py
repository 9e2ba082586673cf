"""A stateful stand-in for Stripe: the API calls of a billing service, hosted pages, webhooks.

In a test: `Sandbox` (see `sandbox.py`). As a process: `python -m tests.stripe_sandbox --help`.
What it does not model it refuses (`sandbox_unsupported`, or 404 for a whole call).

Control: `POST /_sandbox/<command>` with a JSON object of the arguments of the `Sandbox` method of
that name → `{"result": …, "now": unix seconds}`, or Stripe's error body. Ids are Stripe's.

- the clock: `advance {days?, hours?, seconds?, in_steps?}` (`in_steps` waits for the webhooks of each
  thing that happens) · `advance_to {timestamp}` · `set_dunning {retry_days, then}`
- the customer: `card {customer, card: "ok" | "3ds" | "decline" | a decline code | null}` ·
  `pay {session, promotion_code?, address?, tax_id?}` · `pay_invoice {subscription: sub_… or in_…}` ·
  `pay_link {price, email}` · `portal_cancel`, `portal_resume`, `portal_switch` …
- the dashboard: `create_customer`, `create_price`, `create_subscription`, `schedule`, `refund`,
  `dispute`, `close_dispute`, `set_status`, `delete_customer`, `add_key` …
- events: `webhooks_mode {mode: "deliver" | "hold" | "drop"}` · `deliver {event?, customer?, again?,
  times?, order?: "time" | "reverse" | "random", thin?}` → a list of {event, type, url, status, error}
- failures: `faults {fail_next: {n, status, path?}, delay?, down?, clear?}`
- a look: `GET /_sandbox/state`, `/_sandbox/events`, `/_sandbox/requests`

A renewal's invoice, the first one after a trial and all of `send_invoice` are drafts for an hour,
then final and charged; the first invoice of a subscription and those of a change are final at once.
Tax is 20 % wherever the customer's address has a country. A real draft also waits for its webhook
to be answered, up to three days; here it does not.
"""

from .api import Recorded
from .errors import Refusal
from .sandbox import Sandbox
from .webhooks import Delivery, Webhooks

__all__ = ["Delivery", "Recorded", "Refusal", "Sandbox", "Webhooks"]
