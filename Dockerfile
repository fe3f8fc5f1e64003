# For a machine with NVIDIA GPUs, its driver and the NVIDIA container toolkit:
#   docker build -t longctx-bench .
#   docker run --gpus all -v "$PWD/results:/work/results" -v longctx-cache:/cache longctx-bench run --model drope-tiny
# vLLM's engine: docker build --build-arg EXTRAS=hf,vllm -t longctx-bench .
FROM python:3.11-slim

# A C compiler: torch.compile and Triton build their kernels when they first run.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc g++ git && rm -rf /var/lib/apt/lists/*

ARG EXTRAS=hf,longbench,lm-eval,ray,sentencepiece
# torch's own wheels bring CUDA along. vLLM pins versions of its own, so that only extras without it follow constraints.txt.
RUN --mount=type=bind,target=/src,rw cd /src && \
    case ",$EXTRAS," in *,vllm,*) constraint= ;; *) constraint="--constraint constraints.txt" ;; esac && \
    pip install --no-cache-dir $constraint ".[$EXTRAS]" && \
    for package in packages/*/; do pip install --no-cache-dir --no-deps "./$package" || exit 1; done

ENV LONGCTX_BENCH_CACHE=/cache HF_HOME=/cache/huggingface
WORKDIR /work
ENTRYPOINT ["longctx-bench"]
CMD ["--help"]
