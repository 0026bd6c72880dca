//! What runtimes find on this node: the network configuration and the plugin.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::plugin;

/// The configuration's file: early in the order that runtimes read the directory in.
const FILE_NAME: &str = "10-svcnet.conflist";

/// A file that could not be put there.
#[derive(Debug, thiserror::Error)]
#[error("install {path}: {source}")]
pub(crate) struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Writes the configuration, unless it is there already.
pub(crate) fn install_config(dir: &Path, socket: &Path, data_dir: &Path) -> Result<(), Error> {
    let path = dir.join(FILE_NAME);
    let value = json!({
        "cniVersion": "1.0.0",
        "name": "svcnet",
        "plugins": [{ "type": plugin::NAME, "socket": socket, "dataDir": data_dir }],
    });
    let text = format!("{value:#}\n");
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

/// Puts the plugin there: a symbolic link to this program, which knows by its name what it is to be.
pub(crate) fn install_plugin(dir: &Path) -> Result<(), Error> {
    let path = dir.join(plugin::NAME);
    let install = || -> io::Result<()> {
        let program = std::env::current_exe()?;
        if fs::read_link(&path).is_ok_and(|to| to == program) {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        let draft = dir.join(format!(".{}", plugin::NAME));
        match fs::remove_file(&draft) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        symlink(&program, &draft)?;
        fs::rename(&draft, &path)
    };
    install().map_err(|source| Error {
        path: path.clone(),
        source,
    })
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
        assert_eq!(fs::read_dir(&conf).unwrap().count(), 1);
        install_plugin(dir.path()).unwrap();
        install_plugin(dir.path()).unwrap();
        assert_eq!(
            fs::read_link(dir.path().join("svcnet-cni")).unwrap(),
            std::env::current_exe().unwrap()
        );
    }
}
