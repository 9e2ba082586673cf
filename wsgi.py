"""What gunicorn serves and what `flask` finds."""

from app import create_app

app = create_app()
