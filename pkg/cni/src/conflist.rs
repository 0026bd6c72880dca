//! What runtimes find on this node: the network configuration and the plugin.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::protocol::{CAPABILITIES, Version};
use crate::{loopback, plugin};

/// The configuration's file: early in the order that runtimes read the directory in.
pub const FILE_NAME: &str = "10-svcnet.conflist";
/// The network's name.
pub const NETWORK: &str = "svcnet";

/// A file that could not be put there.
#[derive(Debug, thiserror::Error)]
#[error("install {path}: {source}")]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// The configuration for runtimes. Those that know version 1.1.0 choose it out of `cniVersions`; older ones read
/// `cniVersion` alone.
pub fn text(socket: &Path, data_dir: &Path) -> String {
    let capabilities: Map<String, Value> = CAPABILITIES
        .iter()
        .map(|c| ((*c).to_string(), true.into()))
        .collect();
    let value = json!({
        "cniVersion": Version::V1_0_0.as_str(),
        "cniVersions": Version::ALL.map(Version::as_str),
        "name": NETWORK,
        "plugins": [{
            "type": plugin::NAME, "socket": socket, "dataDir": data_dir, "capabilities": capabilities,
        }],
    });
    format!("{value:#}\n")
}

/// Writes the configuration, unless it is there already.
///
/// # Errors
/// When it can not be written.
pub fn install_config(dir: &Path, socket: &Path, data_dir: &Path) -> Result<(), Error> {
    let path = dir.join(FILE_NAME);
    let text = text(socket, data_dir);
    let install = || -> io::Result<()> {
        if fs::read_to_string(&path).is_ok_and(|is| is == text) {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        // containerd notices a file that is renamed into place from the same directory.
        let draft = dir.join(format!(".{FILE_NAME}"));
        fs::write(&draft, &text)?;
        fs::rename(&draft, &path)
    };
    install().map_err(|source| Error {
        path: path.clone(),
        source,
    })
}

/// Puts the plugin there: a symbolic link to this program, which knows by its name what it is to be. And `loopback`, where
/// nobody else has put one: runtimes call it for each container.
///
/// # Errors
/// When it can not be made.
pub fn install_plugin(dir: &Path) -> Result<(), Error> {
    let program = std::env::current_exe();
    let install = |name: &str, replace: bool| {
        let path = dir.join(name);
        let install = || -> io::Result<()> {
            let program = program
                .as_ref()
                .map_err(|e| io::Error::new(e.kind(), e.to_string()))?;
            let is_there = fs::symlink_metadata(&path).is_ok();
            if (is_there && !replace) || fs::read_link(&path).is_ok_and(|to| to == *program) {
                return Ok(());
            }
            fs::create_dir_all(dir)?;
            let draft = dir.join(format!(".{name}"));
            match fs::remove_file(&draft) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            symlink(program, &draft)?;
            fs::rename(&draft, &path)
        };
        install().map_err(|source| Error { path, source })
    };
    // One that is ours follows the program, as after an upgrade.
    let own = fs::read_link(dir.join(plugin::NAME)).ok();
    let loopback_is_ours = own.is_some() && fs::read_link(dir.join(loopback::NAME)).ok() == own;
    install(plugin::NAME, true)?;
    install(loopback::NAME, loopback_is_ours)
}

/// What of ours lies in these directories: what [`install_config`] and [`install_plugin`] make. A file of the name that
/// names no plugin of ours, or a link to another program, is somebody else's.
pub fn installed(conf_dir: &Path, bin_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let conf = conf_dir.join(FILE_NAME);
    if fs::read_to_string(&conf).is_ok_and(|text| text.contains(plugin::NAME)) {
        found.push(conf);
    }
    let [program, loopback] = [plugin::NAME, loopback::NAME].map(|name| bin_dir.join(name));
    if let Ok(target) = fs::read_link(&program) {
        found.push(program);
        if fs::read_link(&loopback).is_ok_and(|its| its == target) {
            found.push(loopback);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_once_and_in_place() {
        let dir = tempfile::TempDir::new().unwrap();
        let conf = dir.path().join("net.d");
        let (socket, data) = (Path::new("/run/svcnet/cni.sock"), Path::new("/var/lib/svcnet"));
        install_config(&conf, socket, data).unwrap();
        install_config(&conf, socket, data).unwrap();
        let text = fs::read_to_string(conf.join(FILE_NAME)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["plugins"][0]["type"], "svcnet-cni");
        assert_eq!(value["plugins"][0]["socket"], "/run/svcnet/cni.sock");
        assert_eq!(value["plugins"][0]["capabilities"]["portMappings"], true);
        assert_eq!(fs::read_dir(&conf).unwrap().count(), 1);
        install_plugin(dir.path()).unwrap();
        install_plugin(dir.path()).unwrap();
        assert_eq!(
            fs::read_link(dir.path().join("svcnet-cni")).unwrap(),
            std::env::current_exe().unwrap()
        );
        let ours = [
            conf.join(FILE_NAME),
            dir.path().join("svcnet-cni"),
            dir.path().join("loopback"),
        ];
        assert_eq!(installed(&conf, dir.path()), ours);
        // Another's loopback is left alone.
        fs::remove_file(&ours[2]).unwrap();
        fs::write(&ours[2], "another's").unwrap();
        install_plugin(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&ours[2]).unwrap(), "another's");
        assert_eq!(installed(&conf, dir.path()), ours[..2]);
        fs::write(&ours[0], "{}").unwrap();
        fs::remove_file(&ours[1]).unwrap();
        assert!(installed(&conf, dir.path()).is_empty());
    }
}
