use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// An answer as bytes.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// One request on a connection of its own. Reads until the server closes or the body is complete.
async fn request(origin: &OriginServer, method: &str, blob: &Blob, headers: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(origin.addr()).await.unwrap();
    ask(&mut stream, method, &blob.url, headers).await
}

async fn get(origin: &OriginServer, blob: &Blob, headers: &str) -> Answer {
    request(origin, "GET", blob, headers).await.unwrap()
}

async fn ask(stream: &mut TcpStream, method: &str, url: &str, headers: &str) -> Option<Answer> {
    let target = &url["http://".len()..];
    let target = &target[target.find('/').unwrap()..];
    let text = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8(bytes).unwrap();
    let mut answer = Answer { status: head[9..12].parse().unwrap(), head, body: Vec::new() };
    let length = answer.header("content-length").map(|length| length.parse::<usize>().unwrap());
    let length = if method == "HEAD" { Some(0) } else { length };
    let done = |body: &[u8]| match length {
        Some(length) => body.len() >= length,
        None => body.ends_with(b"0\r\n\r\n"),
    };
    while !done(&body) {
        match stream.read_buf(&mut body).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    if answer.header("transfer-encoding") == Some("chunked") {
        body = unchunked(&body);
    }
    answer.body = body;
    Some(answer)
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = bytes.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
        let Some(chunk) = bytes.get(at + 2..at + 2 + length) else { break };
        body.extend_from_slice(chunk);
        bytes = &bytes[(at + 2 + length + 2).min(bytes.len())..];
    }
    body
}

#[tokio::test]
async fn content_is_served_whole_and_in_ranges() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(300_001, 4);
    let mut stream = TcpStream::connect(origin.addr()).await.unwrap();
    let whole = ask(&mut stream, "GET", &blob.url, "").await.unwrap();
    assert_eq!((whole.status, whole.header("etag")), (200, Some("\"v1\"")));
    blob.pattern.check_reader(&whole.body[..]).unwrap();
    for (range, first, length) in
        [("100000-199999", 100_000, 100_000), ("300000-400000", 300_000, 1), ("-7", 299_994, 7)]
    {
        let part = ask(&mut stream, "GET", &blob.url, &format!("Range: bytes={range}\r\n")).await.unwrap();
        assert_eq!(part.status, 206);
        let last = first + length - 1;
        assert_eq!(part.header("content-range"), Some(format!("bytes {first}-{last}/300001").as_str()));
        assert_eq!(part.body.len() as u64, length);
        blob.pattern.check(first, &part.body).unwrap();
    }
    let past = ask(&mut stream, "GET", &blob.url, "Range: bytes=300001-\r\n").await.unwrap();
    assert_eq!((past.status, past.header("content-range")), (416, Some("bytes */300001")));

    let sent = 300_001 + 100_000 + 1 + 7;
    let counts = Counts { connections: 0, open: 0, requests: 5, not_get: 0, refused: 1, body_bytes: sent };
    assert_eq!(origin.counts(&blob), counts);
    assert_eq!(origin.total(), Counts { connections: 1, open: 1, ..counts });
    drop(stream);
    origin.wait_until_total(|total| total.open == 0).await.unwrap();
    let log = origin.log();
    assert_eq!((log.len(), log[1].status, log[1].header("range")), (5, 206, Some("bytes=100000-199999")));
}

#[tokio::test]
async fn paths_and_seeds_are_apart_and_other_parameters_are_not() {
    let origin = OriginServer::start().await.unwrap();
    let blobs = [origin.blob(1000, 1), origin.blob(1000, 2), origin.named_blob(1000, 1, "model.bin")];
    origin.set(&blobs[1], Behaviour { status: Some(404), ..Behaviour::default() });
    assert_eq!(get(&origin, &blobs[0], "").await.status, 200);
    assert_eq!(get(&origin, &blobs[1], "").await.status, 404);
    assert_eq!(get(&origin, &blobs[2], "").await.body, blobs[0].pattern.to_vec());
    let signed = Blob { url: format!("{}&signature=abc", blobs[0].url), ..blobs[0].clone() };
    assert_eq!(get(&origin, &signed, "").await.body, blobs[0].pattern.to_vec());
    assert_eq!(blobs.each_ref().map(|blob| origin.counts(blob).requests), [2, 1, 1]);
    let unknown = Blob { url: format!("http://{}/other", origin.addr()), ..signed };
    assert_eq!(get(&origin, &unknown, "").await.status, 404);
    assert_eq!(origin.total().requests, 5);
}

#[tokio::test]
async fn ranges_and_length_can_be_missing() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(200_000, 1);
    origin.set(&blob, Behaviour::without_ranges());
    let answer = get(&origin, &blob, "Range: bytes=5-9\r\n").await;
    assert_eq!((answer.status, answer.header("accept-ranges")), (200, None));
    assert_eq!(answer.body, blob.pattern.to_vec());
    origin.set(&blob, Behaviour::chunked());
    let answer = get(&origin, &blob, "Range: bytes=5-9\r\n").await;
    assert_eq!((answer.status, answer.header("content-length")), (200, None));
    assert_eq!(answer.body, blob.pattern.to_vec());
    assert_eq!(origin.counts(&blob).body_bytes, 400_000, "framing does not count");

    let empty = origin.blob(0, 1);
    assert_eq!(get(&origin, &empty, "").await.body, b"");
    assert_eq!(get(&origin, &empty, "Range: bytes=0-9\r\n").await.header("content-range"), Some("bytes */0"));
}

#[tokio::test]
async fn refusals_of_every_kind() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(10, 1);
    origin.set(&blob, Behaviour::requiring("X-Token", "right"));
    assert_eq!(get(&origin, &blob, "").await.status, 401);
    assert_eq!(get(&origin, &blob, "x-token: wrong\r\n").await.status, 401);
    assert_eq!(get(&origin, &blob, "x-token: right\r\n").await.status, 200);

    origin.set(&blob, Behaviour { presigned: true, ..Behaviour::default() });
    assert_eq!(request(&origin, "HEAD", &blob, "").await.unwrap().status, 403);
    assert_eq!(get(&origin, &blob, "").await.status, 200);
    origin.set(&blob, Behaviour::default());
    assert_eq!(request(&origin, "HEAD", &blob, "").await.unwrap().header("content-length"), Some("10"));
    assert_eq!(request(&origin, "POST", &blob, "").await.unwrap().status, 405);
    assert_eq!(origin.counts(&blob).not_get, 3);

    origin.set(&blob, Behaviour { redirect: Some("/elsewhere".to_owned()), ..Behaviour::default() });
    let answer = get(&origin, &blob, "").await;
    assert_eq!((answer.status, answer.header("location")), (307, Some("/elsewhere")));

    let other = origin.blob(10, 2);
    origin.set(&other, Behaviour::busy(2));
    origin.modify(&other, |behaviour| {
        behaviour.trouble.as_mut().unwrap().retry_after = Some(Duration::from_secs(3));
    });
    for expected in [503, 503, 200] {
        let answer = get(&origin, &other, "").await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (expected, (expected == 503).then_some("3"))
        );
    }
}

#[tokio::test]
async fn a_new_version_has_other_bytes_and_another_etag() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(1000, 1);
    origin.set(&blob, Behaviour { content_length: Some(900), ..Behaviour::version(2) });
    let answer = get(&origin, &blob, "").await;
    assert_eq!(answer.header("etag"), Some("\"seed 2\""));
    Pattern::new(2, 900).check_reader(&answer.body[..]).unwrap();
}

#[tokio::test]
async fn responses_break_off_and_paths_die() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(1_000_000, 1);
    origin.set(&blob, Behaviour { cut_after: Some(123_456), ..Behaviour::default() });
    for _ in 0..2 {
        let answer = get(&origin, &blob, "").await;
        assert_eq!(answer.header("content-length"), Some("1000000"));
        assert_eq!(answer.body.len(), 123_456);
        blob.pattern.check(0, &answer.body).unwrap();
    }
    origin.set(&blob, Behaviour { die_after: Some(500_000), ..Behaviour::default() });
    assert_eq!(get(&origin, &blob, "").await.body.len(), 500_000 - 2 * 123_456);
    assert!(request(&origin, "GET", &blob, "").await.is_none(), "dead");
    assert_eq!(origin.counts(&blob).body_bytes, 500_000);
    assert_eq!(origin.log().last().unwrap().status, 0);
    origin.set(&blob, Behaviour::default());
    assert_eq!(get(&origin, &blob, "").await.body.len(), 1_000_000);
}

#[tokio::test]
async fn a_gate_holds_heads_and_bodies() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(200_000, 1);
    let gate = Gate::closed();
    origin.set(&blob, Behaviour::held_by(&gate));
    let (first, second, ()) = tokio::join!(get(&origin, &blob, ""), get(&origin, &blob, ""), async {
        gate.holds(2).await.unwrap();
        assert_eq!(origin.counts(&blob), Counts { requests: 2, ..Counts::default() });
        assert_eq!(origin.log(), []);
        gate.open();
    });
    assert_eq!((first.body.len(), second.body.len()), (200_000, 200_000));

    gate.close();
    origin.set(&blob, Behaviour { gate: Some((150_000, gate.clone())), ..Behaviour::default() });
    let (third, ()) = tokio::join!(get(&origin, &blob, ""), async {
        gate.holds(1).await.unwrap();
        assert_eq!(origin.counts(&blob).body_bytes, 550_000);
        gate.open();
    });
    blob.pattern.check_reader(&third.body[..]).unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_is_held_no_longer() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(10, 1);
    let gate = Gate::closed();
    origin.set(&blob, Behaviour::held_by(&gate));
    tokio::select! {
        _ = get(&origin, &blob, "") => panic!("the gate is closed"),
        held = gate.holds(1) => held.unwrap(),
    }
    gate.holds(0).await.unwrap();
    origin.wait_until_total(|total| total.open == 0).await.unwrap();
    assert_eq!(origin.log(), []);
}

#[tokio::test]
async fn what_was_decided_while_a_response_was_held_counts() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(10, 1);
    let gate = Gate::closed();
    origin.set(&blob, Behaviour::held_by(&gate));
    let (answer, ()) = tokio::join!(get(&origin, &blob, ""), async {
        gate.holds(1).await.unwrap();
        origin.set(&blob, Behaviour { status: Some(410), ..Behaviour::default() });
        gate.open();
    });
    assert_eq!(answer.status, 410);
}

#[tokio::test]
async fn a_rate_is_shared_by_the_responses_of_a_path() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(50_000, 1);
    origin.set(&blob, Behaviour { rate: Some(1_000_000), ..Behaviour::default() });
    let start = tokio::time::Instant::now();
    let (first, second) = tokio::join!(get(&origin, &blob, ""), get(&origin, &blob, ""));
    assert!(start.elapsed() >= Duration::from_millis(95), "{:?}", start.elapsed());
    blob.pattern.check_reader(&first.body[..]).unwrap();
    blob.pattern.check_reader(&second.body[..]).unwrap();
}

#[tokio::test]
async fn waiting_for_bytes_needs_no_polling() {
    let origin = OriginServer::start().await.unwrap();
    let blob = origin.blob(5_000_000, 1);
    let (answer, counts) = tokio::join!(
        get(&origin, &blob, ""),
        origin.wait_until(&blob, |counts| counts.body_bytes >= 2_500_000),
    );
    assert!((2_500_000..=5_000_000).contains(&counts.unwrap().body_bytes));
    assert_eq!(answer.body.len(), 5_000_000);
}

#[tokio::test]
async fn an_origin_dies_with_its_connections_and_comes_back_at_its_address() {
    let origin = OriginServer::start().await.unwrap();
    let (addr, blob) = (origin.addr(), origin.blob(1000, 1));
    let gate = Gate::closed();
    origin.set(&blob, Behaviour { gate: Some((500, gate.clone())), ..Behaviour::default() });
    let shared = Arc::clone(&origin.shared);
    let (answer, ()) = tokio::join!(get_at(addr, &blob), async {
        gate.holds(1).await.unwrap();
        drop(origin);
    });
    assert_eq!(answer.unwrap().body.len(), 500);
    wait::until(&shared.total, |total| total.open == 0).await.unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
    let again = OriginServer::start_at(addr).await.unwrap();
    assert_eq!(get(&again, &blob, "").await.body.len(), 1000);
}

async fn get_at(addr: SocketAddr, blob: &Blob) -> Option<Answer> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    ask(&mut stream, "GET", &blob.url, "").await
}
