//! Reading and writing a sidecar file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use damselfly_core::{Crc, PieceSet, TaskKey};

use super::frame::{self, FRAME, INLINE, MAX_BODY, Overflow, RECORDS};
use super::record::{self, RECORD};
use super::{FORMAT, Header};
use crate::error::StoreError;
use crate::system::System;

/// What a sidecar says.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) file: SidecarFile,
    pub(crate) header: Header,
    pub(crate) held: PieceSet,
    pub(crate) crcs: Vec<Crc>,
}

/// The writer of one sidecar. It keeps no descriptor open by itself: tasks are many, descriptors are few.
#[derive(Debug)]
pub(crate) struct SidecarFile {
    path: PathBuf,
    open: Weak<File>,
    /// Of the live header.
    sequence: u64,
    /// The live header's.
    overflow: Overflow,
    /// Header writes are flushed to the device: set once the task was, or the alternation would protect nothing.
    pub(crate) durable: bool,
}

fn records_end(pieces: u32) -> u64 {
    (RECORDS + u64::from(pieces) * RECORD as u64).next_multiple_of(FRAME as u64)
}

impl SidecarFile {
    /// Makes a sidecar that holds nothing; what a crash left under the name is replaced.
    pub(crate) fn create(system: &dyn System, path: &Path, header: &Header) -> Result<Self, StoreError> {
        let create = || {
            system.about_to("create sidecar")?;
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
        };
        let file = Arc::new(create().map_err(StoreError::at("cannot create", path))?);
        let mut this = Self {
            path: path.to_owned(),
            open: Arc::downgrade(&file),
            sequence: 0,
            overflow: Overflow::default(),
            durable: false,
        };
        this.write_header(system, header)?;
        Ok(this)
    }

    /// Reads the sidecar of `key`; `Ok(None)` when nothing in it is valid.
    ///
    /// # Errors
    /// When the file cannot be read, or is of a newer format.
    pub(crate) fn load(path: &Path, key: &TaskKey) -> Result<Option<Loaded>, StoreError> {
        let unreadable = || StoreError::at::<io::Error>("cannot read", path);
        let file = File::open(path).map_err(unreadable())?;
        let mut frames = vec![0; 2 * FRAME];
        let read = read_up_to(&file, &mut frames, 0).map_err(unreadable())?;
        frames[read..].fill(0);
        let newest = frame::newest_first(&frames[..FRAME], &frames[FRAME..]);
        let newest = newest.map_err(|found| StoreError::NewerFormat {
            path: path.to_owned(),
            found,
            supported: FORMAT,
        })?;
        for frame in newest {
            let mut body = frame.inline;
            let inline = body.len();
            body.resize(inline + frame.overflow.length as usize, 0);
            let read = read_up_to(&file, &mut body[inline..], frame.overflow.offset).map_err(unreadable())?;
            if read as u64 != u64::from(frame.overflow.length)
                || Crc::of(&body[inline..]).0 != frame.overflow.crc
            {
                continue;
            }
            let Some(header) = Header::decode(&body).filter(|header| header.key == *key) else { continue };
            let (held, crcs) = load_records(&file, &header).map_err(unreadable())?;
            let file = Self {
                path: path.to_owned(),
                open: Weak::new(),
                sequence: frame.sequence,
                overflow: frame.overflow,
                durable: header.persistent,
            };
            return Ok(Some(Loaded { file, header, held, crcs }));
        }
        Ok(None)
    }

    /// The open file.
    pub(crate) fn file(&mut self) -> Result<Arc<File>, StoreError> {
        if let Some(file) = self.open.upgrade() {
            return Ok(file);
        }
        let file = OpenOptions::new().read(true).write(true).open(&self.path);
        let file = Arc::new(file.map_err(StoreError::at("cannot open", &self.path))?);
        self.open = Arc::downgrade(&file);
        Ok(file)
    }

    /// Makes `header` the live one. On an error the former stays so.
    pub(crate) fn write_header(&mut self, system: &dyn System, header: &Header) -> Result<(), StoreError> {
        let body = header.encode();
        if body.len() > MAX_BODY {
            let key = header.key.clone();
            return Err(StoreError::TooMuchMetadata { key, bytes: body.len(), limit: MAX_BODY });
        }
        let rest = body.get(INLINE..).unwrap_or_default();
        // The live header's overflow stays intact until this one counts.
        let floor = records_end(header.geometry.map_or(0, |geometry| geometry.piece_count()));
        let fits_below = floor + rest.len() as u64 <= self.overflow.offset;
        let offset = if self.overflow.length == 0 || fits_below {
            floor
        } else {
            floor.max(self.overflow.end().next_multiple_of(FRAME as u64))
        };
        let sequence = self.sequence + 1;
        let frame = frame::encode(sequence, &body, offset);
        let file = self.file()?;
        let failed = || StoreError::at::<io::Error>("cannot write", &self.path);
        if !rest.is_empty() {
            system.write_at(&file, rest, offset).map_err(failed())?;
        }
        system.write_at(&file, &frame, (sequence & 1) * FRAME as u64).map_err(failed())?;
        if self.durable {
            system.flush(&file).map_err(StoreError::at("cannot flush", &self.path))?;
        }
        self.sequence = sequence;
        self.overflow = Overflow {
            offset: if rest.is_empty() { 0 } else { offset },
            length: u32::try_from(rest.len()).unwrap_or(u32::MAX),
            crc: 0,
        };
        Ok(())
    }

    /// Writes the records of consecutive held pieces.
    pub(crate) fn write_held(
        &mut self,
        system: &dyn System,
        key: &TaskKey,
        generation: u64,
        first: u32,
        crcs: &[Crc],
    ) -> Result<(), StoreError> {
        let numbered = (first..).zip(crcs);
        let records: Vec<u8> =
            numbered.flat_map(|(number, &crc)| record::encode(key, number, generation, crc)).collect();
        self.write_records(system, first, &records)
    }

    /// Says of `count` pieces from `first` on that they are missing.
    pub(crate) fn write_missing(
        &mut self,
        system: &dyn System,
        first: u32,
        count: u32,
    ) -> Result<(), StoreError> {
        self.write_records(system, first, &vec![0; count as usize * RECORD])
    }

    fn write_records(&mut self, system: &dyn System, first: u32, records: &[u8]) -> Result<(), StoreError> {
        let file = self.file()?;
        let offset = RECORDS + u64::from(first) * RECORD as u64;
        system.write_at(&file, records, offset).map_err(StoreError::at("cannot write", &self.path))
    }

    #[cfg(test)]
    pub(super) fn overflow_offset(&self) -> u64 {
        self.overflow.offset
    }

    /// Flushes to the device, and every later header write too.
    pub(crate) fn sync(&mut self, system: &dyn System) -> Result<(), StoreError> {
        let file = self.file()?;
        system.flush(&file).map_err(StoreError::at("cannot flush", &self.path))?;
        self.durable = true;
        Ok(())
    }
}

fn load_records(file: &File, header: &Header) -> io::Result<(PieceSet, Vec<Crc>)> {
    let count = header.geometry.map_or(0, |geometry| geometry.piece_count());
    // The file bounds the work, whatever the header claims.
    let present = file.metadata()?.len().saturating_sub(RECORDS) / RECORD as u64;
    let present = u32::try_from(present).unwrap_or(u32::MAX).min(count);
    let mut held = PieceSet::new(count);
    let mut crcs = vec![Crc(0); count as usize];
    let mut buffer = vec![0; FRAME.max(present.min(16_384) as usize * RECORD)];
    let mut number = 0;
    while number < present {
        let room = (buffer.len() / RECORD).min((present - number) as usize) * RECORD;
        let read = read_up_to(file, &mut buffer[..room], RECORDS + u64::from(number) * RECORD as u64)?;
        let before = number;
        for bytes in buffer[..read].chunks_exact(RECORD) {
            if let Some(crc) = record::decode(&header.key, number, header.generation, bytes) {
                held.insert(number);
                crcs[number as usize] = crc;
            }
            number += 1;
        }
        if number == before {
            break;
        }
    }
    Ok((held, crcs))
}

/// Fills `buffer` from `offset` as far as the file goes.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
