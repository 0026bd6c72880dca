"""One machine: boots, is read from, and ends; by itself or, past its bound, by us."""

import os
import select
import subprocess
import time

# ramfs, for a tmpfs would take half of the memory only.
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 loglevel=4 random.trust_cpu=on rootfstype=ramfs"


def command(root, initramfs, memory_mb, accelerator):
    return [
        *root.qemu(),
        *("-machine", "pc", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max,la57=off"),
        *("-m", str(memory_mb), "-nodefaults", "-display", "none", "-no-reboot"),
        *("-kernel", str(root.kernel), "-initrd", str(initramfs)),
    ]


def shell(machine):
    """An interactive machine on this terminal; returns when it is turned off."""
    return subprocess.call([*machine, "-serial", "mon:stdio", "-append", f"{KERNEL_ARGUMENTS} vm.shell"])


RUNNING = set()


def end_all():
    """Ends the machines that run; who reads from them hears that they ended."""
    for process in list(RUNNING):
        process.kill()


class Silent(Exception):
    """The machine ended, or was ended, before it was done."""


def lines(machine, console, seconds):
    """What the machine says on its second serial line, until `done`."""
    deadline = time.monotonic() + seconds
    serial = ["-serial", f"file:{console}", "-serial", "stdio"]
    process = subprocess.Popen(
        [*machine, *serial, "-append", KERNEL_ARGUMENTS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    RUNNING.add(process)
    try:
        pending = b""
        while True:
            ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise Silent(f"not done after {seconds} s, and stopped")
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                said = process.stderr.read().decode(errors="replace").strip()
                raise Silent(f"ended before it was done (status {process.wait()}) {said}")
            *whole, pending = (pending + piece).split(b"\n")
            for line in whole:
                text = line.decode(errors="replace").rstrip("\r")
                if text == "done":
                    return
                yield text
    finally:
        process.kill()
        process.wait()
        RUNNING.discard(process)
