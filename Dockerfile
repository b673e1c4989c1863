# Builds this repository into a deployable Airflow image. The slim image brings Airflow without its optional
# providers, so that nothing in it disagrees with our pinned versions. Another base:
#   docker build --build-arg BASE_IMAGE=apache/airflow:slim-3.3.2-python3.12 .
ARG BASE_IMAGE=apache/airflow:slim-3.3.2-python3.11
FROM ${BASE_IMAGE}

# Airflow's Test button for connections is off unless this says otherwise.
ENV AIRFLOW__CORE__TEST_CONNECTION=Enabled \
    AIRFLOW__CORE__LOAD_EXAMPLES=False

WORKDIR /opt/airflow
COPY --chown=airflow:0 requirements.txt pyproject.toml ./
RUN python -m pip install --no-cache-dir --require-hashes --requirement requirements.txt

COPY --chown=airflow:0 plugins ./plugins
COPY --chown=airflow:0 include ./include
COPY --chown=airflow:0 dags ./dags
# Editable: the provider's entry point and the plugins folder then name one and the same copy of the code.
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable .
