# One image for every process of Airflow and for MLflow's server: the environment that constraints.txt holds, which is
# the one the tests ran in. Not FROM apache/airflow: that image brings dozens of providers in versions of its own.
FROM python:3.11-slim-bookworm

# PyPI's torch brings gigabytes of CUDA. For GPUs: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# OpenMP, for wheels that do not bring their own, as LightGBM's does not
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/nightcart

# The libraries first: they stay cached until one of these two files changes. psycopg2 and asyncpg are Airflow's two
# ways to Postgres, psycopg is ours to a shop's. pip compiles bytecode as it installs.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt -r /tmp/requirements.txt \
        psycopg2-binary==2.9.13 asyncpg==0.32.0 'psycopg[binary]' \
    && rm /tmp/requirements.txt

COPY . .
RUN pip install --no-cache-dir --no-deps --editable . \
    && python -m compileall -q dags include plugins recsys_tasks \
    && useradd --uid 50000 --create-home nightcart \
    && mkdir -p airflow/logs login mlflow var \
    && chown -R nightcart: airflow login mlflow var

ENV AIRFLOW_HOME=/opt/nightcart/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/nightcart/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/nightcart/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    NIGHTCART_HOME=/opt/nightcart/var \
    PYTHONPATH=/opt/nightcart \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=3

USER nightcart
CMD ["airflow", "api-server"]
