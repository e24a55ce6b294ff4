"""llama.cpp at work, run by `decode` under an interpreter that has xllamacpp.

It knows nothing of fedglm. Its arguments are GGUF files; it says `ready` when it has opened them all, on one thread
each. Then it reads requests, a line each, as JSON (`model`: number of a file, `prompt`: number of tokens to read,
`tokens`: number to write), and answers each with a line: milliseconds a token read, and a token written, as llama.cpp's
own clock has them.
"""

import json
import sys

import xllamacpp


def open_model(path):
    """A server of one slot, on the processor."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 512
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = 0
    return xllamacpp.Server(params)


def answer(server, request):
    """Write greedily, never stopping at a token of its own."""
    done = server.handle_completions(
        {
            "prompt": [5] * request["prompt"],
            "n_predict": request["tokens"],
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": False,
        }
    )
    timings = done["timings"]
    if timings["prompt_n"] != request["prompt"] or timings["predicted_n"] != request["tokens"]:
        raise RuntimeError(f"llama.cpp did something else than asked: {timings}")
    return {"prefill": timings["prompt_ms"], "decode": timings["predicted_per_token_ms"]}


if __name__ == "__main__":
    servers = [open_model(path) for path in sys.argv[1:]]
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(servers[request["model"]], request)), flush=True)
