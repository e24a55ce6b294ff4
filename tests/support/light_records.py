"""Records of light models, as `fedglm lighten` writes them beside a release."""

MATRICES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def light_record(*, met=True, layers=8, **changes):
    """A record; without `met` one of a search that released nothing."""
    names = ["dense", "control, trained as long", "int8", "int4", "ternary", "chosen: ternary, cut"]
    ratios = (1.0, 1.0, 3.9, 7.3, 14.1, 20.3)
    rows = [
        {
            "name": name,
            "bytes": round(1_907_000 / ratio),
            "size_ratio": ratio,
            "bits_per_weight": 32 / ratio,
            "parameters": 476_736,
            "loss": 1.52 + 0.015 * number,
            "deviation": 0.013,
            "count": 81_264,
            "metric_value": 4.57 + 0.06 * number,
            "loss_rise": 0.008 * number,
            "kl_mean": 0.002 * number,
            "kl_99": 0.02 * number,
            "agreement": 1 - 0.02 * number,
            "unknown": 0,
            "decode_ms": 0.4 / (number + 1) if number != 1 else None,
            "prefill_ms": 2.5 if number != 1 else None,
            "peak_bytes": 95_800_000 if number == 5 else None,
        }
        for number, (name, ratio) in enumerate(zip(names, ratios, strict=True))
    ]
    frontier = [
        {"name": name, "size_ratio": ratio, "loss_rise": rise, "in_full": full}
        for name, ratio, rise, full in (
            ("int8", 3.9, 0.0004, True), ("int4", 7.3, 0.004, True), ("ternary", 14.1, 0.032, True),
            ("ternary, cut", 20.3, 0.043, True), ("sparse-ternary, cut", 24.6, 0.071, False),
        )
    ]  # fmt: skip
    record = {
        "goals": "at least 20x smaller; at most 5.00% worse than the equally trained dense model",
        "goal_ratio": 20.0,
        "tolerance": 0.05,
        "met": met,
        "name": "ternary, cut" if met else None,
        "bytes": 93_941 if met else None,
        "reference_bytes": 1_907_000,
        "size_ratio": 20.3 if met else None,
        "loss": 1.595 if met else None,
        "control_loss": 1.529,
        "dense_loss": 1.541,
        "loss_rise": 0.043 if met else None,
        "metric": "perplexity",
        "stages": ["adapt to the public text", "prune", "quantize", "pack", "verify"] if met else [],
        "rows": rows if met else rows[:5],
        "frontier": frontier,
        "nearest": frontier[3],
        "left_out": [{"name": "int8, cut", "excess": 1.8}, {"name": "int4, cut", "excess": 0.6}],
        "repair": {
            "min_cosine": 0.995,
            "deviating": ["model.layers.1.mlp.down_proj.weight"] if layers else [],
            "way": "bits" if layers else None,
            "layers": ["model.layers.1.mlp.down_proj.weight"] if layers else [],
            "kept": layers > 0,
            "outcome": "the loss is lower" if layers else "no layer deviates",
            "loss_before": 1.612,
            "loss_after": 1.595 if layers else None,
            "bytes_before": 92_800,
            "bytes_after": 93_941 if layers else None,
        } if met else None,
        "layers": [
            {
                "name": f"model.layers.{number // 4}.{MATRICES[number % 4]}.weight",
                "scheme": "ternary, a scale a row",
                "weights": 16_384,
                "bits_per_weight": 1.72,
                "entropy": 1.42,
                "zeros": 0.57,
                "cosine": 0.9985 - 0.004 * number / max(layers, 1),
                "error": 0.003 + 0.001 * number,
                "repair": ("ternary -> int2: cosine 0.9931 -> 0.9950",) if number == layers - 1 else (),
            }
            for number in range(layers)
        ],
        "files": {
            "weights.safetensors": 87_000, "skeletons.lzma": 1_761, "config.json": 472, "task.json": 118,
            "README.md": 1_090, "manifest.json": 3_404, "manifest.sig": 96,
        },
        "privacy": "The run that trained the model spent epsilon 3 at delta 1e-05; making it light adds nothing.",
        "text": "1,204 sequences of docstrings of Python's standard library, at no site",
        "seed": 7,
        "steps": 600,
        "seconds": 312.4,
        "interrupted": False,
        "models_made": 4,
        "models_from_cache": 6,
        "device": "x86_64, one thread",
        "versions": {"fedglm": "0.1.0", "torch": "2.13.0"},
        "not_measured": ["power", "other devices than this one"],
        "limits": ["no medical device: its output needs a person's judgement"],
    }  # fmt: skip
    return (record if met else record | {"layers": [], "files": {}}) | changes


def diagnosis_record(*, layers=3, **changes):
    """The values of a diagnosis, as `fedglm lighten --diagnose --json` prints them."""
    kinds = [("embedding", "embedding", None)]
    for layer in range(layers):
        kinds += [("layer", f"{layer} layer", layer), ("ffn", f"{layer} ffn", layer)]
        kinds += [("kv-group", f"{layer} kv-group {group}", layer) for group in range(2)]
        kinds += [("channel", f"{layer} channel 5", layer)]
    rows = []
    for number, (kind, name, layer) in enumerate(kinds):
        whole, rank = kind != "channel", number / len(kinds)
        figures = {
            "removal": None if kind == "embedding" else 0.01 * number,
            "quantization": 0.001 * number if whole else None,
            "svd": 0.4 + 0.01 * number if whole else None,
            **dict.fromkeys(("taylor", "fisher", "activation", "trace", "l1"), 0.002 * number),
        }
        ranks = {measure: None if value is None else rank for measure, value in figures.items()}
        rows.append({"kind": kind, "layer": layer, "name": name, "parameters": 1000 + number, "ranks": ranks} | figures)
    record = {
        "loss": 1.4321,
        "sequences": 32,
        "rows": rows,
        "curves": [
            {"order": order, "share": share, "rise": 0.1 * share + 0.01 * place}
            for place, order in enumerate(("taylor", "l1", "random"))
            for share in (0.1, 0.3)
        ],
        "redundancy": [
            {"kind": kind, "layer": layer, "units": 8, "redundant": layer, "most_similar": 0.52, "threshold": 0.95}
            for layer in range(layers)
            for kind in ("heads", "channels")
        ],
        "rules": [
            {"rule": "there are redundant heads (similarity from 0.95)", "holds": True, "found": "3 of 24"},
            {"rule": "channels of least L1 norm can go", "holds": False, "found": "30% removed: +0.451"},
        ],
        "text": "64 sequences of docstrings",
        "model": "text_run",
    }
    return record | changes
