"""What the machine is made of, out of Debian packages: downloaded and unpacked below the cache, never installed."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

# What a check may name in its header, and the package and file that bring it.
PROGRAMS = {
    "conntrack": ("conntrack", "usr/sbin/conntrack"),
    "curl": ("curl", "usr/bin/curl"),
    "ip": ("iproute2", "bin/ip"),
    "ipvsadm": ("ipvsadm", "sbin/ipvsadm"),
    "kubectl": ("kubernetes-client", "usr/bin/kubectl"),
    "nft": ("nftables", "usr/sbin/nft"),
    "socat": ("socat", "usr/bin/socat"),
    "ss": ("iproute2", "bin/ss"),
    "tc": ("iproute2", "sbin/tc"),
    "tcpdump": ("tcpdump", "usr/bin/tcpdump"),
    "wg": ("wireguard-tools", "usr/bin/wg"),
}
# What every machine has: a shell that honours the PATH (busybox's own prefers its applets), and module loading.
ALWAYS = {"dash": ("dash", "bin/dash"), "kmod": ("kmod", "bin/kmod"), "ip": PROGRAMS["ip"]}
KERNEL = "linux-image-cloud-amd64"
QEMU = "qemu-system-x86"
BUSYBOX = "busybox-static"
LOADER = "lib64/ld-linux-x86-64.so.2"
LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


class Missing(Exception):
    """Something that the user can provide."""


class Root:
    """A directory tree with the packages unpacked in it, and how to run programs of it on this host."""

    def __init__(self, path):
        self.path = path
        (self.kernel,) = path.glob("boot/vmlinuz-*")
        self.kernel_version = self.kernel.name.removeprefix("vmlinuz-")
        self.modules = path / "lib/modules" / self.kernel_version

    def program(self, name):
        _, file = PROGRAMS.get(name) or ALWAYS[name]
        return self.path / file

    def loaded(self, program):
        """The command that runs a program of the tree with the libraries of the tree."""
        libraries = ":".join(str(self.path / directory) for directory in LIBRARIES)
        return [str(self.path / LOADER), "--library-path", libraries, str(program)]

    def libraries(self, program):
        """The shared libraries that a program of the tree needs, the loader among them; none if it is static."""
        loader, option, path, program = self.loaded(program)
        listed = subprocess.run([loader, option, path, "--list", program], capture_output=True, text=True)
        if listed.returncode != 0:
            return []
        words = [line.split("=>")[-1].split() for line in listed.stdout.splitlines()]
        found = [Path(line[0]) for line in words if line and line[0].startswith(str(self.path))]
        return [self.path / LOADER, *found]

    def qemu(self):
        """The command line that starts qemu: this host's own if it has one."""
        if own := shutil.which("qemu-system-x86_64"):
            return [own]
        data = [option for part in ("qemu", "seabios") for option in ("-L", str(self.path / "usr/share" / part))]
        modules = self.path / "usr/lib/x86_64-linux-gnu/qemu"
        return ["env", f"QEMU_MODULE_DIR={modules}", *self.loaded(self.path / "usr/bin/qemu-system-x86_64"), *data]


def fetch(cache, say):
    """The tree; downloads and unpacks at the first call, or when what is wanted has changed."""
    wanted = {QEMU, BUSYBOX, KERNEL} | {package for package, _ in (*PROGRAMS.values(), *ALWAYS.values())}
    if kubectl():
        wanted.discard("kubernetes-client")
    key = hashlib.sha256(" ".join(sorted(wanted)).encode()).hexdigest()[:12]
    tree = cache / f"packages-{key}"
    if not tree.exists():
        for program in ("apt-get", "dpkg-deb"):
            if not shutil.which(program):
                raise Missing(f"no {program} on the PATH: the machine is made of Debian's packages")
        say("fetching Debian's kernel, qemu and programs (once; about 75 MB)")
        for old in cache.glob("packages-*"):
            shutil.rmtree(old)
        scratch = cache / "packages-new"
        unpack(download(cache, wanted), scratch)
        index_modules(Root(scratch))
        scratch.rename(tree)
    return Root(tree)


def download(cache, wanted):
    """The package files of `wanted` and all that they depend on; the kernel alone, for it would bring an init system."""
    files = cache / "debs"
    shutil.rmtree(files, ignore_errors=True)
    (files / "partial").mkdir(parents=True)
    # As on a host with nothing installed, so that every dependency is fetched; and below the cache, so that no root is needed.
    nothing = cache / "nothing-installed"
    nothing.write_text("")
    apt = ["apt-get", "-q", "-y", "-o", f"Dir::State::status={nothing}", "-o", f"Dir::Cache::archives={files}"]
    apt += ["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]
    if os.geteuid() == 0:
        run(["apt-get", "-q", "update"])
    run([*apt, "--no-install-recommends", "--download-only", "install", *sorted(wanted - {KERNEL})])
    depends = run(["apt-cache", "depends", "--important", KERNEL]).splitlines()
    kernels = [line.split()[-1] for line in depends if "Depends:" in line]
    run([*apt, "download", *kernels], cwd=files)
    return sorted(files.glob("*.deb"))


def unpack(files, tree):
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    for file in files:
        run(["dpkg-deb", "-x", str(file), str(tree)])
    shutil.rmtree(files[0].parent)


def index_modules(root):
    """modules.dep and its kin, which a package leaves to its installation."""
    # kmod does what the name says that it is called by.
    depmod = root.loaded(root.program("kmod"))
    run([*depmod[:1], "--argv0", "depmod", *depmod[1:], "-b", str(root.path), root.kernel_version])


def kubectl():
    """A static kubectl of this host: what is on the PATH, or where that picks among versions, the newest of them."""
    found = shutil.which("kubectl")
    if not found:
        return None
    found = Path(found).resolve()
    versions = sorted(found.parent.glob("kubectl.1.*"), key=lambda path: int(path.name.rpartition(".")[2]))
    newest = versions[-1] if versions else found
    # A program without an interpreter needs no libraries.
    with newest.open("rb") as file:
        static = file.read(4) == b"\x7fELF" and b"ld-linux" not in file.read(4096)
    return newest if static else None


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise Missing(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout
