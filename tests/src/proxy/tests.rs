use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::*;
use crate::Pattern;

const LENGTH: u64 = 1 << 20;

fn pattern() -> Pattern {
    Pattern::new(5, LENGTH)
}

/// Reads to the end of each connection's requests, answering every byte `n` with nothing but the pattern once.
async fn target() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut question = [0; 4];
                if stream.read_exact(&mut question).await.is_ok() {
                    drop(stream.write_all(&question).await);
                    drop(stream.write_all(&pattern().to_vec()).await);
                    drop(stream.read_to_end(&mut Vec::new()).await);
                }
            });
        }
    });
    addr
}

async fn ask(proxy: &Proxy) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    stream
}

/// The answer up to where it ends, and how it ends.
async fn answer(proxy: &Proxy) -> (Vec<u8>, io::Result<()>) {
    let mut stream = ask(proxy).await;
    let mut bytes = vec![0; LENGTH as usize + 4];
    let mut length = 0;
    while length < bytes.len() {
        match stream.read(&mut bytes[length..]).await {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) => {
                bytes.truncate(length);
                return (bytes, Err(error));
            }
        }
    }
    bytes.truncate(length);
    (bytes, Ok(()))
}

fn is_whole(bytes: &[u8]) -> bool {
    bytes.starts_with(b"ping") && pattern().check_reader(&bytes[4..]).is_ok()
}

#[tokio::test]
async fn without_faults_everything_passes() {
    let proxy = Proxy::start(target().await).await.unwrap();
    for _ in 0..2 {
        let (bytes, end) = answer(&proxy).await;
        assert!(end.is_ok() && is_whole(&bytes));
    }
    let counts = proxy.wait_until(|counts| counts.open == 0).await.unwrap();
    let expected = Counts { connections: 2, open: 0, to_target: 8, to_client: 2 * (LENGTH + 4), strikes: 0 };
    assert_eq!(counts, expected);
}

#[tokio::test]
async fn truncation_is_a_clean_end_at_its_offset() {
    let proxy = Proxy::start(target().await).await.unwrap();
    proxy.set(Direction::ToClient, Faults::strike(Strike::Truncate(100_004)));
    let (bytes, end) = answer(&proxy).await;
    end.unwrap();
    assert_eq!(bytes.len(), 100_004);
    pattern().check(0, &bytes[4..]).unwrap();
    assert_eq!(proxy.counts().strikes, 1);
}

#[tokio::test]
async fn a_reset_is_an_error_at_its_offset() {
    let proxy = Proxy::start(target().await).await.unwrap();
    proxy.set(Direction::ToClient, Faults::strike(Strike::Reset(100_004)));
    let (bytes, end) = answer(&proxy).await;
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(bytes.len() <= 100_004, "a reset may overtake what came before it");
    assert_eq!(proxy.counts().to_client, 100_004);
}

#[tokio::test]
async fn one_bit_is_flipped_and_later_connections_are_spared() {
    let proxy = Proxy::start(target().await).await.unwrap();
    let flip = Faults { spare_from: Some(1), ..Faults::strike(Strike::Flip(500_004)) };
    proxy.set(Direction::ToClient, flip);
    let (mut bytes, _) = answer(&proxy).await;
    assert!(!is_whole(&bytes));
    bytes[500_004] ^= 1;
    assert!(is_whole(&bytes));
    assert!(is_whole(&answer(&proxy).await.0));
    assert_eq!(proxy.counts().strikes, 1);
}

#[tokio::test]
async fn the_other_direction_can_be_hit_too() {
    let proxy = Proxy::start(target().await).await.unwrap();
    proxy.set(Direction::ToTarget, Faults::strike(Strike::Flip(0)));
    let (bytes, _) = answer(&proxy).await;
    assert_eq!(&bytes[..4], b"qing");
}

#[tokio::test]
async fn swallowed_bytes_leave_silence() {
    let proxy = Proxy::start(target().await).await.unwrap();
    proxy.set(Direction::ToClient, Faults::strike(Strike::Swallow(1004)));
    let mut stream = ask(&proxy).await;
    let mut bytes = vec![0; 1004];
    stream.read_exact(&mut bytes).await.unwrap();
    proxy.wait_until(|counts| counts.strikes == 1).await.unwrap();
    let mut more = [0];
    let read = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut more)).await;
    assert!(read.is_err(), "neither bytes nor an end: {read:?}");
    assert_eq!(proxy.counts().to_client, 1004);
}

#[tokio::test]
async fn a_pause_holds_and_resuming_lets_go() {
    let proxy = Proxy::start(target().await).await.unwrap();
    proxy.pause();
    let mut stream = ask(&proxy).await;
    proxy.wait_until(|counts| counts.open == 1).await.unwrap();
    let mut bytes = [0; 4];
    let read = tokio::time::timeout(Duration::from_millis(50), stream.read_exact(&mut bytes)).await;
    assert!(read.is_err());
    assert_eq!(proxy.counts().to_target, 0);
    proxy.resume();
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

#[tokio::test]
async fn a_delay_postpones_both_ways() {
    let proxy = Proxy::start(target().await).await.unwrap();
    let start = Instant::now();
    let delay = Duration::from_millis(30);
    proxy.set(Direction::ToTarget, Faults::delay(delay));
    proxy.set(Direction::ToClient, Faults::delay(delay));
    assert!(is_whole(&answer(&proxy).await.0));
    assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_delay_holds_much_and_can_be_taken_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
    proxy.set(Direction::ToTarget, Faults::delay(Duration::from_secs(3600)));
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    // More than the sockets hold: it is written to the end only if the proxy reads on while nothing leaves it.
    let long = Pattern::new(6, 12 << 20);
    stream.write_all(&long.to_vec()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(proxy.counts().to_target, 0);
    let (mut accepted, _) = listener.accept().await.unwrap();
    proxy.heal();
    let mut bytes = Vec::new();
    accepted.read_to_end(&mut bytes).await.unwrap();
    long.check_reader(&bytes[..]).unwrap();
}

#[tokio::test]
async fn a_rate_limits() {
    let proxy = Proxy::start(target().await).await.unwrap();
    let start = Instant::now();
    proxy.set(Direction::ToClient, Faults::rate(10 << 20));
    assert!(is_whole(&answer(&proxy).await.0));
    assert!(start.elapsed() >= Duration::from_millis(90), "{:?}", start.elapsed());
}

#[tokio::test]
async fn live_connections_are_reset_and_new_ones_refused() {
    let proxy = Proxy::start(target().await).await.unwrap();
    proxy.set(Direction::ToClient, Faults::strike(Strike::Swallow(4)));
    let mut stream = ask(&proxy).await;
    stream.read_exact(&mut [0; 4]).await.unwrap();
    proxy.reset_all();
    assert_eq!(stream.read(&mut [0; 4]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    proxy.refuse(true);
    let mut refused = TcpStream::connect(proxy.addr()).await.unwrap();
    assert_eq!(refused.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    proxy.heal();
    assert!(is_whole(&answer(&proxy).await.0));
}

#[tokio::test]
async fn a_reset_of_the_target_reaches_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
    let mut stream = ask(&proxy).await;
    let (mut accepted, _) = listener.accept().await.unwrap();
    accepted.read_exact(&mut [0; 4]).await.unwrap();
    accepted.set_zero_linger().unwrap();
    drop(accepted);
    assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    proxy.wait_until(|counts| counts.open == 0).await.unwrap();
}

#[tokio::test]
async fn a_half_close_passes_through() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
    let mut stream = ask(&proxy).await;
    stream.shutdown().await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    let mut question = Vec::new();
    accepted.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"ping");
    accepted.write_all(b"late answer").await.unwrap();
    drop(accepted);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"late answer");
}

#[tokio::test]
async fn dropping_the_proxy_ends_it() {
    let proxy = Proxy::start(target().await).await.unwrap();
    proxy.set(Direction::ToClient, Faults::strike(Strike::Swallow(4)));
    let mut stream = ask(&proxy).await;
    stream.read_exact(&mut [0; 4]).await.unwrap();
    let shared = Arc::clone(&proxy.shared);
    drop(proxy);
    wait::until(&shared.counts, |counts| counts.open == 0).await.unwrap();
    assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
}
