"""Devices that are described, and compiling for any device without running."""

from ._described import (
    described_device as described_device,
    described_devices as described_devices,
)
