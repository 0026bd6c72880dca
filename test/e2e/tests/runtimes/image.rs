//! An image made on the spot: busybox, linked statically, and nothing else.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

/// Its name.
pub(crate) const NAME: &str = "svcnet.test/box:1";

/// Writes the image as `docker save` would, into a directory.
pub(crate) fn make(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "ip", "sleep", "httpd", "wget", "cat", "timeout"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("tmp/index.html"), "the box\n").unwrap();
    run(Command::new("tar").args([
        "-C",
        text(&root),
        "--owner=0",
        "--group=0",
        "-cf",
        text(&dir.join("layer.tar")),
        ".",
    ]));
    let digest = run(Command::new("sha256sum").arg(dir.join("layer.tar")));
    let digest = digest.split_whitespace().next().unwrap();
    // A sandbox runs it too: something that goes on.
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{ "Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let image = dir.join("image.tar");
    let files = ["manifest.json", "config.json", "layer.tar"];
    run(Command::new("tar")
        .args(["-C", text(dir), "-cf", text(&image)])
        .args(files));
    image
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
