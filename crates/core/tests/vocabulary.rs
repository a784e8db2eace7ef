//! Geometry, digests, ranges, piece sets and redaction against published vectors and small models.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use damselfly_core::digest::Computed;
use damselfly_core::geometry::piece_length_for;
use damselfly_core::{
    Algorithm, ByteRange, Crc, Digest, Geometry, Hasher, PieceSet, RangeError, RangeSpec, redact,
};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn derived_geometry() {
    for (length, piece_mib, count) in [
        (1, 4, 1),
        (4 * MIB, 4, 1),
        (4 * MIB + 1, 4, 2),
        (GIB, 4, 256),
        (2_097_152_499, 4, 501),
        (2_097_152_500, 8, 251),
        (4 * GIB, 16, 256),
        (8 * GIB, 32, 256),
        (10 * GIB, 32, 320),
        (16 * GIB, 64, 256),
        (100 * GIB, 64, 1600),
    ] {
        let geometry = Geometry::derived(length).unwrap();
        assert_eq!(
            (geometry.piece_length() / MIB, geometry.piece_count()),
            (piece_mib, count),
            "{length} bytes"
        );
    }
    assert_eq!(piece_length_for(0), 4 * MIB);
    assert_eq!(piece_length_for(8_388_608_000), 16 * MIB);
    assert_eq!(piece_length_for(8_388_608_500), 32 * MIB);
    assert_eq!(Geometry::derived(0).unwrap().piece_count(), 0);
    assert!(Geometry::new(1, 0).is_err());
    assert!(Geometry::new(u64::MAX, 1).is_err());
}

#[test]
fn piece_crcs() {
    for (bytes, crc) in
        [(&b"123456789"[..], 3_421_780_262), (b"", 0), (b"hello", 907_060_870), (b"c", 112_844_655)]
    {
        assert_eq!(Crc::of(bytes), Crc(crc));
    }
    assert_eq!(Crc::of(&vec![0; 4 << 20]), Crc(289_882_218));
    let pattern: Vec<u8> = (0..65536u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    assert_eq!(Crc::of(&pattern).to_string(), "crc32:2141868243");
    assert_eq!(Crc::parse_piece_digest("crc32:907060870"), Ok(Some(Crc(907_060_870))));
    assert_eq!(Crc::parse_piece_digest(""), Ok(None));
    for bad in ["crc32:", "crc32:+1", "crc32:-1", "crc32:4294967296", "md5:1", "907060870"] {
        assert!(Crc::parse_piece_digest(bad).is_err(), "{bad}");
    }
}

#[test]
fn task_digests() {
    for algorithm in Algorithm::ALL {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(b"hel");
        hasher.update(b"lo");
        let computed = hasher.finish();
        let digest: Digest = computed.to_string().parse().unwrap();
        assert!(digest.matches(&computed), "{digest}");
        let mut other = Hasher::new(algorithm);
        other.update(b"hallo");
        assert!(!digest.matches(&other.finish()), "{digest}");
    }
    let sha: Digest =
        "sha256:2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824".parse().unwrap();
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(b"hello");
    assert!(sha.matches(&hasher.finish()));
    let hello = Computed::Crc32(907_060_870);
    for text in ["crc32:907060870", "crc32:3610a686", "crc32:3610A686"] {
        assert!(text.parse::<Digest>().unwrap().matches(&hello), "{text}");
    }
    let either: Digest = "crc32:12345678".parse().unwrap();
    assert!(either.matches(&Computed::Crc32(12_345_678)) && either.matches(&Computed::Crc32(0x1234_5678)));
    for bad in ["sha256:ab", "sha256", "sha3:ab", "crc32:99999999999", "md5:zz"] {
        assert!(bad.parse::<Digest>().is_err(), "{bad}");
    }
}

#[test]
fn range_headers() {
    let span = |start, length| RangeSpec::Span(ByteRange { start, length });
    for (text, expected) in [
        ("bytes=0-0", span(0, 1)),
        (" bytes=5-9 ", span(5, 5)),
        ("bytes=5-", RangeSpec::From(5)),
        ("bytes=-5", RangeSpec::Last(5)),
        ("bytes=0-1,5-6", span(0, 2)),
    ] {
        assert_eq!(RangeSpec::parse_header(text), Ok(expected), "{text}");
    }
    for bad in ["0-1", "bytes=", "bytes=-", "bytes=2-1", "bytes=a-b", "items=0-1"] {
        assert!(matches!(RangeSpec::parse_header(bad), Err(RangeError::Malformed(_))), "{bad}");
    }
    assert_eq!(RangeSpec::Whole.resolve(0), Ok(ByteRange { start: 0, length: 0 }));
    assert_eq!(span(8, 100).resolve(10), Ok(ByteRange { start: 8, length: 2 }));
    assert_eq!(RangeSpec::Last(100).resolve(10), Ok(ByteRange { start: 0, length: 10 }));
    assert_eq!(RangeSpec::From(3).resolve(10), Ok(ByteRange { start: 3, length: 7 }));
    assert_eq!(span(0, 0).resolve(10), Err(RangeError::Empty));
    assert_eq!(
        RangeSpec::From(10).resolve(10),
        Err(RangeError::Unsatisfiable { start: 10, content_length: 10 })
    );
}

#[test]
fn redaction() {
    for (url, expected) in [
        (
            "https://user:pw@h/p?X-Amz-Signature=abc&k",
            "https://REDACTED:REDACTED@h/p?X-Amz-Signature=REDACTED&REDACTED",
        ),
        ("https://h/p#token", "https://h/p"),
        ("h/p?sig=1", "h/p"),
        ("user:pw@h/p", "REDACTED@h/p"),
        ("//user:pw@h/p?sig=1", "REDACTED@h/p"),
    ] {
        assert_eq!(redact::url(url), expected, "{url}");
    }
}

proptest! {
    #[test]
    fn pieces_of_a_range_are_those_that_touch_it(
        content in 0u64..5000, piece in 1u64..700, start in 0u64..6000, length in 0u64..6000,
    ) {
        let geometry = Geometry::new(content, piece).unwrap();
        let touched: Vec<u32> = (0..geometry.piece_count())
            .filter(|&n| {
                let span = geometry.piece(n).unwrap();
                length > 0 && span.offset < start + length && span.offset + span.length > start
            })
            .collect();
        prop_assert_eq!(geometry.pieces_of(ByteRange { start, length }).collect::<Vec<_>>(), touched);
        let total: u64 = (0..geometry.piece_count()).map(|n| geometry.piece(n).unwrap().length).sum();
        prop_assert_eq!(total, content);
        prop_assert_eq!(geometry.piece(geometry.piece_count()), None);
    }

    #[test]
    fn crcs_combine(a in proptest::collection::vec(any::<u8>(), 0..300), b in proptest::collection::vec(any::<u8>(), 0..300)) {
        let both: Vec<u8> = a.iter().chain(&b).copied().collect();
        prop_assert_eq!(Crc::of(&a).followed_by(Crc::of(&b), b.len() as u64), Crc::of(&both));
    }

    #[test]
    fn piece_sets_are_sets(count in 0u32..300, operations in proptest::collection::vec((any::<bool>(), 0u32..320), 0..200)) {
        let (mut set, mut model) = (PieceSet::new(count), BTreeSet::new());
        for (put, number) in operations {
            if put {
                prop_assert_eq!(set.insert(number), number < count && model.insert(number));
            } else {
                prop_assert_eq!(set.remove(number), model.remove(&number));
            }
        }
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(set.missing().collect::<Vec<_>>(), (0..count).filter(|n| !model.contains(n)).collect::<Vec<_>>());
        prop_assert_eq!(PieceSet::from_bytes(&set.to_bytes(), count), set);
    }

    #[test]
    fn common_members_come_once_each_in_rotation(
        count in 0u32..300,
        ours in proptest::collection::vec(0u32..300, 0..100),
        theirs in proptest::collection::vec(0u32..300, 0..100),
        start in 0u32..400,
    ) {
        let set = |numbers: &[u32]| {
            let mut set = PieceSet::new(count);
            numbers.iter().for_each(|&n| { set.insert(n); });
            set
        };
        let (ours, theirs) = (set(&ours), set(&theirs));
        let expected: Vec<u32> = (0..count)
            .map(|n| (n + start) % count)
            .filter(|&n| ours.contains(n) && theirs.contains(n))
            .collect();
        prop_assert_eq!(ours.common_from(&theirs, start).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_one_of_several_sets_has_is_counted(
        sets in prop::collection::vec(prop::collection::btree_set(0u32..200, 0..120), 0..5),
        missing in prop::collection::btree_set(0u32..200, 0..200),
    ) {
        let set_of = |numbers: &BTreeSet<u32>| {
            let mut set = PieceSet::new(200);
            for &number in numbers {
                set.insert(number);
            }
            set
        };
        let all: Vec<PieceSet> = sets.iter().map(set_of).collect();
        let alone = PieceSet::in_one_of(200, &all);
        let expected: Vec<u32> =
            (0..200).filter(|number| sets.iter().filter(|set| set.contains(number)).count() == 1).collect();
        prop_assert_eq!(alone.len() as usize, expected.len());
        prop_assert_eq!(alone.iter().collect::<Vec<_>>(), expected);
        for (set, numbers) in all.iter().zip(&sets) {
            let common = numbers.iter().filter(|number| missing.contains(number) && alone.contains(**number));
            prop_assert_eq!(set_of(&missing).common_count(&alone, set) as usize, common.count());
        }
    }
}
