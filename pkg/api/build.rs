//! Compresses the schemas of openapi/ for the binary to carry.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=openapi");
    let out = std::env::var("OUT_DIR")?;
    for entry in fs::read_dir("openapi")? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            let name = path
                .file_name()
                .ok_or("a file has a name")?
                .to_string_lossy()
                .into_owned();
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(&fs::read(&path)?)?;
            fs::write(Path::new(&out).join(format!("{name}.gz")), encoder.finish()?)?;
        }
    }
    Ok(())
}
