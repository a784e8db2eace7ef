//! What the generated code puts on the wire, byte for byte, and which fields of Dragonfly's packages are ours.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;

use bytes::Bytes;
use damselfly_api::common::v2::{Host, Piece, TrafficType};
use damselfly_api::damselfly::v1::{Learned, Lease, PieceRange, Validator};
use damselfly_api::dfdaemon::v2::read_persistent_cache_task_response::Response as Read;
use damselfly_api::dfdaemon::v2::{
    DownloadPieceFinishedResponse, DownloadTaskResponse, PersistentCacheTaskChunk,
    ReadPersistentCacheTaskResponse, SyncCachePiecesResponse, SyncPiecesResponse, download_task_response,
};
use damselfly_api::scheduler::v2::announce_peer_request::Request;
use damselfly_api::scheduler::v2::announce_peer_response::Response;
use damselfly_api::scheduler::v2::{
    AnnouncePeerRequest, AnnouncePeerResponse, DownloadPieceFailedRequest, NeedBackToSourceResponse,
};
use prost::Message;
use prost_types::FileDescriptorSet;

/// Encodes to `hex` and decodes back from it.
#[track_caller]
fn golden<M: Message + Default + PartialEq + Debug>(message: &M, hex: &str) {
    let encoded: String = message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    let hex: String = hex.split_whitespace().collect();
    assert_eq!(encoded, hex);
    assert_eq!(M::decode(message.encode_to_vec().as_slice()).as_ref(), Ok(message));
}

fn addresses(bytes: &Bytes) -> Range<usize> {
    let start = bytes.as_ptr() as usize;
    start..start + bytes.len()
}

#[track_caller]
fn shares(content: &Bytes, source: &Bytes) {
    let (inner, outer) = (addresses(content), addresses(source));
    assert!(outer.start <= inner.start && inner.end <= outer.end, "copied: {inner:x?} is outside {outer:x?}");
}

#[test]
fn piece_content_is_decoded_without_a_copy() {
    let content = Bytes::from(vec![7; 100_000]);
    let message = DownloadTaskResponse {
        response: Some(download_task_response::Response::DownloadPieceFinishedResponse(
            DownloadPieceFinishedResponse {
                piece: Some(Piece { content: Some(content.clone()), ..Piece::default() }),
            },
        )),
        ..DownloadTaskResponse::default()
    };
    let source = Bytes::from(message.encode_to_vec());
    let decoded = DownloadTaskResponse::decode(source.clone()).unwrap();
    let Some(download_task_response::Response::DownloadPieceFinishedResponse(finished)) = decoded.response
    else {
        panic!("another arm");
    };
    let decoded = finished.piece.unwrap().content.unwrap();
    assert_eq!(decoded, content);
    shares(&decoded, &source);
}

#[test]
fn chunks_are_decoded_without_a_copy() {
    let content = Bytes::from(vec![7; 100_000]);
    let message = ReadPersistentCacheTaskResponse {
        response: Some(Read::Chunk(PersistentCacheTaskChunk { content: content.clone() })),
    };
    let source = Bytes::from(message.encode_to_vec());
    let Some(Read::Chunk(chunk)) = ReadPersistentCacheTaskResponse::decode(source.clone()).unwrap().response
    else {
        panic!("another arm");
    };
    assert_eq!(chunk.content, content);
    shares(&chunk.content, &source);
}

#[test]
fn piece() {
    let piece = Piece {
        number: 7,
        parent_id: Some("p".into()),
        offset: 7 << 22,
        length: 5,
        digest: "crc32:907060870".into(),
        content: Some(Bytes::from_static(b"hello")),
        traffic_type: Some(TrafficType::RemotePeer.into()),
        cost: Some(prost_types::Duration { seconds: 0, nanos: 300 }),
        created_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
    };
    golden(
        &piece,
        "08 07  12 01 70  18 8080800e  20 05  2a 0f 63726333323a393037303630383730
         32 05 68656c6c6f  38 01  42 03 10 ac02  4a 06 08 80e2cfaa06",
    );
}

#[test]
fn what_is_optional_tells_absent_from_zero() {
    golden(&Piece { traffic_type: Some(0), ..Piece::default() }, "38 00");
    golden(&Piece { content: Some(Bytes::new()), ..Piece::default() }, "32 00");
    golden(&Piece::default(), "");
    golden(&DownloadPieceFailedRequest { piece_number: Some(0), ..Default::default() }, "08 00");
}

#[test]
fn places_of_pieces() {
    let ip = String::from("10.0.0.1");
    let task = SyncPiecesResponse {
        number: 1,
        offset: 4,
        length: 2,
        ip: ip.clone(),
        tcp_port: Some(4005),
        quic_port: Some(4006),
    };
    let cache = SyncCachePiecesResponse {
        number: 1,
        offset: 4,
        length: 2,
        ip,
        tcp_port: Some(4005),
        quic_port: Some(4006),
    };
    let bytes = "08 01  10 04  18 02  22 08 31302e302e302e31  28 a51f  30 a61f";
    golden(&task, bytes);
    golden(&cache, bytes);
}

#[test]
fn a_host_of_ours() {
    let host = Host { tcp_port: 4005, quic_port: 4006, incarnation: Some(0x0102), ..Host::default() };
    golden(&host, "c0 3e a51f  c8 3e a61f  d1 3e 0201000000000000");
    golden(&Host { incarnation: Some(0), ..Host::default() }, "d1 3e 0000000000000000");
}

#[test]
fn a_lease() {
    let lease = Lease {
        id: 3,
        ranges: vec![PieceRange { first: 8, count: 8 }],
        silence: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        generation: 1,
    };
    let message = AnnouncePeerResponse {
        response: Some(Response::NeedBackToSourceResponse(NeedBackToSourceResponse {
            description: None,
            lease: Some(lease),
        })),
        facts: None,
    };
    golden(&message, "1a 11  c2 3e 0e  08 03  12 04 08 08 10 08  1a 02 08 0a  20 01");
}

#[test]
fn our_fields_need_no_request_arm() {
    let learned = Learned {
        content_length: Some(0),
        piece_length: 4 << 20,
        validator: Some(Validator { etag: Some("e".into()), last_modified: None }),
        header: BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]),
        private: true,
        ranges: Some(false),
    };
    let message =
        AnnouncePeerRequest { learned: Some(learned), released_lease: Some(0), ..Default::default() };
    golden(
        &message,
        "c2 3e 20  08 00  10 80808002  1a 03 0a 01 65  22 06 0a 01 61 12 01 31  22 06 0a 01 62 12 01 32
         28 01  30 00  c8 3e 00",
    );
}

#[test]
fn dragonfly_sees_an_empty_arm_behind_our_fields() {
    // Fields from 1000 on stand behind an arm; a reader that does not know them must still see the arm.
    let bytes = [0x42, 0x00, 0xc8, 0x3e, 0x05];
    let message = AnnouncePeerRequest::decode(bytes.as_slice()).unwrap();
    assert!(matches!(message.request, Some(Request::DownloadPeerFinishedRequest(_))));
    assert_eq!(message.released_lease, Some(5));
}

#[test]
fn our_fields_in_dragonflys_packages_are_these() {
    let set = FileDescriptorSet::decode(damselfly_api::FILE_DESCRIPTOR_SET).unwrap();
    let mut ours = Vec::new();
    for file in set.file.iter().filter(|file| file.package().ends_with(".v2")) {
        for message in &file.message_type {
            for field in message.field.iter().filter(|field| field.number() >= 1000) {
                assert!(
                    field.oneof_index.is_none() || field.proto3_optional(),
                    "a new arm: {}",
                    field.name()
                );
                ours.push(format!("{}.{} {}", message.name(), field.name(), field.number()));
            }
        }
    }
    ours.sort();
    let expected = [
        "AnnouncePeerRequest.learned 1000",
        "AnnouncePeerRequest.released_lease 1001",
        "AnnouncePeerResponse.facts 1000",
        "AnnouncePersistentCachePeerResponse.facts 1000",
        "Host.incarnation 1002",
        "Host.quic_port 1001",
        "Host.tcp_port 1000",
        "NeedBackToSourceResponse.lease 1000",
        "PersistentCacheTask.generation 1002",
        "PersistentCacheTask.replicas 1000",
        "PersistentCacheTask.schedulers 1001",
        "ReadPersistentCacheTaskFinished.receipt 1000",
        "ReadPersistentCacheTaskStarted.host_id 1001",
        "ReadPersistentCacheTaskStarted.peer_id 1002",
        "ReadPersistentCacheTaskStarted.range 1004",
        "ReadPersistentCacheTaskStarted.response_header 1003",
        "ReadPersistentCacheTaskStarted.task_id 1000",
        "RegisterPeerRequest.restate 1000",
        "RegisterPersistentCachePeerRequest.restate 1000",
        "UploadPersistentCacheTaskFinishedRequest.ack 1000",
        "UploadPersistentCacheTaskFinishedRequest.crcs 1001",
        "UploadPersistentCacheTaskFinishedRequest.generation 1002",
    ];
    assert_eq!(ours, expected);
}

#[test]
fn reflection_finds_every_import() {
    let set = FileDescriptorSet::decode(damselfly_api::FILE_DESCRIPTOR_SET).unwrap();
    let names: Vec<&str> = set.file.iter().map(prost_types::FileDescriptorProto::name).collect();
    for file in &set.file {
        for import in &file.dependency {
            assert!(names.contains(&import.as_str()), "{} imports {import}", file.name());
        }
        assert!(file.source_code_info.is_none());
    }
    let services: usize = set.file.iter().map(|file| file.service.len()).sum();
    assert_eq!(services, 6);
}
