# Two images: `--target cpu` (OpenVINO, no torch) and `--target cuda` (also torch). `make image` builds them.
# They listen on loopback unless LEUKO_HOST is set (which requires LEUKO_KEYS), run as UID 10001 and never write to disk.
# Every package, including uv and those that build the wheel, is checked against its hash in requirements.lock.
# A tag can move: for a release, give its digest too, --build-arg BASE_TAG=3.13-slim-trixie@sha256:… (docs/safety.md).
ARG BASE_TAG=3.13-slim-trixie

FROM python:${BASE_TAG} AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/leuko
WORKDIR /build
COPY requirements.lock ./
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.txt \
    && pip install --no-cache-dir --require-hashes --requirement uv.txt && uv venv "$VIRTUAL_ENV" \
    && rm "$VIRTUAL_ENV"/bin/*activate* "$VIRTUAL_ENV"/bin/pydoc.bat

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

# What both images need, without tests of the packages and uv's lock, which everybody could write to.
FROM build AS dependencies
COPY pyproject.toml ./
RUN uv pip install --require-hashes --constraint requirements.lock --requirement pyproject.toml --extra dicom --extra hub --extra otel \
    && find "$VIRTUAL_ENV"/lib/python3.*/site-packages/numpy -name tests -prune -exec rm -r {} + \
    && rm -r "$VIRTUAL_ENV"/lib/python3.*/site-packages/pydicom/data/test_files "$VIRTUAL_ENV"/.lock

# OpenVINO without what only other devices and other formats than a bundle's need: half of it.
FROM dependencies AS cpu-build
# hadolint ignore=DL3003
RUN cd "$VIRTUAL_ENV"/lib/python3.*/site-packages/openvino \
    && rm -r include cmake libs/cache.json libs/*_gpu_plugin.* libs/*_npu_plugin.* libs/*_tensorflow*_frontend.* \
    libs/*_pytorch_frontend.* libs/*_paddle_frontend.* libs/*_jax_frontend.* libs/*_gguf_frontend.*

FROM dependencies AS cuda-build
RUN uv pip install --require-hashes --constraint requirements.lock --requirement pyproject.toml --extra torch && rm "$VIRTUAL_ENV"/.lock

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

FROM python:${BASE_TAG} AS runtime
RUN groupadd --gid 10001 leuko \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin leuko
ENV PATH=/opt/leuko/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Labels add no layer, and a change of them makes none anew.
ARG BASE_TAG
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title=leuko org.opencontainers.image.licenses=Apache-2.0 \
    org.opencontainers.image.base.name=python:$BASE_TAG org.opencontainers.image.version=$VERSION \
    org.opencontainers.image.revision=$REVISION
WORKDIR /srv/leuko
USER 10001:10001
EXPOSE 8000
# Liveness, not readiness: a service that is loading or draining must not be restarted. Few imports, for busy machines.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-I", "-S", "-c", "import os, socket, sys; s = socket.create_connection(('127.0.0.1', int(os.environ.get('LEUKO_PORT', 8000))), 4); s.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n'); sys.exit(s.recv(12) != b'HTTP/1.1 200')"]
CMD ["leuko", "serve"]

# Layers by how rarely they change: dependencies, the inventory, the bundle, the code.
FROM runtime AS cuda
ENV LEUKO_ENGINE=torch NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-build /opt/leuko /opt/leuko
COPY --from=cuda-inventory /inventory /opt/leuko/share
COPY --from=code /layers/bundle /
COPY --from=code /layers/code /

# Last, so that a build without --target makes the small image.
FROM runtime AS cpu
COPY --from=cpu-build /opt/leuko /opt/leuko
COPY --from=cpu-inventory /inventory /opt/leuko/share
COPY --from=code /layers/bundle /
COPY --from=code /layers/code /
