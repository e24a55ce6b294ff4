"""What each codec stands for in the field, so that a comparison reads as one of methods and not of names."""

from fedglm.run_folder.record import RunRecord

_WITH = ", with error feedback"
_STANDS_FOR = {
    "dense-fp32": "FedAvg as Flower sends it",
    "dense-fp16": "half precision, as NVFLARE offers",
    "int8": "8-bit quantization, as NVFLARE offers",
    "topk-fp16": "sparse FP16 residuals, the source article's",
    "topk-sign": f"STC (Sattler et al. 2019){_WITH}",
    "topk-2bit": f"SparseLoCo (Sarfi et al. 2025){_WITH}",
    "topk-int8": f"Qsparse-local-SGD (Basu et al. 2019){_WITH}",
    "lowrank": "PowerSGD (Vogels et al. 2019), quantized factors",
    "hybrid": "low rank and the sparse rest",
}


def stands_for(run: RunRecord) -> str | None:
    """A short line on the method that the run's upload stands for; None where the codec has none."""
    codec = run.text("codec") or ""
    line = _STANDS_FOR.get(codec)
    update = run.settings.get("update")
    if line is not None and codec == "topk-sign" and isinstance(update, dict) and update.get("overshoot", 1) != 1:
        line = line.removesuffix(_WITH) + f", sent ahead{_WITH}"
    if line is not None and isinstance(update, dict) and update.get("feedback") is False:
        return f"{line.removesuffix(_WITH)}, without error feedback"
    return line
