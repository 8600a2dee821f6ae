# One image for every role. docs/compose.md says how it is built for CPUs, CUDA and ROCm.
# BASE: a Debian or Ubuntu with Python 3.11 or newer.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# pip's arguments for the build of torch; wheels that lie in wheels/ beside this file are looked at too.
ARG TORCH="torch==2.13.0"
# Another package index than pip's own.
ARG PIP_INDEX_URL
WORKDIR /src
RUN python3 -m venv /opt/pdmesh
ENV PATH=/opt/pdmesh/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The first name is there so that a missing wheels/ is no error.
COPY pyproject.toml wheels* /src/wheels/
RUN pip install --find-links wheels ${TORCH}
RUN python -c "import tomllib; p = tomllib.load(open('wheels/pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['tracing'], sep='\n')" > needed \
    && pip install --find-links wheels -r needed

FROM ${BASE}
# With a C++ compiler an instance on a CPU packs KV several times as fast: it compiles for the machine that it runs on.
ARG PACKAGES="g++"
RUN if [ -n "${PACKAGES}" ]; then \
        apt-get update && apt-get install -y --no-install-recommends ${PACKAGES} && rm -rf /var/lib/apt/lists/*; \
    fi
# The groups that own GPUs on ROCm machines, by name; compose.yaml may give their numbers on the host instead.
RUN groupadd --force --system video && groupadd --force --system render \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /tmp pdmesh \
    && install -d -o pdmesh -g pdmesh /var/cache/pdmesh /run/pdmesh \
    && install -d -m 700 -o pdmesh -g pdmesh /run/pdmesh-keys
COPY --from=build /opt/pdmesh /opt/pdmesh
COPY common /opt/pdmesh/src/common
COPY transfer /opt/pdmesh/src/transfer
COPY services /opt/pdmesh/src/services
# Compiled here, since nothing can be written later.
RUN /opt/pdmesh/bin/python -m compileall -q /opt/pdmesh/src \
    && printf '#!/bin/sh\nexec python -P -m services.cli.main "$@"\n' > /opt/pdmesh/bin/pdmesh && chmod 755 /opt/pdmesh/bin/pdmesh
ENV PATH=/opt/pdmesh/bin:$PATH \
    PYTHONPATH=/opt/pdmesh/src \
    PDMESH_CACHE=/var/cache/pdmesh \
    HF_HOME=/var/cache/pdmesh/huggingface \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["pdmesh"]
CMD ["--help"]
