"""A device file: processor and memory as the kernel tells them, power where it can be read; and its errors."""

import json
import subprocess
import sys
import time

import pytest
from source_tree import ROOT

from fedglm.inference.device import device_file, measurement
from fedglm.inference.device.device_file import DeviceFile, probe_device
from fedglm.inference.device.power import PowerMeter
from fedglm.inference.device.processor import read_memory, read_processor
from fedglm.inference.errors import InferenceError

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx_vnni\n\nprocessor\t: 1\nflags\t: fpu\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\n"


def machine(folder, text, caches=()):
    (folder / "cpuinfo").write_text(text)
    for number, size in enumerate(caches):
        path = folder / "devices/system/cpu/cpu0/cache" / f"index{number}" / "size"
        path.parent.mkdir(parents=True)
        path.write_text(size + "\n")
    return read_processor(folder, folder)


@pytest.mark.parametrize(
    ("text", "name", "present"),
    [(X86, "Some CPU", {"avx2", "avx512", "vnni"}), (ARM, "", {"neon", "dotprod"}), ("", "", set())],
)
def test_features_are_those_that_the_kernel_lists(text, name, present, tmp_path):
    found = machine(tmp_path, text)
    assert found.name == name
    assert {feature for feature, there in found.features.items() if there} == present
    assert found.cache_bytes == 0


def test_the_largest_cache_counts(tmp_path):
    assert machine(tmp_path, X86, ("32K", "1M", "512K")).cache_bytes == 2**20


def test_memory_is_measured(monkeypatch):
    found = read_memory()
    assert 0 < found.available_bytes <= found.limit_bytes
    monkeypatch.setattr(measurement, "_HELD", (2**20, 2**22))
    monkeypatch.setattr(measurement, "_READ_ROWS", (1, 4))
    monkeypatch.setattr(measurement, "_MAX_RUNS", 20)
    reads = measurement.measure_reads(1, 0.0)
    assert [(read.format, read.rows) for read in reads] == [
        (form, rows) for form in ("fp32", "int8", "int4") for _ in range(2) for rows in (1, 4)
    ]
    assert all(2**20 * 0.7 < read.held_bytes <= 2**22 for read in reads)
    assert all(1e7 < read.bytes_per_s < 1e12 for read in reads)


def zone(folder, name, energy, most=10**9):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{energy}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{most}\n")


def test_power_is_that_of_all_packages_also_where_a_counter_runs_over(tmp_path):
    zone(tmp_path, "intel-rapl:0", 10**9 - 1_000_000)
    zone(tmp_path, "intel-rapl:1", 5)
    zone(tmp_path, "intel-rapl:0:0", 7)  # a part of the first
    start = time.monotonic()
    with PowerMeter(tmp_path) as meter:
        time.sleep(0.1)
        zone(tmp_path, "intel-rapl:0", 1_999_999)
        zone(tmp_path, "intel-rapl:1", 2_000_005)
    # 3 J and 2 J
    assert 5 / (time.monotonic() - start) <= meter.watts <= 5 / 0.1


def test_power_that_cannot_be_read_is_not_measured(tmp_path):
    with PowerMeter(tmp_path / "none") as meter:
        pass
    assert meter.watts is None
    with PowerMeter(tmp_path) as meter:  # a counter that comes later is none for the whole time
        zone(tmp_path, "intel-rapl:0", 1)
    assert meter.watts is None


@pytest.fixture
def quick(monkeypatch):
    """A probe of few and small operations."""
    monkeypatch.setattr(measurement, "_INPUTS", (64, 128))
    monkeypatch.setattr(measurement, "_OUTPUTS", (64, 128))
    monkeypatch.setattr(measurement, "_ROWS", (1, 8, 64))
    monkeypatch.setattr(measurement, "_HELD", (2**20, 2**21))
    monkeypatch.setattr(measurement, "_MAX_RUNS", 8)


@pytest.mark.usefixtures("quick")
def test_a_device_file_comes_back(tmp_path):
    seen = []
    made = probe_device(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, len(seen)) for number in range(1, len(seen) + 1)]
    made.save(tmp_path / "edge.json")
    assert DeviceFile.load(tmp_path / "edge.json") == made
    assert made.latency.formats() == ("fp32", "int8", "int4")


def test_what_is_no_device_file_is_said_in_one_line(tmp_path):
    path = tmp_path / "edge.json"
    with pytest.raises(InferenceError, match=r"fedglm device probe --out .*edge.json makes one"):
        DeviceFile.load(path)
    for text, said in [("{", "JSON"), ('{"version": 2}', "version"), ("[]", "it")]:
        path.write_text(text)
        with pytest.raises(InferenceError, match=f"no device file of version 1: .*{said}"):
            DeviceFile.load(path)


@pytest.mark.usefixtures("quick")
def test_the_command_prints_the_device_and_writes_its_file(fedglm, tmp_path, monkeypatch):
    shown = fedglm("device", "probe", "--out", tmp_path / "edge.json")
    assert shown.code == 0, shown.err
    assert max(map(len, shown.out.replace(str(tmp_path), "").splitlines())) <= 80
    assert "64 x 128" in shown.out
    device = DeviceFile.load(tmp_path / "edge.json")
    assert ("not measured" in shown.out) == (device.watts is None)
    monkeypatch.setattr(device_file, "probe_device", lambda **_: device)  # a second probe would prove no more
    assert DeviceFile.model_validate_json(fedglm("device", "probe", "--json").out) == device


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_order_of_models_it_never_saw_is_predicted():
    command = [sys.executable, "benchmarks/latency_table.py", "--json"]
    figures = json.loads(subprocess.check_output(command, cwd=ROOT))
    assert figures["decode_rank_correlation"] >= 0.95
    assert figures["prefill_rank_correlation"] >= 0.95
