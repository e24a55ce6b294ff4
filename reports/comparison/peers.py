"""Published methods that the codecs correspond to, so that a comparison reads as one of methods."""

from fedglm.run_folder.record import RunRecord

_WITH_FEEDBACK = ", with error feedback"
_METHODS = {
    "dense-fp32": "FedAvg as Flower sends it",
    "dense-fp16": "half precision, as NVFLARE offers",
    "int8": "8-bit quantization, as NVFLARE offers",
    "topk-fp16": "sparse FP16 residuals, the source article's",
    "topk-sign": f"STC (Sattler et al. 2019){_WITH_FEEDBACK}",
    "topk-2bit": f"SparseLoCo (Sarfi et al. 2025){_WITH_FEEDBACK}",
    "topk-int8": f"Qsparse-local-SGD (Basu et al. 2019){_WITH_FEEDBACK}",
    "lowrank": "PowerSGD (Vogels et al. 2019), quantized factors",
    "hybrid": "low rank and the sparse rest",
}


def describe_method(run: RunRecord) -> str | None:
    """Name the published method that the run's uplink codec corresponds to; None where it has none."""
    codec = run.text("codec") or ""
    line = _METHODS.get(codec)
    update = run.settings.get("update")
    if line is not None and codec == "topk-sign" and isinstance(update, dict) and update.get("overshoot", 1) != 1:
        line = line.removesuffix(_WITH_FEEDBACK) + f", sent ahead{_WITH_FEEDBACK}"
    if line is not None and isinstance(update, dict) and update.get("feedback") is False:
        return f"{line.removesuffix(_WITH_FEEDBACK)}, without error feedback"
    return line
