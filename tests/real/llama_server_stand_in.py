"""A `llama-server` for tests: its command line and environment, with xllamacpp's engine behind them."""

import argparse
import os
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--list-devices", action="store_true")
parser.add_argument("--model")
parser.add_argument("--alias")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--parallel", type=int)
parser.add_argument("--ctx-size", type=int)
parser.add_argument("--threads", type=int)
parser.add_argument("--threads-batch", type=int)
parser.add_argument("--n-gpu-layers", type=int)
parser.add_argument("--jinja", action="store_true")
parser.add_argument("--no-webui", action="store_true")
parser.add_argument("--embeddings", action="store_true")
parser.add_argument("--pooling", choices=["none", "mean", "cls", "last", "rank"])
parser.add_argument("--kv-unified", action="store_true")
parser.add_argument("--cache-type-k", default="f16")
parser.add_argument("--cache-type-v", default="f16")
parser.add_argument("--cache-ram", type=int, default=8192)
parser.add_argument("--ctx-checkpoints", type=int, default=32)
parser.add_argument("--batch-size", type=int, default=2048)
parser.add_argument("--ubatch-size", type=int, default=512)
options = parser.parse_args()

if options.list_devices:
    print("Available devices:")
    sys.exit()

import xllamacpp  # noqa: E402

params = xllamacpp.CommonParams()
params.model.path = options.model
params.model_alias = {options.alias}
params.hostnames = [options.host]
params.port = options.port
params.api_keys = [os.environ["LLAMA_API_KEY"]]
params.n_parallel = options.parallel
params.n_ctx = options.ctx_size
params.cpuparams.n_threads = options.threads
params.use_jinja = options.jinja
params.kv_unified = options.kv_unified
params.fit_params = False
params.embedding = options.embeddings
if options.pooling:
    params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{options.pooling.upper()}")
params.cache_ram_mib = options.cache_ram
params.n_ctx_checkpoints = options.ctx_checkpoints
params.cache_type_k = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.cache_type_k.upper()}")
params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options.cache_type_v.upper()}")
params.n_batch, params.n_ubatch = options.batch_size, options.ubatch_size
server = xllamacpp.Server(params)
time.sleep(3600)
