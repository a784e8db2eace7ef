//! What our own programs say in a call's metadata (`docs/wire.md`, "Local plane"), as it is written there.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::str::FromStr;

use thiserror::Error;

/// Names a [`Token`]: the call is about the file that was handed over with it.
pub const DESCRIPTOR_KEY: &str = "x-damselfly-descriptor";
/// Names a [`Seen`]: the path of the call is meant to lead there.
pub const SEEN_KEY: &str = "x-damselfly-seen";

/// What makes a descriptor and the call that uses it meet: unguessable, good once. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

/// A file or directory as its caller sees it: who names a path in another mount namespace may mean another one. Written
/// as `<device>:<inode>`, decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// A text in metadata that says nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("expected {0}")]
pub struct MetadataError(&'static str);

impl Seen {
    /// What an open file or directory is.
    ///
    /// # Errors
    /// What the system says.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.inode)
    }
}

impl FromStr for Seen {
    type Err = MetadataError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (device, inode) = text.split_once(':')?;
            Some(Self { device: device.parse().ok()?, inode: inode.parse().ok()? })
        };
        read().ok_or(MetadataError("<device>:<inode>"))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Token {
    type Err = MetadataError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = MetadataError("32 hexadecimal digits");
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(number) if digits && text.len() == 32 => Ok(Self(number.to_be_bytes())),
            _ => Err(wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(bytes: [u8; 16], device: u64, inode: u64) {
            let seen = Seen { device, inode };
            prop_assert_eq!(Token(bytes).to_string().parse(), Ok(Token(bytes)));
            prop_assert_eq!(seen.to_string().parse(), Ok(seen));
        }
    }

    #[test]
    fn nothing_else_is_read() {
        for text in ["", "00ff", "+1ff00112233445566778899aabbccdd", "00ff00112233445566778899aabbccdd0"] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
        for text in ["", "7", ":7", "-1:7", "1:7:9", "18446744073709551616:1"] {
            assert!(text.parse::<Seen>().is_err(), "{text}");
        }
    }
}
