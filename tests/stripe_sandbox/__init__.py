"""A stateful stand-in for Stripe: the API calls of a billing service, hosted pages, webhooks.

In a test: `Sandbox` (see `sandbox.py`). As a process: `python -m tests.stripe_sandbox --help`.
What it does not model it refuses (`sandbox_unsupported`, or 404 for a whole call).
"""

from .api import Recorded
from .errors import Refusal
from .sandbox import Sandbox
from .webhooks import Delivery, Webhooks

__all__ = ["Delivery", "Recorded", "Refusal", "Sandbox", "Webhooks"]
