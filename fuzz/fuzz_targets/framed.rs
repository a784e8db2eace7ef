//! Whatever bytes a peer sends, cut wherever: the decoder of hand-framed streams does not panic, hands out no content that
//! was not sent, and reads the same under every cut.
#![no_main]

use std::fmt::Debug;

use bytes::Bytes;
use damselfly_api::dfdaemon::v2::{DownloadTaskResponse, ReadPersistentCacheTaskResponse};
use damselfly_transport::framed::{DOWNLOAD_CONTENT, Decoder, Incoming, READ_CONTENT};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// What a message may have besides its content.
const LIMIT: usize = 1 << 10;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (cuts, bytes) = input;
    cut_anywhere::<DownloadTaskResponse>(DOWNLOAD_CONTENT, &bytes, &cuts);
    cut_anywhere::<ReadPersistentCacheTaskResponse>(READ_CONTENT, &bytes, &cuts);
});

fn cut_anywhere<M: Message + Default + PartialEq + Debug>(path: &'static [u32], bytes: &[u8], cuts: &[u8]) {
    let whole = read::<M>(path, [bytes]);
    let mut rest = bytes;
    let parts =
        cuts.iter().map(|cut| rest.split_off(..usize::from(*cut).min(rest.len())).unwrap_or_default());
    let parts: Vec<&[u8]> = parts.collect();
    let cut = read::<M>(path, parts.into_iter().chain([rest]));
    assert!(cut == whole, "{cut:?} is not {whole:?}");
}

/// Everything that can be read, neighbouring slices of content joined; the error only as such, because its words may tell
/// how far it got.
#[derive(Debug, PartialEq)]
struct Read<M> {
    events: Vec<Incoming<M>>,
    lost: bool,
    may_end: bool,
}

fn read<'a, M: Message + Default + PartialEq>(
    path: &'static [u32],
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Read<M> {
    let mut decoder = Decoder::<M>::new(path, LIMIT);
    let (mut events, mut content, mut fed) = (Vec::new(), 0, 0);
    for part in parts {
        decoder.feed(Bytes::copy_from_slice(part));
        fed += part.len();
        loop {
            match decoder.decode() {
                Ok(Some(Incoming::Content(more))) => {
                    content += more.len();
                    assert!(content <= fed);
                    match events.last_mut() {
                        Some(Incoming::Content(before)) => *before = [before.as_ref(), &more].concat().into(),
                        _ => events.push(Incoming::Content(more)),
                    }
                }
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(_) => return Read { events, lost: true, may_end: false },
            }
        }
    }
    Read { events, lost: false, may_end: decoder.is_between_messages() }
}
