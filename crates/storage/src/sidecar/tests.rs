use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use damselfly_core::download::Validator;
use damselfly_core::task_id::ContentId;
use damselfly_core::{Crc, Geometry, Kind, TaskId, TaskKey};
use proptest::prelude::*;

use super::frame::{self, FRAME, FrameError, INLINE};
use super::header::{Header, Linked, Upload};
use super::{SidecarFile, record};
use crate::clock::{BootId, Lifetime, Moment};
use crate::error::StoreError;
use crate::meta::ImportId;
use crate::testing::Fake;

fn time() -> impl Strategy<Value = Duration> {
    (0u64..1 << 50).prop_map(Duration::from_micros)
}

fn moment() -> impl Strategy<Value = Moment> {
    (any::<[u8; 16]>(), time(), time()).prop_map(|(boot, since_boot, wall)| Moment {
        boot: BootId(boot),
        since_boot,
        wall,
    })
}

fn lifetime() -> impl Strategy<Value = Lifetime> {
    prop_oneof![
        time().prop_map(Lifetime::Unused),
        (moment(), time()).prop_map(|(from, length)| Lifetime::Fixed(from, length)),
    ]
}

fn text() -> impl Strategy<Value = Option<String>> {
    prop::option::of("[ -~é]{0,40}")
}

fn linked() -> impl Strategy<Value = Linked> {
    (any::<u64>(), any::<u64>(), any::<(i64, i64)>(), any::<(i64, i64)>())
        .prop_map(|(inode, size, mtime, ctime)| Linked { inode, size, mtime, ctime })
}

fn upload() -> impl Strategy<Value = Upload> {
    let id = prop_oneof![
        Just(ImportId::Content(ContentId::Sha256)),
        Just(ImportId::Content(ContentId::Blake3)),
        key().prop_map(|key| ImportId::Given(key.id)),
    ];
    ("[ -~é]{0,40}", id, any::<Option<u64>>()).prop_map(|(name, id, piece_length)| Upload {
        name,
        id,
        piece_length,
    })
}

prop_compose! {
    fn key()(id in "[0-9a-f]{5,128}", kind in 0usize..3) -> TaskKey {
        TaskKey { kind: Kind::ALL[kind], id: TaskId::parse(&id).unwrap() }
    }
}

prop_compose! {
    fn header()(
        key in key(),
        (generation, geometry) in (any::<u64>(), prop::option::of((0u64..1 << 40, 1u64 << 20..1 << 30))),
        (etag, last_modified) in (text(), text()),
        headers in prop::collection::btree_map("[a-z-]{0,20}", "[ -~é]{0,60}", 0..6),
        flags in any::<[bool; 4]>(),
        replica_target in 0u64..,
        owners in prop::collection::vec(any::<u32>(), 0..5),
        (url, tag, application, digest) in ("[ -~é]{0,60}", text(), text(), text()),
        (created, updated, finished, used) in (time(), time(), prop::option::of(time()), moment()),
        lifetime in lifetime(),
        (linked, upload) in (prop::option::of(linked()), prop::option::of(upload())),
    ) -> Header {
        Header {
            key, generation, headers, owners, url, tag, application, digest, created, updated, finished, used,
            lifetime, linked, replica_target, upload,
            geometry: geometry.map(|(content, piece)| Geometry::new(content, piece).unwrap()),
            validator: Validator { etag, last_modified },
            private: flags[0], persistent: flags[1], paused: flags[2], suspect: flags[3],
        }
    }
}

fn frame_of(sequence: u64, header: &Header) -> [u8; FRAME] {
    frame::encode(sequence, &header.encode(), 1 << 20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_header_reads_back_as_written(header in header()) {
        prop_assert_eq!(Header::decode(&header.encode()), Some(header));
    }

    #[test]
    fn unknown_fields_are_skipped(header in header(), tag in 100u8.., value in prop::collection::vec(any::<u8>(), 0..50)) {
        let mut body = vec![tag];
        body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
        body.extend_from_slice(&value);
        body.extend_from_slice(&header.encode());
        prop_assert_eq!(Header::decode(&body), Some(header));
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000), cut in 0usize..5000) {
        let _decoded = (Header::decode(&bytes), frame::decode(&bytes), frame::decode(&bytes[..cut.min(bytes.len())]));
        let key = TaskKey { kind: Kind::Standard, id: TaskId::parse("abcde").unwrap() };
        prop_assert_eq!(record::decode(&key, 0, 0, &bytes[..bytes.len().min(16)]), None);
    }

    #[test]
    fn a_damaged_body_is_never_taken_for_another(header in header(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut frame = frame_of(1, &header);
        let at = at.index(FRAME);
        frame[at] ^= flip;
        prop_assert_eq!(frame::decode(&frame), Err(FrameError::Invalid));
    }

    /// The newer header is torn: a prefix of it lies over what was in its place (the header before the older one, or
    /// nothing, or garbage). Then the older one counts.
    #[test]
    fn a_torn_header_leaves_the_older_one(
        headers in [header(), header(), header()], cut in 0usize..FRAME, garbage in any::<Option<u8>>(), blank in any::<bool>(),
    ) {
        let [before, older, newer] = &headers;
        let (live, new) = (frame_of(6, older), frame_of(7, newer));
        let mut torn = if blank { [0; FRAME] } else { frame_of(5, before) };
        if let Some(garbage) = garbage {
            torn[cut..].fill(garbage);
        }
        torn[..cut].copy_from_slice(&new[..cut]);
        prop_assume!(torn != new);
        for (a, b) in [(&torn, &live), (&live, &torn)] {
            let frames = frame::newest_first(a, b).unwrap();
            prop_assert_eq!(frames[0].sequence, 6);
        }
        let frames = frame::newest_first(&new, &live).unwrap();
        prop_assert_eq!(frames.iter().map(|frame| frame.sequence).collect::<Vec<_>>(), [7, 6]);
    }

    #[test]
    fn a_record_counts_only_where_it_was_written(
        key in key(), other in key(), number in any::<u32>(), generation in any::<u64>(), crc in any::<u32>(),
        at in 0usize..16, flip in 1u8..,
    ) {
        let record = record::encode(&key, number, generation, Crc(crc));
        prop_assert_eq!(record::decode(&key, number, generation, &record), Some(Crc(crc)));
        prop_assert_eq!(record::decode(&key, number.wrapping_add(1), generation, &record), None);
        prop_assert_eq!(record::decode(&key, number, generation.wrapping_add(1), &record), None);
        if other != key {
            prop_assert_eq!(record::decode(&other, number, generation, &record), None);
        }
        let mut damaged = record;
        damaged[at] ^= flip;
        prop_assert_eq!(record::decode(&key, number, generation, &damaged), None);
        for torn in 0..16 {
            let mut torn_record = [0; 16];
            torn_record[..torn].copy_from_slice(&record[..torn]);
            if torn_record != record {
                prop_assert_eq!(record::decode(&key, number, generation, &torn_record), None);
            }
        }
    }

    /// Any sequence of header writes, small and large, over a file that also has records: the last one is read back,
    /// and if its frame or its overflow is destroyed, the one before it.
    #[test]
    fn the_file_keeps_the_header_before_the_last(
        mut headers in prop::collection::vec((header(), 0usize..30_000), 2..6), destroy in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (path, system) = (dir.path().join("x.meta"), Fake::new());
        let geometry = Some(Geometry::new(1000, 1).unwrap());
        let (key, first) = (headers[0].0.key.clone(), headers[0].1);
        for (header, extra) in &mut headers {
            header.key = key.clone();
            header.generation = 3;
            header.geometry = geometry;
            header.headers.insert("x".into(), "y".repeat(*extra + first % 7));
        }
        let mut file = SidecarFile::create(&*system, &path, &headers[0].0).unwrap();
        file.write_held(&*system, &key, 3, 0, &vec![Crc(9); 1000]).unwrap();
        for (header, _) in &headers[1..] {
            file.write_header(&*system, header).unwrap();
        }
        let loaded = SidecarFile::load(&path, &key).unwrap().unwrap();
        let last = &headers.last().unwrap().0;
        prop_assert_eq!(&loaded.header, last);
        prop_assert!(loaded.held.is_full());
        let body = last.encode();
        let overflowed = body.len().saturating_sub(INLINE) as u64;
        let target = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        let overflow = loaded.file.overflow_offset();
        if overflowed > 0 && destroy.index(2) == 1 {
            target.write_all_at(&vec![0xAA; usize::try_from(overflowed).unwrap()], overflow).unwrap();
        } else {
            target.write_all_at(&[0xAA; FRAME], (headers.len() as u64 & 1) * FRAME as u64).unwrap();
        }
        let loaded = SidecarFile::load(&path, &key).unwrap().unwrap();
        prop_assert_eq!(&loaded.header, &headers[headers.len() - 2].0);
        prop_assert!(loaded.held.is_full());
    }
}

fn plain() -> Header {
    let now =
        Moment { boot: BootId([1; 16]), since_boot: Duration::from_secs(5), wall: Duration::from_secs(6) };
    Header {
        key: TaskKey { kind: Kind::Standard, id: TaskId::parse("abcdef").unwrap() },
        generation: 1,
        geometry: None,
        validator: Validator::default(),
        headers: BTreeMap::new(),
        private: false,
        persistent: false,
        replica_target: 0,
        paused: false,
        suspect: false,
        owners: vec![],
        url: String::new(),
        tag: None,
        application: None,
        digest: None,
        created: now.wall,
        updated: now.wall,
        finished: None,
        used: now,
        lifetime: Lifetime::Unused(Duration::from_secs(60)),
        linked: None,
        upload: None,
    }
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (path, system, header) = (dir.path().join("abcdef.meta"), Fake::new(), plain());
    let mut file = SidecarFile::create(&*system, &path, &header).unwrap();
    file.write_header(&*system, &header).unwrap();
    let mut newer = frame_of(9, &header);
    newer[8..12].copy_from_slice(&2u32.to_le_bytes());
    let check = Crc::of(&newer[..FRAME - 4]).0;
    newer[FRAME - 4..].copy_from_slice(&check.to_le_bytes());
    assert_eq!(frame::decode(&newer), Err(FrameError::Newer(2)));
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&newer, 0).unwrap();
    let error = SidecarFile::load(&path, &header.key).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
    assert!(error.to_string().contains("abcdef.meta"), "{error}");
}

#[test]
fn metadata_without_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, system, mut header) = (dir.path().join("abcdef.meta"), Fake::new(), plain());
    let mut file = SidecarFile::create(&*system, &path, &header).unwrap();
    let small = header.clone();
    header.headers.insert("x".into(), "y".repeat(2 << 20));
    assert!(matches!(file.write_header(&*system, &header), Err(StoreError::TooMuchMetadata { .. })));
    assert_eq!(SidecarFile::load(&path, &small.key).unwrap().unwrap().header, small);
}

#[test]
fn a_sidecar_of_another_task_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let (path, system, header) = (dir.path().join("abcdef.meta"), Fake::new(), plain());
    drop(SidecarFile::create(&*system, &path, &header).unwrap());
    let other = TaskKey { kind: Kind::PersistentCache, ..header.key };
    assert!(SidecarFile::load(&path, &other).unwrap().is_none());
}
