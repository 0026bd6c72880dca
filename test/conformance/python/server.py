"""`svcnet server` on loopback, with directories of its own, for foreign clients. SVCNET_BIN says which."""

import os
import shutil
import socket
import subprocess
import tempfile
import time

from kubernetes import client, config

PATIENCE = 60


def until(what, probe):
    """Waits until the probe gives something."""
    begun = time.monotonic()
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() - begun > PATIENCE:
            raise AssertionError(f"waited {PATIENCE} s in vain until {what}")
        time.sleep(0.05)


class Server:
    """A server that is killed, and leaves nothing."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="svcnet-conformance-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = None
        self.begin()

    def path(self, name):
        return os.path.join(self.dir, name)

    def begin(self):
        with open(self.path("log"), "ab") as log:
            self.process = subprocess.Popen(
                [os.environ["SVCNET_BIN"], "server", "--disable-agent", "--node-name", "n1", "--node-ip", "127.0.0.1",
                 "--bind-address", "127.0.0.1", "--secure-port", str(self.port),
                 "--metrics-bind-address", "127.0.0.1:0", "--log-level", "warn", "--config", "/dev/null",
                 "--data-dir", self.path("data"), "--run-dir", self.path("run"),
                 "--kubeconfig-out", self.path("kubeconfig.yaml")],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log)
        until("the server is ready", self.is_ready)

    def is_ready(self):
        if self.process.poll() is not None:
            with open(self.path("log"), encoding="utf-8") as log:
                raise AssertionError("the server has ended: " + log.read())
        try:
            return client.VersionApi(self.client()).get_code().major == "1" and \
                client.CoreV1Api(self.client()).read_namespace("default")
        except Exception:  # Whatever it is: not yet.
            return None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def client(self, **options):
        """A client of its administrator; `options` are attributes of its configuration."""
        settings = client.Configuration()
        for name, value in options.items():
            setattr(settings, name, value)
        return config.new_client_from_config(self.path("kubeconfig.yaml"), client_configuration=settings)

    def end(self):
        self.kill()
        shutil.rmtree(self.dir)
