//! Ids against the vectors that Dragonfly's peers compute.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use damselfly_core::task_id::{
    ContentId, DEFAULT_FILTERED_QUERY_PARAMS, PersistentCacheHasher, StandardInput, normalised_url, standard,
};
use damselfly_core::{Algorithm, Hasher, HostId, IdError, Kind, PeerId, TaskId};

fn input(url: &str) -> StandardInput<'_> {
    StandardInput {
        url,
        tag: None,
        application: None,
        revision: None,
        piece_length: None,
        filtered_query_params: &[],
        content: None,
        blob_digest: false,
        kind: Kind::Standard,
    }
}

fn id(input: &StandardInput<'_>) -> String {
    standard(input).unwrap().to_string()
}

#[test]
fn standard_ids() {
    let plain = input("https://example.com");
    let vectors = [
        (plain, "457b4328cde278e422c9e243f7bfd1e97f511fec43a80f535cf6b0ef6b086776"),
        (
            StandardInput {
                tag: Some("foo"),
                application: Some("bar"),
                revision: Some("v1.0"),
                piece_length: Some(1024),
                ..plain
            },
            "5844f27a257287e9b734256bb25603d8005422ced8c0377f15063ec11963b25f",
        ),
        (
            StandardInput { tag: Some("foo"), application: Some("bar"), ..plain },
            "06408fbf247ddaca478f8cb9565fe5591c28efd0994b8fea80a6a87d3203c5ca",
        ),
        (
            StandardInput { piece_length: Some(1024), ..plain },
            "9f7c9aafbc6f30f8f41a96ca77eeae80c5b60964b3034b0ee43ccf7b2f9e52b8",
        ),
        (
            input("https://example.com/a/b?x=1&y=2"),
            "1849a900089d3e8535a9e8799705a67edef49baa6971bd956468dc857709146c",
        ),
        (
            input("https://example.com/a/b?q=a%20b"),
            "e9fc3fce08c06bd13a7c502e55ffdb0060f991cd8a35db25cdab9f6e6c3e9fa0",
        ),
        (
            input("http://127.0.0.1:8080/blob/4m"),
            "dd6956a683340f9d2a5aa738d13e467c5172993905cff9110b3f67f5f1d686b0",
        ),
        (
            StandardInput { content: Some("This is a test file"), ..input("not even a URL") },
            "e2d0fe1585a63ec6009c8016ff8dda8b17719a637405a4e23c0ff81339148249",
        ),
        (
            StandardInput { tag: Some(""), application: Some(""), ..plain },
            "457b4328cde278e422c9e243f7bfd1e97f511fec43a80f535cf6b0ef6b086776",
        ),
    ];
    for (input, expected) in vectors {
        assert_eq!(id(&input), expected, "{input:?}");
    }
}

#[test]
fn filtered_parameters_do_not_count() {
    let filtered = ["foo".to_owned(), "bar".to_owned()];
    let with =
        StandardInput { filtered_query_params: &filtered, ..input("https://example.com?foo=foo&bar=bar") };
    assert_eq!(id(&with), id(&input("https://example.com")));
    assert_ne!(id(&input("https://example.com?foo=foo&bar=bar")), id(&input("https://example.com")));
}

#[test]
fn urls_are_normalised() {
    let vectors = [
        ("HTTPS://Example.COM:443/", &[][..], "https://example.com"),
        ("https://example.com/a/", &[], "https://example.com/a/"),
        ("https://example.com/?a", &[], "https://example.com/?a="),
        ("https://example.com/x?a=b c&d=%2F%c3%a4#f", &[], "https://example.com/x?a=b+c&d=%2F%C3%A4#f"),
        ("https://example.com/x?a=1&b=2&a=3", &["a"], "https://example.com/x?b=2"),
        ("https://example.com/x?a=1#frag", &["a"], "https://example.com/x#frag"),
        ("https://example.com/x?A=1", &["a"], "https://example.com/x?A=1"),
    ];
    for (url, filtered, expected) in vectors {
        let filtered: Vec<String> = filtered.iter().map(ToString::to_string).collect();
        assert_eq!(normalised_url(url, &filtered).unwrap(), expected, "{url}");
    }
}

#[test]
fn blob_urls_give_the_blobs_digest() {
    let hex64 = "ab".repeat(32);
    let blob = |url: &str| standard(&StandardInput { blob_digest: true, ..input(url) });
    for url in [
        format!("https://registry/v2/library/alpine/blobs/sha256:{hex64}"),
        format!("https://registry/v2/library/alpine/blobs/sha256:{hex64}?ns=docker.io"),
        format!("https://mirror/x/v2/a/blobs/b/v2/c/blobs/sha256:{hex64}"),
    ] {
        assert_eq!(blob(&url).unwrap().as_str(), hex64, "{url}");
    }
    assert_eq!(
        blob(&format!("https://r/v2/a/blobs/sha512:{}", "cd".repeat(64))).unwrap().as_str().len(),
        128
    );
    for digest in
        ["sha256:abc", "nothing", &format!("md5:{}", "a".repeat(32)), &format!("sha256:{}", "Z".repeat(64))]
    {
        let url = format!("https://r/v2/a/blobs/{digest}");
        assert!(matches!(blob(&url), Err(IdError::BlobDigest(_))), "{url}");
    }
    let manifest = "https://registry/v2/library/alpine/manifests/latest";
    assert_eq!(blob(manifest), standard(&input(manifest)), "no blob: the general rule");
    let off = format!("https://registry/v2/library/alpine/blobs/sha256:{hex64}");
    assert_ne!(id(&input(&off)), hex64);
}

#[test]
fn kinds_differ() {
    let standard_id = id(&input("https://example.com"));
    let cache_id = id(&StandardInput { kind: Kind::Cache, ..input("https://example.com") });
    assert_ne!(standard_id, cache_id);
    assert_eq!(
        standard(&StandardInput { kind: Kind::PersistentCache, ..input("https://example.com") }),
        Err(IdError::NeedsContent)
    );
    assert!(
        matches!(standard(&input("no url?sig=secret")), Err(IdError::Url { url, .. }) if url == "no url")
    );
}

#[test]
fn persistent_cache_ids() {
    let hash = |content_id, bytes: &[u8], tag, application, piece_length| {
        let mut hasher = PersistentCacheHasher::new(content_id);
        for chunk in bytes.chunks(5) {
            hasher.update(chunk);
        }
        let mut plain = Hasher::new(match content_id {
            ContentId::Sha256 => Algorithm::Sha256,
            ContentId::Blake3 => Algorithm::Blake3,
        });
        plain.update(bytes);
        assert_eq!(hasher.content_digest(), plain.finish());
        hasher.finish(tag, application, piece_length).unwrap().to_string()
    };
    let file = b"This is a test file";
    assert_eq!(
        hash(ContentId::Sha256, file, Some("tag1"), Some("app1"), Some(1024)),
        "7160a071a9acea5ac341e770c14d0211c38a4b15b3bbe2c5f848a706fd47419e"
    );
    assert_eq!(
        hash(ContentId::Sha256, file, None, None, None),
        "91ae5d9d7ea8763cc482e9999a6d5edac534a6000599777d6a26d1c66d2bab16"
    );
    assert_eq!(
        hash(ContentId::Sha256, b"", None, None, None),
        "84af03caf552bfbcb0d654b5158525fc6867b6964bbd43121bf3cb11e55c7831"
    );
    assert_eq!(
        hash(ContentId::Blake3, file, None, None, None),
        blake3::hash(b"This is a test filePERSISTENT_CACHE").to_hex().to_string()
    );
}

#[test]
fn host_and_peer_ids() {
    let ip = "10.0.0.7".parse().unwrap();
    assert_eq!(HostId::new(ip, "node", false).as_str(), "10.0.0.7-node");
    assert_eq!(HostId::new("::ffff:10.0.0.7".parse().unwrap(), "node", true).as_str(), "10.0.0.7-node-seed");
    assert_eq!(HostId::new("fe80::1".parse().unwrap(), "node", false).as_str(), "fe80::1-node");
    assert_eq!(
        PeerId::new(ip, "node", u128::MAX, false).as_str(),
        "10.0.0.7-node-ffffffff-ffff-4fff-bfff-ffffffffffff"
    );
    assert_eq!(
        PeerId::new(ip, "node", 0, true).as_str(),
        "10.0.0.7-node-00000000-0000-4000-8000-000000000000-seed"
    );
    let task = TaskId::parse("0123456789abcdef").unwrap();
    assert_eq!(PeerId::held(&HostId::from("h"), &task).as_str(), "h-01234567-held");
}

#[test]
fn default_parameters_are_thirty_different_ones() {
    let mut names = DEFAULT_FILTERED_QUERY_PARAMS.to_vec();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 30);
}
