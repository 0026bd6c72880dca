//! podman with its CNI backend.

use std::fs;
use std::process::Command;

use svcnet_e2e::{Ran, until};

use crate::image;
use crate::site::Site;

struct Podman<'a> {
    site: &'a Site,
}

impl<'a> Podman<'a> {
    fn new(site: &'a Site) -> Self {
        let config = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{:?}]\nnetwork_config_dir = {:?}\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             [containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=20000:20000\"]\n",
            site.bin_dir(),
            site.conf_dir(),
        );
        fs::write(site.path("containers.conf"), config).unwrap();
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(site.path("policy.json"), policy).unwrap();
        let podman = Self { site };
        let image = image::make(&site.path(""));
        let policy = site.path("policy.json");
        podman
            .run(&[
                "load",
                "--signature-policy",
                policy.to_str().unwrap(),
                "-i",
                image.to_str().unwrap(),
            ])
            .text();
        podman
    }

    fn run(&self, args: &[&str]) -> Ran {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.site.path("containers.conf"));
        let places = [
            ("--root", "podman-root"),
            ("--runroot", "podman-run"),
            ("--tmpdir", "podman-tmp"),
        ];
        for (flag, name) in places {
            command.arg(flag).arg(self.site.path(name));
        }
        self.site
            .run(command.args(["--storage-driver", "vfs"]).args(args))
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        self.run(&["rm", "-fa", "-t", "0"]);
    }
}

#[test]
#[ignore = "takes container runtimes: test/runtimes/run"]
fn podman_publishes_ports_and_asks_for_addresses() {
    let site = Site::up();
    let podman = Podman::new(&site);
    let web = [
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "svcnet",
        "-p",
        "8082:80",
        "--ip",
        "10.244.0.99",
    ];
    let web = [
        &web[..],
        &[
            "--mac-address",
            "02:11:22:33:44:55",
            "--network-alias",
            "front",
            image::NAME,
        ],
    ]
    .concat();
    podman
        .run(&[&web[..], &["/bin/httpd", "-f", "-p", "80", "-h", "/tmp"]].concat())
        .text();
    let lease = &site.leases()[0];
    assert_eq!(lease["addresses"][0], "10.244.0.99");
    assert_eq!(lease["runtime"]["mac"], "02:11:22:33:44:55");
    for member in ["client", "n1"] {
        until(&format!("{member} is answered"), || {
            let got = site.lab.curl(member, "http://172.30.0.11:8082/index.html");
            (got.ok && got.out == "the box\n").then_some(())
        });
    }
    until("the API knows the container", || {
        let ip = site.lab.value("pod/web", "{.status.podIP}");
        (ip.as_deref() == Some("10.244.0.99")).then_some(())
    });
    let aliases = site
        .lab
        .value("pod/web", "{.metadata.annotations.svcnet\\.io/aliases}");
    assert!(
        aliases
            .as_deref()
            .is_some_and(|a| a.split(',').any(|name| name == "front")),
        "{aliases:?}"
    );
    podman.run(&["rm", "-f", "-t", "0", "web"]).text();
    site.is_empty_soon();
}
