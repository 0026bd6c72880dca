"""The machine's file system, written as one cpio archive (format newc) that the kernel unpacks into memory."""

import json
import re
import stat
import subprocess
from pathlib import Path

from packages import Missing, kubectl

# Modules that the kernel may ask for while it serves svcnet; what they depend on comes along.
MODULES = (
    "kernel/net/bridge",
    "kernel/net/ipv4",
    "kernel/net/ipv6",
    "kernel/net/llc",
    "kernel/net/netfilter",
    "kernel/net/sched",
    "kernel/net/sctp",
    "kernel/drivers/net/dummy.ko",
    "kernel/drivers/net/ifb.ko",
    "kernel/drivers/net/ipvlan",
    "kernel/drivers/net/macvlan.ko",
    "kernel/drivers/net/tun.ko",
    "kernel/drivers/net/veth.ko",
    "kernel/drivers/net/vxlan",
    "kernel/drivers/net/wireguard",
)
INDEXES = ("alias.bin", "builtin.bin", "builtin.alias.bin", "dep.bin", "softdep", "symbols.bin")


# How the names of programs begin that are built with svcnet and lie beside it.
BESIDE = "svcnet-"


class Archive:
    """Collects entries; the directories above an entry are made with the first one that needs them."""

    def __init__(self):
        self.entries = {}

    def directory(self, name):
        parent = ""
        for part in name.split("/"):
            parent = f"{parent}/{part}".lstrip("/")
            self.entries.setdefault(parent, (stat.S_IFDIR | 0o755, b""))

    def file(self, name, content, mode=0o644):
        self.directory(name.rpartition("/")[0] or "root")
        self.entries[name] = (stat.S_IFREG | mode, content)

    def link(self, name, target):
        self.directory(name.rpartition("/")[0])
        self.entries[name] = (stat.S_IFLNK | 0o777, target.encode())

    def copy(self, name, path):
        self.file(name, path.read_bytes(), path.stat().st_mode & 0o777)

    def write(self, out):
        for inode, (name, (mode, content)) in enumerate(self.entries.items(), 1):
            self._entry(out, inode, name, mode, content)
        self._entry(out, 0, "TRAILER!!!", 0, b"")

    @staticmethod
    def _entry(out, inode, name, mode, content):
        encoded = name.encode() + b"\0"
        numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        out.write(header + bytes(-len(header) % 4))
        out.write(content)
        out.write(bytes(-len(content) % 4))


def build(out, root, svcnet, guest, checks, order, cache):
    """Writes the archive: base, the checks, what they declare, and `order`, the list of those to run."""
    archive = Archive()
    for name in ("dev", "proc", "sys", "run", "tmp", "var", "root", "etc/svcnet"):
        archive.directory(name)
    base(archive, root)
    programs = {program for check in checks for program in check.programs}
    for name in sorted(programs):
        if name.startswith(BESIDE):
            add_built(archive, svcnet.with_name(name), cache)
        else:
            add_program(archive, root, name)
    archive.file("bin/svcnet", stripped(svcnet, cache).read_bytes(), 0o755)
    archive.link("opt/cni/bin/svcnet", "/bin/svcnet")
    for path in sorted(guest.iterdir()):
        archive.copy("init" if path.name == "init" else f"vm/{path.name}", path)
    for check in checks:
        archive.file(f"vm/checks/{check.name}", check.text.encode(), 0o755)
    for package, target in sorted({check.tests for check in checks if check.tests}):
        archive.file(f"vm/tests/{target}", stripped(tests(package, target), cache).read_bytes(), 0o755)
    archive.file("vm/order", order.encode())
    with out.open("wb") as file:
        archive.write(file)


def base(archive, root):
    busybox = root.path / "bin/busybox"
    archive.copy("bin/busybox", busybox)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in sorted(set(applets) - {"busybox"}):
        archive.link(f"bin/{applet}", "busybox")
    for name in ("dash", "kmod", "ip"):
        add_program(archive, root, name)
    archive.link("bin/sh", "dash")
    for name in ("modprobe", "insmod", "lsmod", "rmmod", "modinfo"):
        archive.entries.pop(f"bin/{name}", None)
        archive.link(f"sbin/{name}", "../bin/kmod")
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\n")
    archive.file("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")
    add_modules(archive, root)


def add_program(archive, root, name):
    own = kubectl() if name == "kubectl" else None
    if own:
        archive.file("bin/kubectl", own.read_bytes(), 0o755)
        return
    path = root.program(name)
    archive.file(f"bin/{name}", path.read_bytes(), 0o755)
    for library in root.libraries(path):
        place = str(library.relative_to(root.path))
        if place not in archive.entries:
            archive.copy(place, library)


def add_built(archive, binary, cache):
    if not binary.is_file():
        raise Missing(f"there is no {binary}: run `cargo build -p {binary.name}`, as svcnet itself was built")
    archive.file(f"bin/{binary.name}", stripped(binary, cache).read_bytes(), 0o755)


def add_modules(archive, root):
    depends = {}
    for line in (root.modules / "modules.dep").read_text().splitlines():
        module, _, needed = line.partition(":")
        depends[module] = needed.split()
    for module, needed in depends.items():
        if module.startswith(MODULES):
            for path in (module, *needed):
                place = f"lib/modules/{root.kernel_version}/{path}"
                if place not in archive.entries:
                    archive.copy(place, root.modules / path)
    for index in INDEXES:
        archive.copy(f"lib/modules/{root.kernel_version}/modules.{index}", root.modules / f"modules.{index}")


def tests(package, target):
    """The program of a test target, built if need be; it is static, as all that is built here."""
    # Of the whole workspace: dependencies are those that are built by now, with the same features.
    command = ["cargo", "test", "-q", "--workspace", "--test", target, "--no-run", "--message-format", "json"]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == target and f"#{package}@" in message["package_id"]:
            return Path(message["executable"])
    raise Missing(f"`{' '.join(command)}` made no program")


def stripped(binary, cache):
    """A copy without symbols, made anew when the binary has changed."""
    status = binary.stat()
    # Cargo puts a hash behind the names of test programs.
    name = re.sub(r"-[0-9a-f]{16}$", "", binary.name)
    copy = cache / f"{name}.{status.st_mtime_ns:x}-{status.st_size:x}"
    if not copy.exists():
        for old in cache.glob(f"{name}.*"):
            old.unlink()
        scratch = cache / "stripping"
        subprocess.run(["strip", "-o", scratch, binary], check=True)
        scratch.rename(copy)
    return copy
