//! A containerd of its own, in the node's network namespace.

use std::fs;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use svcnet_cni::cri::{Message, Reader, Runtime};
use svcnet_e2e::{Ran, until};

use crate::image;
use crate::site::Site;

pub(crate) struct Containerd<'a> {
    site: &'a Site,
    child: Child,
    runtime: Runtime,
    tokio: tokio::runtime::Runtime,
}

impl<'a> Containerd<'a> {
    /// Starts it, with the image in it.
    pub(crate) fn start(site: &'a Site) -> Self {
        let config = site.path("containerd.toml");
        let socket = site.runtime_socket();
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {:?}\nrestrict_oom_score_adj = true\n\
             netns_mounts_under_state_dir = true\ndisable_apparmor = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = false\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {:?}\nconf_dir = {:?}\n",
            site.path("containerd-root"),
            site.path("containerd-state"),
            image::NAME,
            site.bin_dir(),
            site.conf_dir(),
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(site.path("containerd.log")).unwrap();
        let mut command = Command::new("containerd");
        command.args(["-c".as_ref(), config.as_os_str()]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = site.node.run(|| command.spawn()).unwrap().unwrap();
        let containerd = Self {
            site,
            child,
            runtime: Runtime::new(&socket),
            tokio: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        };
        let image = image::make(&site.path(""));
        until("containerd takes the image", || {
            let import = containerd.ctr(&["images", "import", image.to_str().unwrap()]);
            import.ok.then_some(())
        });
        until("containerd is ready", || {
            containerd
                .try_call("RuntimeService/Version", &Message::new())
                .ok()
                .map(drop)
        });
        containerd
    }

    pub(crate) fn ctr_command(&self) -> Command {
        let mut command = Command::new("ctr");
        command.args(["-a", self.site.runtime_socket().to_str().unwrap(), "-n", "k8s.io"]);
        command
    }

    pub(crate) fn ctr(&self, args: &[&str]) -> Ran {
        self.site.run(self.ctr_command().args(args))
    }

    /// A call of the CRI.
    pub(crate) fn try_call(&self, method: &str, request: &Message) -> Result<Vec<u8>, String> {
        let answer = self.tokio.block_on(self.runtime.call(method, request));
        answer
            .map(|bytes| bytes.to_vec())
            .map_err(|error| error.to_string())
    }

    pub(crate) fn call(&self, method: &str, request: &Message) -> Vec<u8> {
        self.try_call(method, request)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn remove_all(&self) {
        let Ok(list) = self.try_call("RuntimeService/ListPodSandbox", &Message::new()) else {
            return;
        };
        for sandbox in Reader(&list).all(1).map(Reader) {
            let id = Message::new().text(1, sandbox.text(1));
            let _ = self.try_call("RuntimeService/StopPodSandbox", &id);
            let _ = self.try_call("RuntimeService/RemovePodSandbox", &id);
        }
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.site.path("containerd.log")).unwrap_or_default();
            let lines: Vec<&str> = log
                .lines()
                .filter(|l| l.contains("level=error") || l.contains("level=warn"))
                .collect();
            eprintln!(
                "--- containerd:\n{}",
                lines[lines.len().saturating_sub(15)..].join("\n")
            );
        }
        self.remove_all();
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or_default());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.child.wait();
        // Namespaces of sandboxes that could not be removed.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = self.site.path("");
        for path in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
            if path.starts_with(&*ours.to_string_lossy()) {
                let _ = Command::new("umount").arg(path).status();
            }
        }
    }
}
