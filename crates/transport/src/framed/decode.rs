//! Incremental decoding of gRPC frames whose content is handed out as it arrives.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use thiserror::Error;

use super::FRAME_HEADER;

/// The longest varint.
const MAX_VARINT: usize = 10;

/// What arrives.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming<M> {
    /// Content begins.
    Begin {
        /// The message as far as it precedes the content; what peers send in ascending order of field numbers
        /// puts a piece's number, offset and length here.
        head: M,
        /// Bytes of content to come.
        length: u64,
    },
    /// The next bytes of content, cut as they arrived.
    Content(Bytes),
    /// A message is complete. Its content field is left empty.
    Message(M),
}

/// Why bytes are no stream of messages.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// No codec was agreed on, so nothing may be compressed.
    #[error("the stream is compressed, which was not asked for")]
    Compressed,
    /// A message that must be held whole is too long.
    #[error("a message has more than {0} bytes besides its content")]
    TooLong(usize),
    /// Not protobuf, or lengths that contradict each other.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// prost's words.
    #[error("malformed message: {0}")]
    Prost(#[from] prost::DecodeError),
}

/// A message on the way down to the content.
#[derive(Debug, Default)]
struct Open {
    /// Where it ends, counted from the start of the outermost.
    end: u64,
}

/// What the next byte is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The five bytes before a message.
    Header,
    /// A field's number and type.
    Key,
    /// A number in a field that is kept.
    Varint,
    /// The length of a field.
    Length { field: u32 },
    /// So many more bytes of a field that is kept.
    Keep(u64),
    /// So many more bytes of content.
    Content(u64),
}

/// Decodes messages of type `M` from bytes under any cut; content of field path `path` is never gathered.
#[derive(Debug)]
pub struct Decoder<M> {
    path: &'static [u32],
    limit: usize,
    input: Bytes,
    place: Place,
    /// Bytes of the header, key or varint that is being read.
    small: Vec<u8>,
    /// Bytes of the current message before the next one.
    at: u64,
    /// The messages we are in, the outermost first.
    open: Vec<Open>,
    /// Per level of the path, the fields that are kept.
    kept: Vec<Vec<u8>>,
    /// Per level of the path, whether its field was there.
    entered: Vec<bool>,
    kind: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Decoder<M> {
    /// `path` are the field numbers from `M` down to the content; `limit` bounds the bytes of a message besides its
    /// content.
    #[must_use]
    pub fn new(path: &'static [u32], limit: usize) -> Self {
        Self {
            path,
            limit,
            input: Bytes::new(),
            place: Place::Header,
            small: Vec::with_capacity(MAX_VARINT),
            at: 0,
            open: Vec::new(),
            kept: vec![Vec::new(); path.len().max(1)],
            entered: vec![false; path.len().max(1)],
            kind: PhantomData,
        }
    }

    /// Gives the next bytes. What came before must have been decoded to its end.
    pub fn feed(&mut self, bytes: Bytes) {
        if self.input.is_empty() {
            self.input = bytes;
        } else {
            let all = [std::mem::take(&mut self.input), bytes].concat();
            self.input = all.into();
        }
    }

    /// Whether the stream may end here: between two messages.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        self.place == Place::Header && self.small.is_empty() && self.input.is_empty()
    }

    /// The next thing that is there; `None` asks for more bytes.
    ///
    /// # Errors
    /// When the bytes cannot be decoded; the stream is lost then.
    pub fn decode(&mut self) -> Result<Option<Incoming<M>>, DecodeError> {
        loop {
            if let Some(event) = self.close_messages()? {
                return Ok(Some(event));
            }
            if self.input.is_empty() {
                return Ok(None);
            }
            match self.place {
                Place::Header => self.header()?,
                Place::Key => self.key()?,
                Place::Varint => {
                    if self.varint()?.is_some() {
                        let bytes = std::mem::take(&mut self.small);
                        self.keep(&bytes)?;
                        self.place = Place::Key;
                    }
                }
                Place::Length { field } => {
                    if let Some(event) = self.length(field)? {
                        return Ok(Some(event));
                    }
                }
                Place::Keep(left) => {
                    let bytes = self.take(left);
                    self.keep(&bytes)?;
                    let left = left - bytes.len() as u64;
                    self.place = if left == 0 { Place::Key } else { Place::Keep(left) };
                }
                Place::Content(left) => {
                    let bytes = self.take(left);
                    let left = left - bytes.len() as u64;
                    self.place = if left == 0 { Place::Key } else { Place::Content(left) };
                    return Ok(Some(Incoming::Content(bytes)));
                }
            }
        }
    }

    /// Leaves the messages that end here; the outermost one is complete then.
    fn close_messages(&mut self) -> Result<Option<Incoming<M>>, DecodeError> {
        while self.place == Place::Key && self.small.is_empty() {
            match self.open.last() {
                Some(open) if open.end == self.at => {
                    self.open.pop();
                }
                _ => return Ok(None),
            }
            if self.open.is_empty() {
                self.place = Place::Header;
                let message = self.so_far()?;
                self.kept.iter_mut().for_each(Vec::clear);
                self.entered.fill(false);
                return Ok(Some(Incoming::Message(message)));
            }
        }
        Ok(None)
    }

    fn header(&mut self) -> Result<(), DecodeError> {
        let missing = FRAME_HEADER - self.small.len();
        let bytes = self.input.split_to(missing.min(self.input.len()));
        self.small.extend_from_slice(&bytes);
        let Ok([flag, length @ ..]) = <[u8; FRAME_HEADER]>::try_from(self.small.as_slice()) else {
            return Ok(());
        };
        self.small.clear();
        if flag != 0 {
            return Err(DecodeError::Compressed);
        }
        self.at = 0;
        self.open.push(Open { end: u32::from_be_bytes(length).into() });
        self.place = Place::Key;
        Ok(())
    }

    fn key(&mut self) -> Result<(), DecodeError> {
        let Some(key) = self.varint()? else {
            return Ok(());
        };
        let field = u32::try_from(key >> 3).ok().filter(|field| (1..1 << 29).contains(field));
        let field = field.ok_or(DecodeError::Malformed("impossible field number"))?;
        let length_delimited = key & 7 == 2;
        let on_path = length_delimited && self.path.get(self.open.len() - 1) == Some(&field);
        let bytes = std::mem::take(&mut self.small);
        if !on_path {
            self.keep(&bytes)?;
        }
        self.place = match key & 7 {
            0 => Place::Varint,
            1 => self.checked(8).map(Place::Keep)?,
            2 => Place::Length { field },
            5 => self.checked(4).map(Place::Keep)?,
            _ => return Err(DecodeError::Malformed("group or unknown wire type")),
        };
        Ok(())
    }

    fn length(&mut self, field: u32) -> Result<Option<Incoming<M>>, DecodeError> {
        let Some(length) = self.varint()? else {
            return Ok(None);
        };
        let bytes = std::mem::take(&mut self.small);
        let length = self.checked(length)?;
        let level = self.open.len() - 1;
        if self.path.get(level) != Some(&field) {
            self.keep(&bytes)?;
            self.place = if length == 0 { Place::Key } else { Place::Keep(length) };
            return Ok(None);
        }
        if level + 1 < self.path.len() {
            self.entered[level] = true;
            self.open.push(Open { end: self.at + length });
            self.place = Place::Key;
            return Ok(None);
        }
        if std::mem::replace(&mut self.entered[level], true) {
            return Err(DecodeError::Malformed("content twice in one message"));
        }
        self.place = if length == 0 { Place::Key } else { Place::Content(length) };
        Ok(Some(Incoming::Begin { head: self.so_far()?, length }))
    }

    /// Reads a varint into `small`, as far as it is there; its value once complete.
    fn varint(&mut self) -> Result<Option<u64>, DecodeError> {
        while self.input.has_remaining() {
            self.checked(1)?;
            let byte = self.input.get_u8();
            self.at += 1;
            self.small.push(byte);
            if byte & 0x80 == 0 {
                let mut bytes = self.small.as_slice();
                return Ok(Some(prost::encoding::decode_varint(&mut bytes)?));
            }
            if self.small.len() == MAX_VARINT {
                return Err(DecodeError::Malformed("endless varint"));
            }
        }
        Ok(None)
    }

    /// Up to `most` bytes of the input.
    fn take(&mut self, most: u64) -> Bytes {
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.input.len());
        self.at += count as u64;
        self.input.split_to(count)
    }

    /// That so many more bytes fit the innermost message.
    fn checked(&self, length: u64) -> Result<u64, DecodeError> {
        let fits = self.open.last().is_some_and(|open| length <= open.end - self.at);
        if fits { Ok(length) } else { Err(DecodeError::Malformed("a field is longer than its message")) }
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let held: usize = self.kept.iter().map(Vec::len).sum();
        if held + bytes.len() > self.limit {
            return Err(DecodeError::TooLong(self.limit));
        }
        self.kept[self.open.len() - 1].extend_from_slice(bytes);
        Ok(())
    }

    /// The message of what was kept, nested as it was, with lengths that leave the content out.
    fn so_far(&self) -> Result<M, DecodeError> {
        let mut inner: Option<Vec<u8>> = None;
        for level in (0..self.kept.len()).rev() {
            let mut message = self.kept[level].clone();
            if let Some(inner) = inner.filter(|_| self.entered[level]) {
                encode_key(self.path[level], WireType::LengthDelimited, &mut message);
                encode_varint(inner.len() as u64, &mut message);
                message.extend_from_slice(&inner);
            }
            inner = Some(message);
        }
        Ok(M::decode(inner.unwrap_or_default().as_slice())?)
    }
}
