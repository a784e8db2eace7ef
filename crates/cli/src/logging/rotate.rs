//! A log file that is renamed to `.1`, `.2`, … when it has grown to its size.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// An open log file.
///
/// A line is never split over two files. When renaming fails, writing goes on in the file that is open: a log that is
/// too long is better than none.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_files: usize,
    max_size: u64,
}

impl RotatingFile {
    /// Opens `path` to append, making its directory. `max_files` counts all files, the open one included; at least 1.
    ///
    /// # Errors
    /// When the directory or the file cannot be made.
    pub fn open(path: &Path, max_files: usize, max_size: u64) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = append_to(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, max_files: max_files.max(1), max_size: max_size.max(1) })
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.max_files == 1 {
            self.file.set_len(0)?;
        } else {
            for number in (1..self.max_files - 1).rev() {
                match fs::rename(self.numbered(number), self.numbered(number + 1)) {
                    Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
                    _ => {}
                }
            }
            fs::rename(&self.path, self.numbered(1))?;
            self.file = append_to(&self.path)?;
        }
        self.size = 0;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Write for RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.size > 0 && self.size + line.len() as u64 > self.max_size && self.rotate().is_err() {
            // Tried again after another file's worth of lines.
            self.size = 0;
        }
        let written = self.file.write(line)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(directory: &Path) -> Vec<(String, String)> {
        let mut found: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap())
            })
            .collect();
        found.sort();
        found
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn files_move_up_and_the_last_one_goes() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("logs/d.log");
        let mut log = RotatingFile::open(&path, 3, 8).unwrap();
        for line in ["one 1\n", "two 2\n", "three\n", "four4\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        let expected = owned(&[("d.log", "four4\n"), ("d.log.1", "three\n"), ("d.log.2", "two 2\n")]);
        assert_eq!(contents(&home.path().join("logs")), expected);
    }

    #[test]
    fn a_restart_goes_on_where_it_was() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("d.log");
        RotatingFile::open(&path, 2, 8).unwrap().write_all(b"1234").unwrap();
        let mut log = RotatingFile::open(&path, 2, 8).unwrap();
        log.write_all(b"5678").unwrap();
        log.write_all(b"9").unwrap();
        assert_eq!(contents(home.path()), owned(&[("d.log", "9"), ("d.log.1", "12345678")]));
    }

    #[test]
    fn a_single_file_starts_over() {
        let home = tempfile::tempdir().unwrap();
        let mut log = RotatingFile::open(&home.path().join("d.log"), 1, 4).unwrap();
        log.write_all(b"1234").unwrap();
        log.write_all(b"56").unwrap();
        assert_eq!(contents(home.path()), owned(&[("d.log", "56")]));
    }

    #[test]
    fn a_line_longer_than_the_limit_stays_whole() {
        let home = tempfile::tempdir().unwrap();
        let mut log = RotatingFile::open(&home.path().join("d.log"), 2, 4).unwrap();
        log.write_all(b"123456").unwrap();
        assert_eq!(contents(home.path()), owned(&[("d.log", "123456")]));
    }
}
