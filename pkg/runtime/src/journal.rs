//! The last known objects of one kind on disk, so that a node boots without its server.
//!
//! Layout: one line an event, `+` and the object as JSON or `-` and the object's key. A whole list replaces the file
//! (written aside, then renamed); single changes are appended. A torn last line (a crash in the middle of a write) is
//! dropped on reading, and so is any other line that does not parse: the list from the server heals it. Nothing is
//! synced to the platter for the same reason. The file is written anew when most of it is history.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Lines of history that are tolerated beyond the number of living objects.
const HISTORY_LINES_MAX: usize = 2000;

#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: Option<File>,
    lines: usize,
    living: usize,
}

impl Journal {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            lines: 0,
            living: 0,
        }
    }

    /// The objects as they were last known, or nothing where there is no journal.
    pub(crate) fn replay<K: DeserializeOwned>(&mut self) -> io::Result<Option<Vec<K>>> {
        let Some(lines) = self.living_lines()? else {
            return Ok(None);
        };
        Ok(Some(
            lines
                .values()
                .filter_map(|json| serde_json::from_str(json).ok())
                .collect(),
        ))
    }

    /// Puts a whole list in place of what was known.
    pub(crate) fn reset<'a, K: Serialize + 'a>(
        &mut self,
        objects: impl Iterator<Item = (String, &'a K)>,
    ) -> io::Result<()> {
        self.rewrite(objects.map(|(key, object)| Ok((key, serde_json::to_string(object)?))))
    }

    /// An object came or changed.
    pub(crate) fn apply<K: Serialize>(&mut self, key: &str, object: &K) -> io::Result<()> {
        let line = format!("+{key} {}\n", serde_json::to_string(object)?);
        self.append(line.as_bytes())
    }

    /// An object went.
    pub(crate) fn delete(&mut self, key: &str) -> io::Result<()> {
        self.append(format!("-{key}\n").as_bytes())
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.lines > 2 * self.living + HISTORY_LINES_MAX
            && let Some(lines) = self.living_lines()?
        {
            self.rewrite(lines.into_iter().map(Ok))?;
        }
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(line)?;
            self.lines += 1;
        }
        Ok(())
    }

    fn living_lines(&self) -> io::Result<Option<HashMap<String, String>>> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut living = HashMap::new();
        for line in BufReader::new(file).split(b'\n') {
            let line = line?;
            let Ok(line) = String::from_utf8(line) else {
                continue;
            };
            match line.split_at_checked(1) {
                Some(("+", rest)) => {
                    if let Some((key, json)) = rest.split_once(' ') {
                        living.insert(key.to_string(), json.to_string());
                    }
                }
                Some(("-", key)) => _ = living.remove(key),
                _ => {}
            }
        }
        Ok(Some(living))
    }

    /// Key and JSON of each line. They go to the disk as they come: no second copy of all objects is made.
    fn rewrite(&mut self, lines: impl Iterator<Item = io::Result<(String, String)>>) -> io::Result<()> {
        let aside = aside(&self.path);
        let mut out = BufWriter::new(File::create(&aside)?);
        let mut count = 0;
        for line in lines {
            let (key, json) = line?;
            writeln!(out, "+{key} {json}")?;
            count += 1;
        }
        out.into_inner().map_err(io::IntoInnerError::into_error)?;
        std::fs::rename(&aside, &self.path)?;
        self.file = None;
        (self.lines, self.living) = (count, count);
        Ok(())
    }
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replayed(path: &Path) -> Option<Vec<u32>> {
        let mut known: Vec<u32> = Journal::new(path.to_path_buf()).replay().unwrap()?;
        known.sort_unstable();
        Some(known)
    }

    #[test]
    fn the_last_state_comes_back_and_a_torn_line_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services");
        assert_eq!(replayed(&path), None);
        let mut journal = Journal::new(path.clone());
        journal
            .reset([("a".into(), &1u32), ("b".into(), &2)].into_iter())
            .unwrap();
        journal.apply("c", &3u32).unwrap();
        journal.apply("a", &10u32).unwrap();
        journal.delete("b").unwrap();
        assert_eq!(replayed(&path), Some(vec![3, 10]));
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"+d {\"torn").unwrap();
        assert_eq!(replayed(&path), Some(vec![3, 10]));
    }

    #[test]
    fn history_is_forgotten_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("services");
        let mut journal = Journal::new(path.clone());
        journal.reset(std::iter::empty::<(String, &u32)>()).unwrap();
        for value in 0..3 * u32::try_from(HISTORY_LINES_MAX).unwrap() {
            journal.apply("only", &value).unwrap();
        }
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= HISTORY_LINES_MAX + 2, "{lines} lines");
        assert_eq!(replayed(&path), Some(vec![3 * 2000 - 1]));
    }
}
