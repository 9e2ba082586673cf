"""What gunicorn serves (`wsgi:app`) and what `flask` finds."""

import click

from app import create_app

# Of Flask's console only these commands need the routes.
context = click.get_current_context(silent=True)
app = create_app(with_web=context is None or context.info_name in ("run", "routes", "shell"))
