"""Peers at work that cannot share our environment, run by `foreign` under an interpreter that has them.

It knows nothing of fedglm. It says `ready`, reads a request a line from its standard input, as JSON, and answers each
with a line:
`scheme` is `nncodec` or `blockwise8`, `update` a file of float32, `tensors` a list of names and shapes, `density` the
share of values to send, `repeats` how often to time it. The answer holds bytes, seconds, the number of values sent, and
the file `decoded` holds float32.
"""

import json
import math
import os
import sys
from time import perf_counter

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise, quantize_blockwise
from nncodec import nnc
from nncodec.nnc_core.common import get_qp_from_stepsize

QP_DENSITY = 2
BLOCK = 4096


class NNCodec:
    """Top-k of the whole update, then its encoder with the settings of `nncodec.fl`, at one QP for all tensors.

    The step is the mean magnitude of what is sent, rounded to a QP: nearly every value then takes the level 1 or -1,
    the cheapest code that loses none of them.
    """

    def encode(self, tensors, density):
        """The stream, and the number of values that are not zero."""
        magnitudes = np.abs(np.concatenate([values.reshape(-1) for values in tensors.values()]))
        count = max(1, round(density * magnitudes.size))
        threshold = np.partition(magnitudes, -count)[-count]
        sent = magnitudes[magnitudes >= threshold]
        step = min(float(sent.mean(dtype=np.float64)), 1.99 * float(threshold))
        qp = math.floor(get_qp_from_stepsize(step, QP_DENSITY))
        stream = nnc.compress(
            {name: np.where(np.abs(v) >= threshold, v, np.float32(0)) for name, v in tensors.items()},
            bitstream_path=None,
            qp=qp,
            nonweight_qp=qp,
            use_dq=False,
            param_opt=True,
            row_skipping=False,
            approx_param_base=self._base(),
            compress_differences=True,
            int_quant_bw=None,
            return_bitstream=True,
        )
        return bytearray(stream), sent.size

    def decode(self, stream, tensors):
        """The tensors; one of which nothing was sent is not in the stream."""
        found = nnc.decompress(stream, approx_param_base=self._base())
        return [found.get(name, np.zeros(values.shape, np.float32)) for name, values in tensors.items()]

    def _base(self):
        """What its Flower client starts with: differences to a base of which nothing has been coded yet."""
        return {"parameters": {}, "put_node_depth": {}, "device_id": 0, "parameter_id": {}}


class Blockwise8:
    """A byte a value, a float32 scale for each 4096 of a tensor, and a table of 256 float32 for each tensor."""

    def encode(self, tensors, _density):
        """Table, scales and bytes of each tensor; all values are sent."""
        parts = []
        for values in tensors.values():
            levels, state = quantize_blockwise(torch.from_numpy(values), blocksize=BLOCK)
            parts += [state.code.numpy().tobytes(), state.absmax.numpy().tobytes(), levels.numpy().tobytes()]
        return b"".join(parts), sum(values.size for values in tensors.values())

    def decode(self, stream, tensors):
        """The tensors; their shapes are known to both ends."""
        at, found = 0, []
        for values in tensors.values():
            blocks = -(-values.size // BLOCK)
            # Copies: within the stream they need not lie where torch wants float32 to lie.
            code = torch.from_numpy(np.frombuffer(stream, "<f4", 256, at).copy())
            absmax = torch.from_numpy(np.frombuffer(stream, "<f4", blocks, at + 1024).copy())
            at += 1024 + 4 * blocks
            levels = torch.from_numpy(np.frombuffer(stream, np.uint8, values.size, at).copy())
            at += values.size
            state = QuantState(absmax=absmax, code=code, blocksize=BLOCK, dtype=torch.float32)
            found.append(dequantize_blockwise(levels, state).numpy())
        return found


SCHEMES = {"nncodec": NNCodec(), "blockwise8": Blockwise8()}


def answer(request):
    """Code and decode one update, and time both: the best of some runs after a first one."""
    scheme = SCHEMES[request["scheme"]]
    update = np.fromfile(request["update"], "<f4")
    tensors, at = {}, 0
    for name, shape in request["tensors"]:
        size = math.prod(shape)
        tensors[name] = update[at : at + size].reshape(shape)
        at += size
    encoding, decoding = [], []
    for _ in range(request["repeats"] + 1):
        start = perf_counter()
        stream, sent = scheme.encode(tensors, request["density"])
        middle = perf_counter()
        decoded = scheme.decode(stream, tensors)
        encoding.append(middle - start)
        decoding.append(perf_counter() - middle)
    np.concatenate([values.reshape(-1) for values in decoded]).astype("<f4").tofile(request["decoded"])
    return {"bytes": len(stream), "sent": sent, "encode": min(encoding[1:]), "decode": min(decoding[1:])}


def main():
    """Answer until the input ends. What the peers print goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    torch.set_num_threads(1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
