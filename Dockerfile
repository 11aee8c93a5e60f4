# Two images: `--target cpu` (OpenVINO, no torch) and `--target cuda` (also torch). `make image` builds them.
# They listen on loopback unless LEUKO_HOST is set (which requires LEUKO_KEYS), run as UID 10001 and never write to disk.
# Every package, including uv and those that build the wheel, is checked against its hash in requirements.lock.
# A tag can move: for a release, give its digest too, --build-arg PYTHON=3.13-slim-trixie@sha256:… (docs/safety.md).
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/leuko
WORKDIR /build
COPY requirements.lock ./
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.txt \
    && pip install --no-cache-dir --require-hashes --requirement uv.txt && uv venv "$VIRTUAL_ENV"

# The wheel in two layers: the bundle, and the code without it. The training's code is not part of the images.
FROM build AS code
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY app app
COPY training training
RUN uv build --wheel --require-hashes --build-constraint requirements.lock --out-dir /wheel \
    && uv pip install --no-deps /wheel/*.whl && mkdir -p /layers/bundle /layers/code \
    && cp -a --parents "$VIRTUAL_ENV"/lib/python3.*/site-packages/app/shipped /layers/bundle \
    && rm -r "$VIRTUAL_ENV"/lib/python3.*/site-packages/app/shipped \
    && cp -a --parents "$VIRTUAL_ENV"/lib/python3.*/site-packages/app "$VIRTUAL_ENV"/lib/python3.*/site-packages/leuko-*.dist-info \
    "$VIRTUAL_ENV"/bin/leuko /layers/code

# OpenVINO without what only other devices and other formats than a bundle's need: half of it.
FROM build AS cpu-build
COPY pyproject.toml ./
# hadolint ignore=DL3003
RUN uv pip install --require-hashes --constraint requirements.lock --requirement pyproject.toml --extra dicom --extra hub --extra otel \
    && cd "$VIRTUAL_ENV"/lib/python3.*/site-packages/openvino \
    && rm -r include cmake libs/cache.json libs/*_gpu_plugin.* libs/*_npu_plugin.* libs/*_tensorflow*_frontend.* \
    libs/*_pytorch_frontend.* libs/*_paddle_frontend.* libs/*_jax_frontend.* libs/*_gguf_frontend.*

FROM build AS cuda-build
COPY pyproject.toml ./
RUN uv pip install --require-hashes --constraint requirements.lock --requirement pyproject.toml --extra dicom --extra hub --extra otel --extra torch

# The inventory of each image's packages, in CycloneDX format, made by tools that are in neither.
FROM build AS inventory
COPY pyproject.toml ./
RUN uv venv /opt/tools && uv pip install --python /opt/tools/bin/python --require-hashes --constraint requirements.lock --group inventory
COPY .ci/sbom.py .ci/sbom.py
COPY models models
COPY app app

FROM inventory AS cpu-inventory
RUN --mount=from=cpu-build,source=/opt/leuko,target=/opt/leuko \
    PYTHONPATH="/build:$(echo /opt/leuko/lib/python3.*/site-packages)" /opt/tools/bin/python .ci/sbom.py /opt/leuko /inventory/leuko.cdx.json

FROM inventory AS cuda-inventory
RUN --mount=from=cuda-build,source=/opt/leuko,target=/opt/leuko \
    PYTHONPATH="/build:$(echo /opt/leuko/lib/python3.*/site-packages)" /opt/tools/bin/python .ci/sbom.py /opt/leuko /inventory/leuko.cdx.json

FROM python:${PYTHON} AS runtime
ARG PYTHON
RUN groupadd --gid 10001 leuko \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin leuko
ENV PATH=/opt/leuko/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title=leuko org.opencontainers.image.licenses=Apache-2.0 \
    org.opencontainers.image.base.name=python:$PYTHON
WORKDIR /srv/leuko
USER 10001:10001
EXPOSE 8000
# Liveness, not readiness: a service that is loading or draining must not be restarted. Few imports, for busy machines.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-I", "-S", "-c", "import os, socket, sys; s = socket.create_connection(('127.0.0.1', int(os.environ.get('LEUKO_PORT', 8000))), 4); s.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n'); sys.exit(s.recv(12) != b'HTTP/1.1 200')"]
CMD ["leuko", "serve"]

# Layers by how rarely they change: dependencies, the inventory, the bundle, the code. Labels add none.
FROM runtime AS cuda
ENV LEUKO_ENGINE=torch NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-build /opt/leuko /opt/leuko
COPY --from=cuda-inventory /inventory /opt/leuko/share
COPY --from=code /layers/bundle /
COPY --from=code /layers/code /
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION

# Last, so that a build without --target makes the small image.
FROM runtime AS cpu
COPY --from=cpu-build /opt/leuko /opt/leuko
COPY --from=cpu-inventory /inventory /opt/leuko/share
COPY --from=code /layers/bundle /
COPY --from=code /layers/code /
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION
