# Two images: `--target cpu` (OpenVINO, no torch) and `--target cuda` (also torch).
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

FROM build AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY app app
COPY training training
RUN uv build --wheel --require-hashes --build-constraint requirements.lock --out-dir /wheel

# Dependencies before the wheel, which holds the bundle: a code change rebuilds only that layer.
FROM build AS cpu-build
COPY pyproject.toml ./
RUN uv pip install --require-hashes --constraint requirements.lock --requirement pyproject.toml --extra dicom --extra hub --extra otel
RUN --mount=from=wheel,source=/wheel,target=/wheel uv pip install --no-deps /wheel/*.whl

FROM build AS cuda-build
COPY pyproject.toml ./
RUN uv pip install --require-hashes --constraint requirements.lock --requirement pyproject.toml --extra dicom --extra hub --extra otel --extra torch
RUN --mount=from=wheel,source=/wheel,target=/wheel uv pip install --no-deps /wheel/*.whl

FROM python:${PYTHON} AS runtime
RUN groupadd --gid 10001 leuko \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin leuko
ENV PATH=/opt/leuko/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /srv/leuko
USER 10001:10001
EXPOSE 8000
# Liveness, not readiness: a service that is loading or draining must not be restarted.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('LEUKO_PORT', 8000)}/healthz\", timeout=2)"]
CMD ["leuko", "serve"]

FROM runtime AS cuda
ENV LEUKO_ENGINE=torch NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-build /opt/leuko /opt/leuko

# Last, so that a build without --target makes the small image.
FROM runtime AS cpu
COPY --from=cpu-build /opt/leuko /opt/leuko
