use std::time::Duration;

use bytes::BytesMut;
use damselfly_core::digest::hex;
use proptest::prelude::*;

use super::*;

/// sha256("This is a test file").
const ID: &str = "e2d0fe1585a63ec6009c8016ff8dda8b17719a637405a4e23c0ff81339148249";

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL.to_vec())
}

fn golden_meta() -> PieceMeta {
    PieceMeta {
        digest: "crc32:907060870".to_owned(),
        created_at: 1_700_000_000,
        ..PieceMeta::new(7, 7 * (4 << 20), 5)
    }
}

#[test]
fn request_has_the_golden_bytes() {
    let request =
        Request { id: 0x2a, kind: Kind::Standard, task: TaskId::parse(ID).expect("an id"), piece: 7 };
    let bytes = request.encode().expect("64 digits");
    assert_eq!(
        hex(&bytes),
        "2a00000000446532643066653135383561363365633630303963383031366666386464613862313737313961363337\
         3430356134653233633066663831333339313438323439\
         00000007"
            .replace(' ', "")
    );
    assert_eq!(Request::decode(&bytes), Ok(request));
}

#[test]
fn content_answer_has_the_golden_bytes() {
    let mut out = BytesMut::new();
    golden_meta().encode(1, Kind::Standard, &mut out).expect("short");
    out.extend_from_slice(b"hello");
    assert_eq!(out.len(), 75);
    assert_eq!(
        hex(&out),
        "0101000000400000003c000000070000000001c0000000000000000000050000000f63726333323a393037303630383730\
         00000000010000000000000000000000006553f10068656c6c6f"
            .replace(' ', "")
    );
    let answer = Answer::Content { kind: Kind::Standard, meta: golden_meta() };
    assert_eq!(decode_answer(&out), Ok(Decoded::Complete { answer, consumed: 70 }));
}

#[test]
fn error_packet_has_the_golden_bytes() {
    let packet = ErrorPacket { code: ErrorCode::NotFound, message: "piece x-7 not found".to_owned() };
    let mut out = BytesMut::new();
    packet.encode(9, &mut out);
    assert_eq!(hex(&out), "09ff0000001402706965636520782d37206e6f7420666f756e64");
    let consumed = out.len();
    assert_eq!(decode_answer(&out), Ok(Decoded::Complete { answer: Answer::Error(packet), consumed }));
    assert_eq!(hex(&Header { id: 0, tag: Tag::Close, length: 0 }.encode()), "00fe00000000");
}

#[test]
fn ids_of_another_length_do_not_encode() {
    for digits in [5, 63, 65, 128] {
        let task = TaskId::parse(&"a".repeat(digits)).expect("hex");
        let request = Request { id: 0, kind: Kind::Standard, task: task.clone(), piece: 0 };
        assert_eq!(request.encode(), Err(CodecError::IdLength(task)));
    }
}

#[test]
fn requests_with_a_wrong_header_or_id_are_refused() {
    let good = Request { id: 1, kind: Kind::Cache, task: TaskId::parse(ID).expect("an id"), piece: 3 };
    let good = good.encode().expect("64 digits");
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        Request::decode(&bytes)
    };
    for tag in [1, 2, 3, 5, 7, 8, 253, 254, 255] {
        assert_eq!(with(1, tag), Err(CodecError::Tag(tag)));
    }
    assert_eq!(with(5, 67), Err(CodecError::Length { expected: 68, actual: 67 }));
    assert_eq!(with(2, 1), Err(CodecError::Length { expected: 68, actual: (1 << 24) + 68 }));
    assert!(matches!(with(6, b'G'), Err(CodecError::TaskId(_))));
    assert!(matches!(with(6, 0xff), Err(CodecError::TaskId(_))));
}

#[test]
fn lengths_are_refused_before_anything_is_waited_for() {
    let header = Header { id: 0, tag: Tag::Error, length: u32::MAX }.encode();
    assert_eq!(decode_answer(&header), Err(CodecError::TooLong { announced: u32::MAX.into() }));
    let mut content = Header { id: 0, tag: Tag::Content(Kind::Standard), length: 0 }.encode().to_vec();
    content.extend_from_slice(&65_537u32.to_be_bytes());
    assert_eq!(decode_answer(&content), Err(CodecError::TooLong { announced: 65_537 }));
    content.truncate(6);
    content.extend_from_slice(&44u32.to_be_bytes());
    assert_eq!(decode_answer(&content), Ok(Decoded::Needs(54)));
    content.extend_from_slice(&[0; 44]);
    assert_eq!(decode_answer(&content), Err(CodecError::Length { expected: 45, actual: 44 }));
    let empty = Header { id: 0, tag: Tag::Error, length: 0 }.encode();
    assert_eq!(decode_answer(&empty), Err(CodecError::Length { expected: 1, actual: 0 }));
}

#[test]
fn lengths_inside_the_metadata_are_checked() {
    let mut out = BytesMut::new();
    golden_meta().encode(1, Kind::Standard, &mut out).expect("short");
    // The digest length field starts after header, M, number, offset and length.
    for digest_length in [0u32, 14, 16, 1000, u32::MAX] {
        let mut bytes = out.to_vec();
        bytes[30..34].copy_from_slice(&digest_length.to_be_bytes());
        assert!(matches!(decode_answer(&bytes), Err(CodecError::Metadata(_))), "{digest_length}");
    }
}

#[test]
fn metadata_that_does_not_fit_is_not_encoded() {
    let mut meta = golden_meta();
    meta.parent_id = "p".repeat(MAX_VALUE_LENGTH);
    let mut out = BytesMut::new();
    assert!(matches!(meta.encode(0, Kind::Standard, &mut out), Err(CodecError::TooLong { .. })));
    assert!(out.is_empty());
    let long = ErrorPacket { code: ErrorCode::Internal, message: "ä".repeat(MAX_VALUE_LENGTH) };
    long.encode(0, &mut out);
    assert!(matches!(decode_answer(&out), Ok(Decoded::Complete { .. })));
}

fn metas() -> impl Strategy<Value = PieceMeta> {
    (any::<(u32, u64, u64, u8, u32, i64)>(), "\\PC{0,40}", "\\PC{0,80}").prop_map(
        |((piece, offset, length, traffic_type, cost, created_at), digest, parent_id)| PieceMeta {
            piece,
            offset,
            length,
            digest,
            parent_id,
            traffic_type,
            cost: Duration::from_secs(cost.into()),
            created_at,
        },
    )
}

proptest! {
    #[test]
    fn requests_survive_the_wire(id: u8, kind in kinds(), task in "[0-9a-f]{64}", piece: u32) {
        let request = Request { id, kind, task: TaskId::parse(&task).expect("hex"), piece };
        prop_assert_eq!(Request::decode(&request.encode().expect("64 digits")), Ok(request));
    }

    #[test]
    fn content_answers_survive_the_wire_under_any_split(
        id: u8, kind in kinds(), meta in metas(), tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut out = BytesMut::new();
        meta.encode(id, kind, &mut out).expect("short");
        let consumed = out.len();
        out.extend_from_slice(&tail);
        for end in 0..consumed {
            match decode_answer(&out[..end]) {
                Ok(Decoded::Needs(more)) => prop_assert!(more > end && more <= consumed),
                other => prop_assert!(false, "{other:?} of {end} of {consumed} bytes"),
            }
        }
        let answer = Answer::Content { kind, meta };
        prop_assert_eq!(decode_answer(&out), Ok(Decoded::Complete { answer, consumed }));
    }

    #[test]
    fn errors_survive_the_wire(id: u8, code: u8, message in "\\PC{0,200}") {
        let packet = ErrorPacket { code: ErrorCode::from_byte(code), message };
        let mut out = BytesMut::new();
        packet.encode(id, &mut out);
        let consumed = out.len();
        prop_assert_eq!(decode_answer(&out), Ok(Decoded::Complete { answer: Answer::Error(packet), consumed }));
    }

    #[test]
    fn tags_are_bytes(byte: u8) {
        prop_assert_eq!(Tag::from_byte(byte).to_byte(), byte);
        prop_assert_eq!(ErrorCode::from_byte(byte).to_byte(), byte);
    }

    #[test]
    fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        match decode_answer(&bytes) {
            Ok(Decoded::Needs(more)) => prop_assert!(more > bytes.len() && more <= MAX_ANSWER_LENGTH),
            Ok(Decoded::Complete { consumed, .. }) => prop_assert!(consumed <= bytes.len()),
            Err(_) => {}
        }
    }

    #[test]
    fn any_bytes_behind_a_likely_header_decode_or_fail(
        tag in prop::sample::select(vec![1u8, 5, 7, 255]),
        lengths in prop::collection::vec(0u32..100, 5),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        // Plausible small lengths in every length field reach the branches that random bytes hardly ever do.
        let mut packet = vec![0, tag];
        packet.extend(lengths[0].to_be_bytes());
        packet.extend(lengths[1].to_be_bytes());
        packet.extend([0; 20]);
        packet.extend(lengths[2].to_be_bytes());
        packet.extend(&bytes);
        match decode_answer(&packet) {
            Ok(Decoded::Needs(more)) => prop_assert!(more > packet.len() && more <= MAX_ANSWER_LENGTH),
            Ok(Decoded::Complete { consumed, .. }) => prop_assert!(consumed <= packet.len()),
            Err(_) => {}
        }
    }

    #[test]
    fn any_request_bytes_decode_or_fail(bytes: [u8; 32], rest: [u8; 32], last: [u8; 10]) {
        let all: Vec<u8> = bytes.into_iter().chain(rest).chain(last).collect();
        let all: [u8; REQUEST_LENGTH] = all.try_into().expect("74 bytes");
        if let Ok(request) = Request::decode(&all) {
            prop_assert_eq!(request.encode(), Ok(all));
        }
    }
}
