"""A diagnosis of the language model of `text` on public text, on text that it made, and on its held-out documents.

    fedglm simulate text --no-dp --seed 7 --out RUN
    python benchmarks/sensitivity.py RUN/model --text auto     # or `model`, `held-out`, or a file
    python benchmarks/sensitivity.py RUN/model --text held-out --picture map.png

Which text says the same as held-out documents, which a server does not have? Weights are rounded to INT4, blocks of 32.
"""

import argparse
import time

import numpy as np
import numpy.typing as npt
import torch
from recovery import held_out_text

from fedglm.autoglm.light.public_text import load_public_text
from fedglm.autoglm.light.sensitivity.diagnosis import DiagnosisSettings, diagnose
from fedglm.autoglm.light.sensitivity.heat_map import save_heat_map
from fedglm.autoglm.light.sensitivity.table import format_diagnosis
from fedglm.autoglm.models.release import load_release
from fedglm.autoglm.settings import DataSettings
from fedglm.inference.weights.quantized import QuantizedMatrix

BLOCK, HIGH = 32, 7


def round_to_int4(weight: npt.NDArray[np.float32]) -> QuantizedMatrix:
    """Round symmetrically, the largest magnitude of a block at 7."""
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK)
    padded = np.pad(weight, ((0, 0), (0, blocks * BLOCK - columns))).reshape(rows, blocks, BLOCK)
    scales = (np.abs(padded).max(2) / HIGH).astype(np.float16).astype(np.float32)
    codes = np.rint(padded / np.where(scales > 0, scales, 1)[..., None]).clip(-HIGH, HIGH)
    codes = codes.reshape(rows, -1)[:, :columns].astype(np.int8)
    return QuantizedMatrix(codes=codes, scales=scales, block=BLOCK, low=-HIGH, high=HIGH)


def main() -> None:
    """Print the diagnosis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", default="auto")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--run-seed", type=int, default=7, help="seed of the run, which chose the held-out documents")
    parser.add_argument("--picture", help="file of the heat map")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, task = load_release(chosen.model)
    settings = DataSettings(source="pydoc", length=task.length)
    if chosen.text == "held-out":
        examples = held_out_text(settings, chosen.run_seed)
    else:
        few = 2 * chosen.sequences
        examples = load_public_text(chosen.text, settings, task, model, seed=0, max_sequences=few).train
    started = time.process_time()
    wanted = DiagnosisSettings(sequences=chosen.sequences)
    found = diagnose(model, task, examples, quantize=round_to_int4, settings=wanted)
    print(f"{time.process_time() - started:.0f} CPU-s")
    print(format_diagnosis(found))
    if chosen.picture:
        save_heat_map(found, chosen.picture)


if __name__ == "__main__":
    main()
