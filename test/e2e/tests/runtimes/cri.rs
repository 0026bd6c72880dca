//! Pods as a kubelet makes them: sandboxes through the CRI of containerd.

use std::process::Command;

use svcnet_cni::cri::{Message, Reader};
use svcnet_e2e::until;

use crate::containerd::Containerd;
use crate::image;
use crate::site::Site;

/// The node's address, seen from the lab's other hosts.
const NODE: &str = "172.30.0.11";

struct Sandbox {
    id: String,
    config: Message,
}

/// What a sandbox is told: labels, which the plugin does not see, annotations, which it does, and a port of the host.
fn sandbox(containerd: &Containerd<'_>, name: &str, host_port: u64, annotations: &[(&str, &str)]) -> Sandbox {
    let metadata = Message::new()
        .text(1, name)
        .text(2, &format!("uid-{name}"))
        .text(3, "default");
    let mapping = Message::new().number(2, 80).number(3, host_port);
    let mut config = Message::new()
        .message(1, &metadata)
        .text(2, name)
        .text(3, "/tmp")
        .message(5, &mapping)
        .entry(6, "app", "web")
        .message(8, &Message::new());
    for (key, value) in annotations {
        config = config.entry(7, key, value);
    }
    let answer = containerd.call(
        "RuntimeService/RunPodSandbox",
        &Message::new().message(1, &config),
    );
    Sandbox {
        id: Reader(&answer).text(1).to_string(),
        config,
    }
}

impl Sandbox {
    /// Starts a container in it, and says its name.
    fn container(&self, containerd: &Containerd<'_>, name: &str, command: &[&str]) -> String {
        let mut container = Message::new()
            .message(1, &Message::new().text(1, name))
            .message(2, &Message::new().text(1, image::NAME));
        for word in command {
            container = container.text(3, word);
        }
        let request = Message::new()
            .text(1, &self.id)
            .message(2, &container)
            .message(3, &self.config);
        let answer = containerd.call("RuntimeService/CreateContainer", &request);
        let id = Reader(&answer).text(1).to_string();
        containerd.call("RuntimeService/StartContainer", &Message::new().text(1, &id));
        id
    }

    fn address(&self, containerd: &Containerd<'_>) -> String {
        let answer = containerd.call(
            "RuntimeService/PodSandboxStatus",
            &Message::new().text(1, &self.id),
        );
        let network = Reader(&answer).message(1).and_then(|status| status.message(5));
        network.map(|n| n.text(1).to_string()).unwrap_or_default()
    }

    fn stop(&self, containerd: &Containerd<'_>) {
        containerd.call("RuntimeService/StopPodSandbox", &Message::new().text(1, &self.id));
    }
}

/// What a command prints in a container.
fn exec(containerd: &Containerd<'_>, container: &str, command: &[&str]) -> String {
    let mut request = Message::new().text(1, container);
    for word in command {
        request = request.text(2, word);
    }
    let answer = containerd.call("RuntimeService/ExecSync", &request.number(3, 30));
    let answer = Reader(&answer);
    assert_eq!(answer.number(3), 0, "{command:?}: {}", answer.text(2));
    answer.text(1).to_string()
}

#[test]
#[ignore = "takes container runtimes: test/runtimes/run"]
fn a_pods_containers_share_an_address_and_its_port_is_the_hosts() {
    let site = Site::up();
    let containerd = Containerd::start(&site);
    let web = sandbox(
        &containerd,
        "web",
        8080,
        &[("svcnet.io/labels", "from=annotation")],
    );
    let address = web.address(&containerd);
    let leases = site.leases();
    assert_eq!(
        (leases.len(), leases[0]["addresses"][0].as_str()),
        (1, Some(address.as_str()))
    );
    web.container(
        &containerd,
        "server",
        &["/bin/httpd", "-f", "-p", "80", "-h", "/tmp"],
    );
    let second = web.container(&containerd, "second", &["/bin/sleep", "1000000"]);
    let addresses = exec(
        &containerd,
        &second,
        &["/bin/ip", "-4", "-o", "addr", "show", "eth0"],
    );
    assert!(addresses.contains(&format!("{address}/32")), "{addresses}");
    until("the server answers its neighbour container", || {
        let get = [
            "/bin/timeout",
            "5",
            "/bin/wget",
            "-q",
            "-O",
            "-",
            "http://127.0.0.1/index.html",
        ];
        let mut request = Message::new().text(1, &second);
        for word in get {
            request = request.text(2, word);
        }
        let answer = containerd.call("RuntimeService/ExecSync", &request);
        (Reader(&answer).text(1) == "the box\n").then_some(())
    });
    for member in ["client", "n1"] {
        let got = site.lab.curl(member, &format!("http://{NODE}:8080/index.html"));
        assert_eq!(got.text(), "the box", "{member}");
    }
    let got = site.lab.curl("n1", "http://127.0.0.1:8080/index.html");
    assert_eq!(got.text(), "the box");
    // The runtime knows the labels once the sandbox runs; the annotation stands in until then, and goes on beside them.
    until("the pod has the labels that the runtime knows", || {
        let app = site.lab.value("pod/web", "{.metadata.labels.app}");
        (app.as_deref() == Some("web")).then_some(())
    });
    assert_eq!(
        site.lab.value("pod/web", "{.metadata.labels.from}").as_deref(),
        Some("annotation")
    );
    assert_eq!(site.lab.value("pod/web", "{.status.podIP}"), Some(address));
    web.stop(&containerd);
    site.is_empty_soon();
    until("its object is gone", || {
        site.lab
            .value("pod/web", "{.metadata.name}")
            .is_none()
            .then_some(())
    });
}

#[test]
#[ignore = "takes container runtimes: test/runtimes/run"]
fn sandboxes_end_without_the_agent_and_limits_are_measured() {
    let site = Site::up();
    let containerd = Containerd::start(&site);
    let limits = [
        ("kubernetes.io/ingress-bandwidth", "40M"),
        ("kubernetes.io/egress-bandwidth", "20M"),
    ];
    let slow = sandbox(&containerd, "slow", 8081, &limits);
    let address = slow.address(&containerd);
    slow.container(
        &containerd,
        "server",
        &["/bin/httpd", "-f", "-p", "80", "-h", "/tmp"],
    );
    let links = site.run(Command::new("tc").args(["qdisc", "show"])).out;
    assert!(
        links.contains("tbf") && links.contains("rate 40Mbit") && links.contains("rate 20Mbit"),
        "{links}"
    );
    // Out of it: a file that takes four seconds at 20 Mbit/s, a second of which the burst lets by.
    let filled = slow.container(&containerd, "filler", &["/bin/sleep", "1000000"]);
    let fill = exec(&containerd, &filled, &["/bin/sh", "-c", "echo"]);
    assert_eq!(fill, "\n");
    let big = site.path("big");
    std::fs::write(&big, vec![b'x'; 10_000_000]).unwrap();
    let state = site.path("containerd-state");
    let roots = Command::new("find")
        .arg(&state)
        .args(["-path", "*rootfs/tmp/index.html"])
        .output()
        .unwrap();
    for root in String::from_utf8(roots.stdout).unwrap().lines() {
        std::fs::copy(&big, root.replace("index.html", "big")).unwrap();
    }
    let url = format!("http://{address}/big");
    let get = [
        "curl",
        "-s",
        "--noproxy",
        "*",
        "-o",
        "/dev/null",
        "-w",
        "%{size_download} %{time_total}",
        &url,
    ];
    let got = until("the file comes", || {
        let got = site.lab.exec("n1", &get);
        got.out.starts_with("10000000 ").then_some(got.out)
    });
    let seconds: f64 = got.split_whitespace().nth(1).unwrap().parse().unwrap();
    let megabits = 80.0 / seconds;
    println!("10 MB out of a container limited to 20 Mbit/s: {seconds:.2} s, {megabits:.1} Mbit/s");
    // At most 20 Mbit/s after the first second's worth.
    assert!(seconds > 2.8, "{got}");
    site.stop_agent();
    slow.stop(&containerd);
    site.start_agent();
    site.is_empty_soon();
}
