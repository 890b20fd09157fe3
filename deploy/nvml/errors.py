"""What NVML can refuse, as exceptions of our own that say what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from ..errors import DeployError


class NvmlError(DeployError):
    """NVML did not do what it was asked for; of this very kind if it says no more than that."""

    problem = "NVML failed for a reason that it does not know"
    remedy = "Look at `dmesg` and `nvidia-smi`; if it stays so, reset the GPU or reboot"


class NoPermissionError(NvmlError):
    """Limits and clock locks take privileges."""

    problem = "the driver does not permit it"
    remedy = (
        "Power limits and clock locks take root, or CAP_SYS_ADMIN; in a container run the keeper with "
        "`--cap-add SYS_ADMIN`, and nothing else with it"
    )


class LibraryMissingError(NvmlError):
    """There is no libnvidia-ml.so.1."""

    problem = "libnvidia-ml.so.1 is not found"
    remedy = (
        "Install the NVIDIA driver; in a container use the NVIDIA container toolkit with "
        "NVIDIA_DRIVER_CAPABILITIES=utility; to try things without a GPU run `llmcluster deploy rehearse`"
    )


class LibraryMismatchError(NvmlError):
    """Driver and library are of different versions, or a call is too new for them."""

    problem = "the driver and its library are of different versions"
    remedy = "Reboot or reload the driver after an update; in a container, restart it"


class DriverMissingError(NvmlError):
    """The kernel module is not there, or not any more."""

    problem = "the driver is not loaded"
    remedy = "Load it (`modprobe nvidia`), see whether `nvidia-smi` answers, and start this process again"


class GpuLostError(NvmlError):
    """A GPU fell off the bus."""

    problem = "the GPU is lost"
    remedy = "Look for Xid messages in `dmesg`, drain the server and reset the GPU or reboot"


class MigError(NvmlError):
    """Power and its limit belong to a whole GPU."""

    problem = "the GPU is partitioned (MIG)"
    remedy = (
        "Name the whole GPU by its GPU- UUID or index; its limit would hold for all its instances, so it is set only "
        "with MIG off (`nvidia-smi -mig 0`)"
    )


class NotSupportedError(NvmlError):
    """The GPU or the driver cannot do this."""

    problem = "this GPU or driver does not support it"
    remedy = "Leave this action group out, or update the driver"


class RefusedError(NvmlError):
    """NVML took the value for a wrong one."""

    problem = "NVML refuses the value"
    remedy = "Give one within what `nvidia-smi -q -d POWER,CLOCK` allows"


class NoSuchGpuError(NvmlError):
    """No GPU has that name."""

    problem = "there is no such GPU"
    remedy = "Give an index or a UUID that `nvidia-smi -L` lists, or a product name that only one has"


class SilentError(NvmlError):
    """A call did not come back in time."""

    problem = "NVML does not answer in time"
    remedy = "It is asked again when it does; if it stays so, look at `dmesg` for a hanging GPU"


class NotHeldError(NvmlError):
    """What was written reads back as something else."""

    problem = "the limit that reads back is not the one that was written"
    remedy = "See what else limits the GPU (another tool, a board controller, a datacentre manager)"


_BY_CODE: dict[int, type[NvmlError]] = {
    pynvml.NVML_ERROR_UNINITIALIZED: DriverMissingError,
    pynvml.NVML_ERROR_INVALID_ARGUMENT: RefusedError,
    pynvml.NVML_ERROR_NOT_SUPPORTED: NotSupportedError,
    pynvml.NVML_ERROR_NO_PERMISSION: NoPermissionError,
    pynvml.NVML_ERROR_NOT_FOUND: NoSuchGpuError,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: DriverMissingError,
    pynvml.NVML_ERROR_TIMEOUT: SilentError,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: LibraryMissingError,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: NotSupportedError,
    pynvml.NVML_ERROR_GPU_IS_LOST: GpuLostError,
    pynvml.NVML_ERROR_RESET_REQUIRED: GpuLostError,
    pynvml.NVML_ERROR_OPERATING_SYSTEM: NoPermissionError,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: LibraryMismatchError,
    pynvml.NVML_ERROR_NO_DATA: NotSupportedError,
    pynvml.NVML_ERROR_FREQ_NOT_SUPPORTED: RefusedError,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: NotSupportedError,
    pynvml.NVML_ERROR_DEPRECATED: NotSupportedError,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: GpuLostError,
}


def of_code(code: int, where: str) -> NvmlError:
    """The exception for an NVML return code."""
    if code in _BY_CODE:
        return _BY_CODE[code](where)
    return NvmlError(where, f"NVML failed ({pynvml.NVMLError(code)}, code {code})")


@contextmanager
def mapped(where: str) -> Iterator[None]:
    """Turns what the binding raises within into exceptions of ours about ``where``."""
    try:
        yield
    except pynvml.NVMLLibraryMismatchError as fault:
        raise LibraryMismatchError(where, str(fault)) from fault
    except pynvml.NVMLError as fault:
        raise of_code(fault.value, where) from fault
