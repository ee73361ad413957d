# A server of twofold's runs, without torch and without DuckDB. `docs/deploy.md` says how it is started.
#
#     docker build --tag twofold .
#
# Installed are the versions of the lock, `constraints.txt`; the extra `redis` is for histories that machines share.
# For the same image from every build, pin the base by its content: --build-arg BASE=python@sha256:DIGEST.

ARG BASE=python:3.11.13-slim-bookworm
FROM ${BASE} AS build
ARG EXTRAS=serve,redis
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY twofold twofold
COPY recipes/kuairand.yaml recipes/
COPY data/kuairand-pure data/kuairand-pure
RUN python -m venv /opt/twofold
RUN /opt/twofold/bin/pip wheel --no-deps --wheel-dir /wheels .
RUN /opt/twofold/bin/pip install --no-cache-dir -c constraints.txt "$(echo /wheels/twofold-*.whl)[$EXTRAS]"

FROM ${BASE}
RUN useradd --uid 10001 twofold && install --directory --owner twofold /histories /runs
COPY --from=build /opt/twofold /opt/twofold
# An option would win over the variable, and a store with a password is named in the variable.
ENV PATH=/opt/twofold/bin:$PATH PYTHONUNBUFFERED=1 TWOFOLD_HISTORIES=/histories/histories.db
USER twofold
EXPOSE 8000
VOLUME /histories
# While a bundle is opened the port is bound and a question waits, so a start needs its period.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as ask; ask.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["twofold", "serve", "--host", "0.0.0.0"]
CMD ["/runs/current"]
