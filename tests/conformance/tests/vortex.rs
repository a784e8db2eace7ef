//! Packets: what one side encodes the other decodes, and the bytes are those that are written down.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use damselfly_conformance::{TASK, hex, vortex as theirs};
use damselfly_core::{Crc, Kind, TaskId};
use damselfly_transport::vortex::{
    Answer, CodecError, Decoded, ErrorCode, ErrorPacket, HEADER_LENGTH, Header, PieceMeta, REQUEST_LENGTH,
    Request, Tag, decode_answer,
};
use proptest::prelude::*;
use vortex_protocol::tlv::error::{Code, Error as ErrorValue};
use vortex_protocol::{Header as TheirHeader, Vortex, tlv};

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL.to_vec())
}

fn metas() -> impl Strategy<Value = PieceMeta> {
    // The years that chrono knows; ours take any number.
    let times = -8_334_601_228_800i64..=8_210_266_876_799;
    (any::<u32>(), any::<u64>(), any::<u64>(), "\\PC{0,80}", "\\PC{0,80}", any::<u8>(), any::<u64>(), times)
        .prop_map(|(piece, offset, length, digest, parent_id, traffic_type, cost, created_at)| PieceMeta {
            piece,
            offset,
            length,
            digest,
            parent_id,
            traffic_type,
            cost: Duration::from_secs(cost),
            created_at,
        })
}

fn encoded(kind: Kind, meta: &PieceMeta) -> BytesMut {
    let mut bytes = BytesMut::new();
    meta.encode(1, kind, &mut bytes).unwrap();
    bytes
}

/// Their random packet id, which nobody reads, replaced.
fn with_id(id: u8, packet: Bytes) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[0] = id;
    packet
}

fn example() -> PieceMeta {
    PieceMeta {
        digest: Crc::of(b"hello").to_string(),
        created_at: 1_700_000_000,
        ..PieceMeta::new(7, 29_360_128, 5)
    }
}

#[test]
fn every_tag_byte_means_the_same() {
    for byte in 0..=255u8 {
        let same = match tlv::Tag::from(byte) {
            tlv::Tag::DownloadPiece => Tag::Request(Kind::Standard),
            tlv::Tag::PieceContent => Tag::Content(Kind::Standard),
            tlv::Tag::DownloadPersistentCachePiece => Tag::Request(Kind::PersistentCache),
            tlv::Tag::PersistentCachePieceContent => Tag::Content(Kind::PersistentCache),
            tlv::Tag::DownloadCachePiece => Tag::Request(Kind::Cache),
            tlv::Tag::CachePieceContent => Tag::Content(Kind::Cache),
            tlv::Tag::Close => Tag::Close,
            tlv::Tag::Error => Tag::Error,
            // Persistent tasks are not served here.
            tag @ (tlv::Tag::DownloadPersistentPiece
            | tlv::Tag::PersistentPieceContent
            | tlv::Tag::Reserved(_)) => Tag::Other(tag.into()),
        };
        assert_eq!(Tag::from_byte(byte), same);
        assert_eq!(same.to_byte(), byte);
    }
}

#[test]
fn every_error_code_means_the_same() {
    for byte in 0..=255u8 {
        let same = match Code::try_from(byte).unwrap() {
            Code::Unknown => ErrorCode::Unknown,
            Code::InvalidArgument => ErrorCode::InvalidArgument,
            Code::NotFound => ErrorCode::NotFound,
            Code::Internal => ErrorCode::Internal,
            Code::Reserved(byte) => ErrorCode::Other(byte),
        };
        assert_eq!(ErrorCode::from_byte(byte), same);
        assert_eq!(same.to_byte(), byte);
    }
}

#[test]
fn the_request_that_is_written_down() {
    let bytes = hex("2a0000000044
        6532643066653135383561363365633630303963383031366666386464613862
        3137373139613633373430356134653233633066663831333339313438323439 00000007");
    assert_eq!(with_id(0x2a, theirs::request(Kind::Standard, TASK, 7)), bytes);
    let ours = Request { id: 0x2a, kind: Kind::Standard, task: TaskId::parse(TASK).unwrap(), piece: 7 };
    assert_eq!(ours.encode().unwrap()[..], bytes);
    assert_eq!(bytes.len(), REQUEST_LENGTH);
}

#[test]
fn the_content_that_is_written_down() {
    let bytes = hex("010100000040 0000003c 00000007 0000000001c00000 0000000000000005
        0000000f 63726333323a393037303630383730 00000000 01 0000000000000000 000000006553f100");
    assert_eq!(with_id(1, theirs::content(Kind::Standard, example())), bytes);
    assert_eq!(encoded(Kind::Standard, &example()), bytes);
}

#[test]
fn the_error_that_is_written_down() {
    let bytes = hex("09ff0000001402706965636520782d37206e6f7420666f756e64");
    let value = ErrorValue::new(Code::NotFound, "piece x-7 not found".to_owned());
    let packet = Vortex::new(tlv::Tag::Error, value.into()).unwrap();
    assert_eq!(with_id(9, packet.into()), bytes);
    let mut ours = BytesMut::new();
    ErrorPacket { code: ErrorCode::NotFound, message: "piece x-7 not found".to_owned() }.encode(9, &mut ours);
    assert_eq!(ours, bytes);
}

#[test]
fn the_close_that_is_written_down() {
    let bytes = hex("00fe00000000");
    assert_eq!(with_id(0, Vortex::new(tlv::Tag::Close, Bytes::new()).unwrap().into()), bytes);
    assert_eq!(Header { id: 0, tag: Tag::Close, length: 0 }.encode()[..], bytes);
    assert_eq!(decode_answer(&bytes), Err(CodecError::Tag(254)));
}

#[test]
fn their_requests_for_persistent_tasks_are_refused_by_tag() {
    let value = tlv::download_persistent_piece::DownloadPersistentPiece::new(TASK.to_owned(), 7);
    let packet: Bytes = Vortex::new(tlv::Tag::DownloadPersistentPiece, value.into()).unwrap().into();
    let packet: [u8; REQUEST_LENGTH] = packet[..].try_into().unwrap();
    assert_eq!(Request::decode(&packet), Err(CodecError::Tag(2)));
}

#[test]
fn an_id_of_another_length_never_crosses() {
    let long = TaskId::parse(&"ab".repeat(64)).unwrap();
    let request = Request { id: 0, kind: Kind::Standard, task: long, piece: 0 };
    assert!(matches!(request.encode(), Err(CodecError::IdLength(_))));
}

proptest! {
    #[test]
    fn headers(id: u8, tag: u8, length: u32) {
        let bytes = Header { id, tag: Tag::from_byte(tag), length }.encode();
        let theirs = TheirHeader::try_from(Bytes::copy_from_slice(&bytes)).unwrap();
        prop_assert_eq!((theirs.id(), u8::from(theirs.tag()), theirs.length()), (id, tag, length));
        let theirs = Bytes::from(theirs);
        prop_assert_eq!(&theirs[..], &bytes[..]);
        prop_assert_eq!(Header::decode(theirs[..].try_into().unwrap()).encode(), bytes);
    }

    #[test]
    fn requests(kind in kinds(), task in "[0-9a-f]{64}", piece: u32) {
        let packet = theirs::request(kind, &task, piece);
        let ours = Request::decode(packet[..].try_into().unwrap()).unwrap();
        prop_assert_eq!((ours.kind, ours.task.as_str(), ours.piece), (kind, task.as_str(), piece));

        let bytes = ours.encode().unwrap();
        prop_assert_eq!(&bytes[..], &packet[..]);
        let (theirs_task, theirs_piece) = match Vortex::try_from(Bytes::copy_from_slice(&bytes)).unwrap() {
            Vortex::DownloadPiece(_, value) => (value.task_id().to_owned(), value.piece_number()),
            Vortex::DownloadPersistentCachePiece(_, value) => (value.task_id().to_owned(), value.piece_number()),
            Vortex::DownloadCachePiece(_, value) => (value.task_id().to_owned(), value.piece_number()),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!((theirs_task, theirs_piece), (task, piece));
    }

    #[test]
    fn their_content_is_read_by_ours(kind in kinds(), meta in metas(), body in prop::collection::vec(any::<u8>(), 0..20)) {
        let packet = theirs::content(kind, meta.clone());
        for end in 0..packet.len() {
            match decode_answer(&packet[..end]) {
                Ok(Decoded::Needs(more)) => prop_assert!(end < more && more <= packet.len()),
                other => prop_assert!(false, "{end} of {} bytes gave {other:?}", packet.len()),
            }
        }
        let mut received = packet.to_vec();
        received.extend_from_slice(&body);
        let expected = Decoded::Complete { answer: Answer::Content { kind, meta }, consumed: packet.len() };
        prop_assert_eq!(decode_answer(&received), Ok(expected));
    }

    #[test]
    fn our_content_is_read_by_theirs(kind in kinds(), meta in metas()) {
        let packet = encoded(kind, &meta).freeze();
        let header = TheirHeader::try_from(packet.slice(..HEADER_LENGTH)).unwrap();
        prop_assert_eq!(header.tag(), theirs::content_tag(kind));
        prop_assert_eq!(header.length() as usize, packet.len() - HEADER_LENGTH);
        prop_assert_eq!(theirs::read_content(kind, packet.slice(HEADER_LENGTH..)), Ok(meta.clone()));
        prop_assert_eq!(&with_id(1, theirs::content(kind, meta))[..], &packet[..]);
    }

    #[test]
    fn errors(code: u8, message in "\\PC{0,200}") {
        let value = ErrorValue::new(Code::try_from(code).unwrap(), message.clone());
        let packet: Bytes = Vortex::new(tlv::Tag::Error, value.into()).unwrap().into();
        let ours = ErrorPacket { code: ErrorCode::from_byte(code), message: message.clone() };
        let expected = Decoded::Complete { answer: Answer::Error(ours.clone()), consumed: packet.len() };
        prop_assert_eq!(decode_answer(&packet), Ok(expected));

        let mut bytes = BytesMut::new();
        ours.encode(packet[0], &mut bytes);
        prop_assert_eq!(&bytes[..], &packet[..]);
        let Ok(Vortex::Error(_, theirs)) = Vortex::try_from(bytes.freeze()) else { panic!("no error packet") };
        prop_assert_eq!((u8::from(theirs.code()), theirs.message()), (code, message.as_str()));
    }
}
