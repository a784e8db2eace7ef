//! Digests of whole tasks and of pieces (`docs/wire.md`, "Digests").

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The CRC-32 (ISO-HDLC, as in zlib) of a piece's bytes.
///
/// On the wire it is `crc32:` and the value in decimal without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Crc(pub u32);

impl Crc {
    /// The CRC of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc32fast::hash(bytes))
    }

    /// The CRC of this stretch followed by one of `length` bytes whose CRC is `next`.
    #[must_use]
    pub fn followed_by(self, next: Crc, length: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.combine(&crc32fast::Hasher::new_with_initial_len(next.0, length));
        Self(hasher.finalize())
    }

    /// Reads a piece digest as a peer sends it: `Ok(None)` for the empty string, which promises nothing.
    ///
    /// # Errors
    /// When it is neither empty nor `crc32:<decimal u32>`.
    pub fn parse_piece_digest(text: &str) -> Result<Option<Self>, DigestError> {
        if text.is_empty() {
            return Ok(None);
        }
        let malformed = || DigestError::Malformed { text: text.to_owned(), expected: "crc32:<decimal>" };
        let value = text.strip_prefix("crc32:").ok_or_else(malformed)?;
        if value.starts_with('+') {
            return Err(malformed());
        }
        value.parse().map(|crc| Some(Self(crc))).map_err(|_| malformed())
    }
}

impl fmt::Display for Crc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "crc32:{}", self.0)
    }
}

/// A digest algorithm a user may name with `--digest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// CRC-32, decimal or hex.
    Crc32,
    /// MD5, hex.
    Md5,
    /// SHA-1, hex.
    Sha1,
    /// SHA-256, hex.
    Sha256,
    /// SHA-512, hex.
    Sha512,
    /// BLAKE3 with 256 bits of output, hex.
    Blake3,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Algorithm; 6] =
        [Self::Crc32, Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512, Self::Blake3];

    /// The name before the colon.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "crc32",
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    /// Hex digits of an encoded digest.
    fn hex_digits(self) -> usize {
        match self {
            Self::Crc32 => 8,
            Self::Md5 => 32,
            Self::Sha1 => 40,
            Self::Sha256 | Self::Blake3 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// Why a digest was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DigestError {
    /// Not of the form `algorithm:value`.
    #[error("malformed digest {text:?}: expected {expected}")]
    Malformed {
        /// What was given.
        text: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// An algorithm nobody computes here.
    #[error("unknown digest algorithm {0:?}: expected crc32, md5, sha1, sha256, sha512 or blake3")]
    UnknownAlgorithm(String),
}

/// A whole task's digest as a user gave it: `<algorithm>:<value>`.
///
/// A crc32 value of 8 characters may be decimal or hex: it matches when either reading does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    encoded: String,
}

impl Digest {
    /// The algorithm to compute.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The value as given, hex digits lower-case.
    #[must_use]
    pub fn encoded(&self) -> &str {
        &self.encoded
    }

    /// Whether `computed`, of the same algorithm, is what this digest promises.
    #[must_use]
    pub fn matches(&self, computed: &Computed) -> bool {
        match computed {
            Computed::Crc32(crc) => {
                let decimal = self.encoded.parse::<u32>() == Ok(*crc);
                let hex = self.encoded.len() == 8 && u32::from_str_radix(&self.encoded, 16) == Ok(*crc);
                self.algorithm == Algorithm::Crc32 && (decimal || hex)
            }
            Computed::Hex(algorithm, hex) => self.algorithm == *algorithm && self.encoded == *hex,
        }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = |expected| DigestError::Malformed { text: text.to_owned(), expected };
        let (name, value) = text.split_once(':').ok_or_else(|| malformed("<algorithm>:<value>"))?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| DigestError::UnknownAlgorithm(name.to_owned()))?;
        let encoded = value.to_ascii_lowercase();
        let is_hex =
            encoded.len() == algorithm.hex_digits() && encoded.bytes().all(|b| b.is_ascii_hexdigit());
        let is_decimal_crc = algorithm == Algorithm::Crc32
            && encoded.bytes().all(|b| b.is_ascii_digit())
            && encoded.parse::<u32>().is_ok();
        if is_hex || is_decimal_crc {
            return Ok(Self { algorithm, encoded });
        }
        Err(malformed(match algorithm {
            Algorithm::Crc32 => "crc32: and a decimal number up to 4294967295, or 8 hex digits",
            Algorithm::Md5 => "md5: and 32 hex digits",
            Algorithm::Sha1 => "sha1: and 40 hex digits",
            Algorithm::Sha256 => "sha256: and 64 hex digits",
            Algorithm::Sha512 => "sha512: and 128 hex digits",
            Algorithm::Blake3 => "blake3: and 64 hex digits",
        }))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.encoded)
    }
}

/// A digest computed over bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Computed {
    /// A CRC-32.
    Crc32(u32),
    /// Lower-case hex of any other algorithm.
    Hex(Algorithm, String),
}

impl fmt::Display for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crc32(crc) => write!(f, "crc32:{crc}"),
            Self::Hex(algorithm, hex) => write!(f, "{}:{hex}", algorithm.name()),
        }
    }
}

/// Computes one digest over bytes given in order.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Crc32(crc32fast::Hasher),
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        use sha2::Digest as _;
        Self(match algorithm {
            Algorithm::Crc32 => State::Crc32(crc32fast::Hasher::new()),
            Algorithm::Md5 => State::Md5(md5::Md5::new()),
            Algorithm::Sha1 => State::Sha1(sha1::Sha1::new()),
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
            Algorithm::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        use sha2::Digest as _;
        match &mut self.0 {
            State::Crc32(hasher) => hasher.update(bytes),
            State::Md5(hasher) => hasher.update(bytes),
            State::Sha1(hasher) => hasher.update(bytes),
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
            State::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest of everything taken.
    #[must_use]
    pub fn finish(self) -> Computed {
        use sha2::Digest as _;
        match self.0 {
            State::Crc32(hasher) => Computed::Crc32(hasher.finalize()),
            State::Md5(hasher) => Computed::Hex(Algorithm::Md5, hex(&hasher.finalize())),
            State::Sha1(hasher) => Computed::Hex(Algorithm::Sha1, hex(&hasher.finalize())),
            State::Sha256(hasher) => Computed::Hex(Algorithm::Sha256, hex(&hasher.finalize())),
            State::Sha512(hasher) => Computed::Hex(Algorithm::Sha512, hex(&hasher.finalize())),
            State::Blake3(hasher) => Computed::Hex(Algorithm::Blake3, hasher.finalize().to_hex().to_string()),
        }
    }
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'))
        .collect()
}
