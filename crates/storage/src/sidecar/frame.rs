//! The 4 KiB frame around a header, and the choice between the two.
//!
//! All numbers are little-endian. `magic 8 | format u32 | 0 u32 | sequence u64 | inline length u32 | overflow length u32 |
//! overflow offset u64 | overflow crc u32 | 0 u32 | body … | crc u32 over all before`. Magic, format and checksum keep
//! their places in every future format, so that "newer" can be told from "damaged".

use damselfly_core::Crc;

use super::FORMAT;

/// Bytes of one header.
pub(crate) const FRAME: usize = 4096;
/// Where the piece records begin.
pub(crate) const RECORDS: u64 = 2 * FRAME as u64;
/// The most a header's body may take, overflow included.
pub(crate) const MAX_BODY: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"DAMSLFLY";
const PREFIX: usize = 48;
const CHECK: usize = FRAME - 4;
/// How much of a body fits into the frame itself.
pub(crate) const INLINE: usize = CHECK - PREFIX;

/// Why a frame does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    /// Never written, torn, or damaged.
    Invalid,
    /// Intact, but of a newer format.
    Newer(u32),
}

/// Where the rest of a body lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overflow {
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) crc: u32,
}

impl Overflow {
    /// The byte after it.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }
}

/// A frame that passed its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Counts header writes; the higher one is the newer.
    pub(crate) sequence: u64,
    /// The first bytes of the body.
    pub(crate) inline: Vec<u8>,
    /// The rest of it.
    pub(crate) overflow: Overflow,
}

/// Builds the frame; the caller writes `body[INLINE..]`, if there is that much, at `overflow_offset` first.
#[expect(clippy::cast_possible_truncation, reason = "a body has at most MAX_BODY bytes")]
pub(crate) fn encode(sequence: u64, body: &[u8], overflow_offset: u64) -> [u8; FRAME] {
    let (inline, rest) = body.split_at(body.len().min(INLINE));
    let mut frame = [0; FRAME];
    frame[..8].copy_from_slice(&MAGIC);
    frame[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    frame[16..24].copy_from_slice(&sequence.to_le_bytes());
    frame[24..28].copy_from_slice(&(inline.len() as u32).to_le_bytes());
    frame[28..32].copy_from_slice(&(rest.len() as u32).to_le_bytes());
    frame[32..40].copy_from_slice(&(if rest.is_empty() { 0 } else { overflow_offset }).to_le_bytes());
    frame[40..44].copy_from_slice(&Crc::of(rest).0.to_le_bytes());
    frame[PREFIX..PREFIX + inline.len()].copy_from_slice(inline);
    let check = Crc::of(&frame[..CHECK]).0;
    frame[CHECK..].copy_from_slice(&check.to_le_bytes());
    frame
}

/// Reads a frame.
pub(crate) fn decode(frame: &[u8]) -> Result<Frame, FrameError> {
    let word = |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    if frame.len() != FRAME || frame[..8] != MAGIC || word(CHECK) != Crc::of(&frame[..CHECK]).0 {
        return Err(FrameError::Invalid);
    }
    if word(8) > FORMAT {
        return Err(FrameError::Newer(word(8)));
    }
    let overflow = Overflow { offset: long(32), length: word(28), crc: word(40) };
    let inline = word(24) as usize;
    if inline > INLINE
        || overflow.length as usize > MAX_BODY
        || (overflow.length > 0 && overflow.offset < RECORDS)
    {
        return Err(FrameError::Invalid);
    }
    Ok(Frame { sequence: long(16), inline: frame[PREFIX..PREFIX + inline].to_vec(), overflow })
}

/// The frames that count, newest first.
///
/// # Errors
/// The format of a frame that is newer than this program: then nothing of the file may be touched.
pub(crate) fn newest_first(a: &[u8], b: &[u8]) -> Result<Vec<Frame>, u32> {
    let mut frames = Vec::new();
    for bytes in [a, b] {
        match decode(bytes) {
            Ok(frame) => frames.push(frame),
            Err(FrameError::Newer(format)) => return Err(format),
            Err(FrameError::Invalid) => {}
        }
    }
    frames.sort_by_key(|frame| std::cmp::Reverse(frame.sequence));
    Ok(frames)
}
