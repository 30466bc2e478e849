# syntax=docker/dockerfile:1
# searchr3 serve, with the packaged weights inside; it starts without a network.
#   docker build -t searchr3 .
#   docker run -p 8080:8080 -e SEARCHR3_API_KEY=... searchr3
# For NVIDIA GPUs: docker build --build-arg TORCH_BACKEND=cu128 ... ; docker run --gpus all ...

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH_BACKEND=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/searchr3
WORKDIR /src
# torch first, in a layer of its own: it is by far the largest, and changes with constraints.txt only.
COPY constraints.txt ./
RUN pip install "uv==0.9.*" \
    && uv pip install --python /opt/searchr3/bin/python --torch-backend "${TORCH_BACKEND}" "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /opt/searchr3/bin/pip install -c constraints.txt ".[serve]" \
    && /opt/searchr3/bin/python -m compileall -q /opt/searchr3/lib

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 10001 searchr3
COPY --from=build /opt/searchr3 /opt/searchr3
ENV PATH=/opt/searchr3/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1 \
    SEARCHR3_LOG_FORMAT=json
USER 10001
WORKDIR /home/searchr3
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ready', timeout=4)"]
# Reached from outside of the container, so it wants SEARCHR3_API_KEY, or SEARCHR3_ALLOW_NO_KEY=1.
ENTRYPOINT ["searchr3", "serve", "--host", "0.0.0.0", "--port", "8080"]
