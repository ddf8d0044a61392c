"""What a Jetson board takes, from the power monitors on its rails (TI INA3221, INA238): no root, no subprocess.

Two drivers tell it. JetPack 4 has ``ina3221x``, an IIO device: ``rail_name_0``, ``in_power0_input`` in mW. JetPack 5
and newer have the mainline hwmon drivers: ``in1_label``, ``in1_input`` in mV, ``curr1_input`` in mA
(docs.kernel.org/hwmon/ina3221), and for the INA238 ``power1_input`` in uW (docs.kernel.org/hwmon/ina238).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_agent.monitor.board.system_files import SystemFiles

# A rail that all others hang on: Nano; TX1, TX2, Xavier NX, Orin Nano and NX; the carrier board of AGX Thor.
_WHOLE = ("POM_5V_IN", "VDD_IN", "VIN")
# Where no rail carries all, those that do so together. VDDQ_VDD2_1V8AO (memory) hangs on VIN_SYS_5V0 and counts once.
_TOGETHER = (
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor
)
# Rails of the GPU alone; VDD_GPU_SOC and VDD_CPU_GPU_CV carry more than it.
_GPU = ("VDD_GPU", "VDD_SYS_GPU", "POM_5V_GPU", "GPU")

_HWMON = "sys/class/hwmon/hwmon*"
_IIO = ("sys/bus/i2c/drivers/ina3221x/*/iio:device*", "sys/bus/i2c/drivers/ina3221x/*/iio_device")
_INA238_NAMES = frozenset({"ina238", "ina237"})


@dataclass(frozen=True, slots=True)
class Rail:
    """One rail and the files that tell its power: one file, or voltage and current; ``scale`` makes watts of them."""

    name: str
    factors: tuple[str, ...]
    scale: float


def find_rails(files: SystemFiles) -> tuple[Rail, ...]:
    """The board's rails; empty where it has no monitors, or their driver is not loaded yet."""
    rails = [rail for folder in files.find(_HWMON) for rail in _of_hwmon(files, folder)]
    if not rails:
        folders = [folder for pattern in _IIO for folder in files.find(pattern)]
        rails = [rail for folder in folders for rail in _of_iio(files, folder)]
    return tuple({rail.name: rail for rail in reversed(rails)}.values())


def read_rails(files: SystemFiles, rails: Sequence[Rail]) -> dict[str, float]:
    """Watts by rail name; a rail that does not answer is left out."""
    found: dict[str, float] = {}
    for rail in rails:
        watts = rail.scale
        for path in rail.factors:
            factor = files.number(path)
            if factor is None:
                break
            watts *= factor
        else:
            found[rail.name] = watts
    return found


def whole_w(rails: Mapping[str, float]) -> float | None:
    """What the board takes: of the module, of the whole board where that is measured (Nano, Thor).

    Args:
        rails: Watts by rail name.
    Returns:
        None for rails that nobody has told the meaning of: a wrong sum would be worse.
    """
    for name in _WHOLE:
        if name in rails:
            return rails[name]
    for names in _TOGETHER:
        if all(name in rails for name in names):
            return sum(rails[name] for name in names)
    return None


def gpu_w(rails: Mapping[str, float]) -> float | None:
    """What the GPU takes, where it has a rail of its own."""
    return next((rails[name] for name in _GPU if name in rails), None)


def _of_hwmon(files: SystemFiles, folder: str) -> list[Rail]:
    kind = files.text(f"{folder}/name") or ""
    if kind in _INA238_NAMES and files.exists(f"{folder}/power1_input"):
        # AGX Thor's carrier board has one, at its input, without a label; tegrastats calls it VIN.
        return [Rail(files.text(f"{folder}/in1_label") or "VIN", (f"{folder}/power1_input",), 1e-6)]
    if not kind.startswith("ina3221"):
        return []
    rails = []
    for channel in (1, 2, 3):  # in7_label is the sum of shunt voltages, no rail
        name = files.text(f"{folder}/in{channel}_label")
        if name and name != "NC":
            factors = (f"{folder}/in{channel}_input", f"{folder}/curr{channel}_input")
            rails.append(Rail(name, factors, 1e-6))  # mV times mA
    return rails


def _of_iio(files: SystemFiles, folder: str) -> list[Rail]:
    rails = []
    for channel in (0, 1, 2):
        name = files.text(f"{folder}/rail_name_{channel}")
        if name and name != "NC":
            rails.append(Rail(name, (f"{folder}/in_power{channel}_input",), 1e-3))
    return rails
