"""The catalogue as the Markdown tables of docs/devices.md."""

from collections.abc import Iterable, Sequence

from services.simulator.hardware.catalogue import Catalogue
from services.simulator.hardware.device import DeviceSpec, Figure
from services.simulator.hardware.models import find_model
from services.simulator.hardware.roofline import RooflineTimer

_SPECIFICATION = (
    "device",
    "vendor",
    "16-bit TFLOPS",
    "memory MiB",
    "GB/s",
    "interconnect GB/s",
    "host link GB/s",
    "TDP W",
)
_EFFICIENCY = ("device", "compute", "= TFLOPS", "memory", "= GB/s", "overhead ms")
_SENSITIVITY = ("assumed of the A10", "prompt of 1014, ms", "times the A100's", "decode step, ms", "times the A100's")


def device_tables(catalogue: Catalogue) -> str:
    """Specifications, effective rates, prices, notes and sources: Markdown, ending in a newline."""
    return "\n".join(
        [
            "### Specifications\n",
            _table(_SPECIFICATION, map(_specification, catalogue.devices)),
            "### Effective rates\n",
            _table(_EFFICIENCY, map(_efficiency, catalogue.devices)),
            "### Prices, US$ per hour\n",
            _prices(catalogue.devices),
            "### Notes on single figures\n",
            _notes(catalogue.devices),
            "### Sources\n",
            "".join(f"* `{key}`: {meaning}\n" for key, meaning in catalogue.sources.items()),
        ]
    )


def sensitivity_table(catalogue: Catalogue) -> str:
    """What LLaMA3-8B on an A10 beside an A100 80GB SXM becomes when the A10's efficiencies are off by a quarter."""
    a10, a100 = catalogue.device("A10"), catalogue.device("A100 80GB SXM")
    compute, memory = a10.compute_efficiency.value, a10.memory_efficiency.value
    variants = (
        ("as catalogued", a10),
        ("compute 25 % slower", a10.assuming(compute_efficiency=0.75 * compute)),
        ("compute 25 % faster", a10.assuming(compute_efficiency=1.25 * compute)),
        ("memory 25 % slower", a10.assuming(memory_efficiency=0.75 * memory)),
        ("memory 25 % faster", a10.assuming(memory_efficiency=1.25 * memory)),
        ("overhead 2 ms", a10.assuming(step_overhead_s=0.002)),
        ("compute 0.673, as the A100", a10.assuming(compute_efficiency=a100.compute_efficiency.value)),
    )
    prompt, decode = _times(a100)
    rows = []
    for words, device in variants:
        ours, step = _times(device)
        rows.append((words, f"{ours:.0f}", f"{ours / prompt:.2f}", f"{step:.1f}", f"{step / decode:.2f}"))
    return _table(_SENSITIVITY, rows)


def _times(device: DeviceSpec) -> tuple[float, float]:
    """Milliseconds of a prompt of 1014 tokens, and of a decode step of 16 sequences of 1137 (1014 + 247 / 2) each."""
    timer = RooflineTimer(device, find_model("LLaMA3-8B"), "float16")
    return 1e3 * timer.step_seconds(((1014, 0),), 0, 0), 1e3 * timer.step_seconds((), 16, 16 * 1137)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _specification(device: DeviceSpec) -> tuple[str, ...]:
    return (
        device.name,
        device.vendor,
        _cell(device.fp16_tflops) + ("" if device.bf16 else ", fp16 only"),
        _cell(device.memory_mib),
        _cell(device.memory_gb_s),
        f"{device.interconnect}: {_cell(device.interconnect_gb_s)}",
        f"{device.host_link}: {_cell(device.host_link_gb_s)}",
        _cell(device.tdp_w),
    )


def _efficiency(device: DeviceSpec) -> tuple[str, ...]:
    return (
        device.name,
        _cell(device.compute_efficiency),
        f"{device.flops / 1e12:.0f}",
        _cell(device.memory_efficiency),
        f"{device.bytes_per_s / 1e9:.0f}",
        _cell(device.step_overhead_ms),
    )


def _prices(devices: Sequence[DeviceSpec]) -> str:
    lists = sorted({name for device in devices for name in device.prices})
    priced = [device for device in devices if device.prices]
    rows = ([device.name, *(_cell(device.prices.get(name)) for name in lists)] for device in priced)
    return _table(("device", *lists), rows)


def _notes(devices: Sequence[DeviceSpec]) -> str:
    return "".join(
        f"* {device.name}, `{field}`: {figure.note}\n"
        for device in devices
        for field, figure in device.figures()
        if figure.note
    )


def _cell(figure: Figure | None) -> str:
    """The value and, short, its source: * recalled, ~ estimated, else the source's key."""
    if figure is None:
        return ""
    value = f"{figure.value:g}" if figure.value < 1e5 else f"{figure.value:.0f}"
    if figure.is_recalled:
        return f"{value}*"
    return f"~{value}" if figure.is_estimated else f"{value} ({figure.source})"
