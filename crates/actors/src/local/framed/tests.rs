use axum::Router;
use axum::routing::post;
use damselfly_transport::BufferPool;
use damselfly_transport::local::Caller;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::grpc::{self, Peer};

/// Answers with a file of 64 MiB to whoever asks.
async fn endless(
    State((buffers, file)): State<(Buffers, Arc<std::fs::File>)>,
    request: Request<axum::body::Body>,
) -> Response<Body> {
    let client = Client {
        host: "host".to_owned(),
        uid: 1,
        buffers: buffers.of(1),
        patience: Duration::from_millis(300),
        hang_up: request.extensions().get().cloned(),
    };
    let (mut writer, response) = framed::response(AHEAD);
    tokio::spawn(async move {
        let content = Content::File { file, offset: 0, length: 64 << 20 };
        let sent = chunks(&client, &content, &mut writer).await;
        end(writer, sent);
    });
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_gives_back_what_it_holds() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    let pool = BufferPool::new(4 << 20, BufferPool::DEFAULT_SIZE);
    let router = Router::new()
        .route("/x/Read", post(endless))
        .with_state((Buffers::new(pool.clone()), Arc::new(file)));
    let (client, server) = tokio::io::duplex(1 << 16);
    let peer = Peer::Local(Arc::new(Caller::this_process()));
    let served = tokio::spawn(grpc::serve(server, peer, router, grpc::LOCAL, CancellationToken::new()));
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1 << 16);
    let (mut sender, connection) = builder.handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://daemon/x/Read").body(axum::body::Body::empty()).unwrap();
    // Held unread.
    let _response = sender.send_request(request).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), served).await.expect("its connection stays").unwrap();
    // The last of its tasks may still be on the way out.
    let all = async {
        let mut all = Vec::new();
        while all.len() < pool.capacity() {
            all.push(pool.acquire().await);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("its buffers are held");
}
