//! `ctr run --cni`: containers without pods, whose namespace is a process's.

use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use svcnet_e2e::until;

use crate::containerd::Containerd;
use crate::image;
use crate::site::Site;

/// ctr looks at fixed places alone: they are put there for it, in a mount namespace of its own.
fn ctr_run(site: &Site, containerd: &Containerd<'_>, args: &[&str]) -> Command {
    let mut script = Vec::new();
    for (from, to) in [
        (site.conf_dir(), "/etc/cni/net.d"),
        (site.bin_dir(), "/opt/cni/bin"),
    ] {
        script.extend_from_slice(b"mkdir -p ");
        script.extend_from_slice(to.as_bytes());
        script.extend_from_slice(b" && mount --bind ");
        script.extend_from_slice(from.as_os_str().as_bytes());
        script.extend_from_slice(format!(" {to} && ").as_bytes());
    }
    script.extend_from_slice(b"exec \"$@\"");
    let script = String::from_utf8(script).unwrap();
    let ctr = containerd.ctr_command();
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", &script, "sh"])
        .arg(ctr.get_program())
        .args(ctr.get_args());
    command
        .args(["run", "--cni", "--snapshotter", "native"])
        .args(args);
    command
}

#[test]
#[ignore = "takes container runtimes: test/runtimes/run"]
fn ctr_containers_get_addresses_and_give_them_back() {
    let site = Site::up();
    let containerd = Containerd::start(&site);
    let shown = site.run(&mut ctr_run(
        &site,
        &containerd,
        &[
            "--rm",
            image::NAME,
            "one",
            "/bin/ip",
            "-4",
            "-o",
            "addr",
            "show",
            "eth0",
        ],
    ));
    assert!(shown.text().contains("inet 10.244.0."), "{shown:?}");
    site.is_empty_soon();
    // One that goes on, and ends without anybody telling the plugin: ctr does not when it detaches.
    let detached = site.run(&mut ctr_run(
        &site,
        &containerd,
        &["-d", image::NAME, "two", "/bin/sleep", "1000000"],
    ));
    detached.text();
    let lease = &site.leases()[0];
    assert!(lease["netns"].as_str().unwrap().starts_with("/proc/"), "{lease}");
    let address = lease["addresses"][0].as_str().unwrap().to_string();
    let ping = site.lab.exec("n1", &["ping", "-c", "1", "-W", "5", &address]);
    assert!(ping.ok, "{ping:?}");
    containerd.ctr(&["task", "kill", "-s", "KILL", "two"]).text();
    until("the task has ended", || {
        let deleted = containerd.ctr(&["task", "delete", "two"]);
        (deleted.ok || deleted.err.contains("not found")).then_some(())
    });
    containerd.ctr(&["containers", "delete", "two"]).text();
    site.is_empty_soon();
}
