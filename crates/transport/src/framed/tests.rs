use bytes::{BufMut, Bytes, BytesMut};
use damselfly_api::common::v2::Piece;
use damselfly_api::dfdaemon::v2::{
    DownloadPieceFinishedResponse, DownloadTaskResponse, DownloadTaskStartedResponse,
    PersistentCacheTaskChunk, ReadPersistentCacheTaskResponse, download_task_response,
    read_persistent_cache_task_response,
};
use proptest::prelude::*;
use prost::Message;

use super::*;

fn pieces() -> impl Strategy<Value = Piece> {
    let texts = ("[a-z0-9:]{0,20}", prop::option::of("[a-z0-9]{0,200}"));
    (any::<(u32, u64)>(), texts, prop::option::of(0i32..4), any::<(Option<(i64, i32)>, bool)>()).prop_map(
        |((number, offset), (digest, parent_id), traffic_type, (cost, created))| Piece {
            number,
            parent_id,
            offset,
            length: 0,
            digest,
            content: None,
            traffic_type,
            cost: cost.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }),
            created_at: created.then_some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 7 }),
        },
    )
}

fn contents() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from),
        // Around the places where length varints grow.
        prop::sample::select(vec![1usize, 100, 127, 128, 16_383, 16_384, 70_000])
            .prop_map(|length| Bytes::from(vec![0xa5; length])),
    ]
}

fn names() -> impl Strategy<Value = [String; 3]> {
    prop::array::uniform3("[a-z0-9-]{0,150}")
}

fn finished([host_id, task_id, peer_id]: [String; 3], piece: Piece) -> DownloadTaskResponse {
    let finished = DownloadPieceFinishedResponse { piece: Some(piece) };
    let response = download_task_response::Response::DownloadPieceFinishedResponse(finished);
    DownloadTaskResponse { host_id, task_id, peer_id, response: Some(response) }
}

/// What prost and tonic put on the wire.
fn whole(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let mut out = vec![0];
    out.put_u32(bytes.len().try_into().expect("small"));
    out.extend(bytes);
    out
}

/// Feeds `bytes` cut at `cuts` and gathers what comes out, until the stream ends or is lost.
fn read_cut<M: Message + Default + Clone>(
    decoder: &mut Decoder<M>,
    bytes: &[u8],
    cuts: &[usize],
) -> (Vec<Incoming<M>>, Result<(), DecodeError>) {
    let mut events = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    for pair in cuts.windows(2) {
        decoder.feed(Bytes::copy_from_slice(&bytes[pair[0]..pair[1]]));
        loop {
            // Neighbouring slices of content are one to the reader.
            match (events.last_mut(), decoder.decode()) {
                (Some(Incoming::Content(before)), Ok(Some(Incoming::Content(more)))) => {
                    *before = [before.as_ref(), &more].concat().into();
                }
                (_, Ok(Some(event))) => events.push(event),
                (_, Ok(None)) => break,
                (_, Err(why)) => return (events, Err(why)),
            }
        }
    }
    (events, Ok(()))
}

/// What a whole stream says.
fn decode_all<M: Message + Default + Clone>(
    path: &'static [u32],
    bytes: &[u8],
    cuts: &[usize],
) -> Result<Vec<Incoming<M>>, DecodeError> {
    let mut decoder = Decoder::new(path, 1 << 20);
    let (events, end) = read_cut(&mut decoder, bytes, cuts);
    end?;
    assert!(decoder.is_between_messages());
    Ok(events)
}

/// What can be read of a stream that may be none: the events, whether it was lost, and whether it might end there.
fn read_all(bytes: &[u8], cuts: &[usize]) -> (Vec<Incoming<DownloadTaskResponse>>, bool, bool) {
    let mut decoder = Decoder::new(DOWNLOAD_CONTENT, 1 << 20);
    let (events, end) = read_cut(&mut decoder, bytes, cuts);
    (events, end.is_err(), end.is_ok() && decoder.is_between_messages())
}

proptest! {
    #[test]
    fn a_piece_with_content_is_what_prost_encodes(names in names(), piece in pieces(), content in contents()) {
        let piece = Piece { length: content.len() as u64, ..piece };
        let [host, task, peer] = names.clone();
        let envelope = Envelope::piece_finished(host, task, peer, piece.clone()).expect("short");
        let ours = [envelope.prefix().as_ref(), &content, envelope.suffix()].concat();
        let message = finished(names, Piece { content: Some(content), ..piece });
        prop_assert!(ours == whole(&message));
    }

    #[test]
    fn a_chunk_is_what_prost_encodes(content in contents()) {
        prop_assume!(!content.is_empty());
        let envelope = Envelope::chunk(content.len() as u64).expect("short");
        let ours = [envelope.prefix().as_ref(), &content, envelope.suffix()].concat();
        let chunk = read_persistent_cache_task_response::Response::Chunk(PersistentCacheTaskChunk { content });
        let message = ReadPersistentCacheTaskResponse { response: Some(chunk) };
        prop_assert!(ours == whole(&message));
    }

    #[test]
    fn a_stream_decodes_under_any_cut(
        names in names(),
        pieces in prop::collection::vec((pieces(), prop::option::of(contents())), 0..5),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
    ) {
        let started = DownloadTaskResponse {
            response: Some(download_task_response::Response::DownloadTaskStartedResponse(
                DownloadTaskStartedResponse { content_length: 77, ..Default::default() },
            )),
            ..Default::default()
        };
        let mut bytes = whole(&started);
        let mut expected = vec![Incoming::Message(started)];
        for (piece, content) in pieces {
            let message = finished(names.clone(), Piece { content: content.clone(), ..piece.clone() });
            bytes.extend(whole(&message));
            if let Some(content) = content {
                let before = Piece { traffic_type: None, cost: None, created_at: None, ..piece.clone() };
                let head = finished(names.clone(), before);
                expected.push(Incoming::Begin { head, length: content.len() as u64 });
                if !content.is_empty() {
                    expected.push(Incoming::Content(content));
                }
            }
            expected.push(Incoming::Message(finished(names.clone(), piece)));
        }
        let events = decode_all::<DownloadTaskResponse>(DOWNLOAD_CONTENT, &bytes, &cuts);
        prop_assert!(events == Ok(expected));
    }

    #[test]
    fn any_bytes_decode_or_fail(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        length in 0u32..120,
        cut in 0usize..200,
    ) {
        let mut framed = vec![0];
        framed.put_u32(length);
        framed.extend(&bytes);
        for input in [bytes, framed] {
            let mut decoder = Decoder::<DownloadTaskResponse>::new(DOWNLOAD_CONTENT, 100);
            let (first, second) = input.split_at(cut.min(input.len()));
            'stream: for part in [first, second] {
                decoder.feed(Bytes::copy_from_slice(part));
                loop {
                    match decoder.decode() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
        }
    }

    #[test]
    fn a_mangled_piece_reads_the_same_under_any_cut(
        piece in pieces(),
        at: usize,
        byte: u8,
        content in contents(),
        cuts in prop::collection::vec(any::<usize>(), 0..10),
    ) {
        let message = finished(Default::default(), Piece { content: Some(content), ..piece });
        let mut bytes = whole(&message);
        let at = at % bytes.len();
        bytes[at] = byte;
        let (whole, cut) = (read_all(&bytes, &[]), read_all(&bytes, &cuts));
        prop_assert!(whole == cut, "{cut:?} is not {whole:?}");
    }
}

#[test]
fn fields_in_another_order_and_unknown_ones_are_understood() {
    // Piece { content, 77: fixed32, number }, then the outer message's ids behind the oneof.
    let mut piece = BytesMut::new();
    prost::encoding::bytes::encode(6, &Bytes::from_static(b"content"), &mut piece);
    prost::encoding::fixed32::encode(77, &5, &mut piece);
    prost::encoding::uint32::encode(1, &9, &mut piece);
    let mut finished = BytesMut::new();
    prost::encoding::bytes::encode(1, &piece.freeze(), &mut finished);
    let mut outer = BytesMut::new();
    prost::encoding::bytes::encode(5, &finished.freeze(), &mut outer);
    prost::encoding::string::encode(2, &"task".to_owned(), &mut outer);
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(outer.len() as u32);
    bytes.put(outer);
    let events = decode_all::<DownloadTaskResponse>(DOWNLOAD_CONTENT, &bytes, &[3, 9]).expect("well-formed");
    assert!(matches!(&events[0], Incoming::Begin { length: 7, .. }));
    assert_eq!(events[1], Incoming::Content(Bytes::from_static(b"content")));
    let Incoming::Message(message) = &events[2] else { panic!("{:?}", events[2]) };
    assert_eq!(message.task_id, "task");
    let Some(download_task_response::Response::DownloadPieceFinishedResponse(finished)) = &message.response
    else {
        panic!("{message:?}")
    };
    assert_eq!(finished.piece.as_ref().map(|piece| (piece.number, &piece.content)), Some((9, &None)));
}

#[test]
fn what_must_not_be_is_refused() {
    let decode = |bytes: &[u8]| {
        let mut decoder = Decoder::<ReadPersistentCacheTaskResponse>::new(READ_CONTENT, 10);
        decoder.feed(Bytes::copy_from_slice(bytes));
        loop {
            match decoder.decode() {
                Ok(Some(_)) => {}
                other => return other.err(),
            }
        }
    };
    assert_eq!(decode(&[1, 0, 0, 0, 0]), Some(DecodeError::Compressed));
    // A field longer than its message, an inner message longer than the outer, content twice.
    assert!(matches!(decode(&[0, 0, 0, 0, 3, 0x1a, 5, 0]), Some(DecodeError::Malformed(_))));
    assert!(matches!(decode(&[0, 0, 0, 0, 4, 0x12, 3, 0, 0]), Some(DecodeError::Malformed(_))));
    let twice = [0, 0, 0, 0, 8, 0x12, 6, 0x0a, 1, 7, 0x0a, 1, 7];
    assert_eq!(decode(&twice), Some(DecodeError::Malformed("content twice in one message")));
    let long = [0, 0, 0, 0, 20, 0x1a, 18, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
    assert_eq!(decode(&long), Some(DecodeError::TooLong(10)));
    assert_eq!(Envelope::chunk(u64::from(u32::MAX)).map(|_| ()), Err(EnvelopeError::TooLong((1 << 32) + 11)));
}
