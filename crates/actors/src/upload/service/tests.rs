use damselfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use tonic::Code;

use super::*;
use crate::testing::{daemon, empty, hold, key};

#[test]
fn only_schedulers_that_order_by_calls_may() {
    let scheduler = |address: &str| SchedulerInfo {
        address: address.parse().unwrap(),
        ours: false,
        healthy: true,
        error: None,
    };
    let all = [
        scheduler("10.0.0.1:8002"),
        scheduler("[::ffff:10.0.0.2]:8002"),
        SchedulerInfo { ours: true, ..scheduler("10.0.0.3:8002") },
        SchedulerInfo { healthy: false, ..scheduler("10.0.0.4:8002") },
        SchedulerInfo { ours: true, ..scheduler("127.0.0.1:8002") },
    ];
    for (from, may) in [
        ("10.0.0.1", true),
        ("::ffff:10.0.0.1", true),
        ("10.0.0.2", true),
        ("10.0.0.3", false),
        ("10.0.0.4", false),
        ("10.0.0.5", false),
        ("127.0.0.1", false),
    ] {
        assert_eq!(may_order(from.parse().unwrap(), &all), may, "{from}");
    }
    assert!(may_order([127, 0, 0, 1].into(), &[scheduler("127.0.0.1:8002")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_delete_nothing_over_the_network() {
    let (_home, daemon) = daemon("").await;
    let key = key('a');
    hold(&empty(&daemon.engine().store, &key, 1, None), 0);
    let address = format!("http://{}", daemon.ports().grpc);
    let mut client = DfdaemonUploadClient::connect(address).await.unwrap();
    let delete = dfdaemon::DeleteTaskRequest { task_id: key.id.to_string(), ..Default::default() };
    let refused = client.delete_task(delete).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(daemon.engine().store.get(&key).is_some());
    daemon.kill().await;
}

/// Five bytes announce a message of nearly 4 GiB: for it no room may be made.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_not_taken_at_its_word() {
    use http_body_util::{BodyExt as _, Full};
    use tower::ServiceExt as _;

    let (_home, daemon) = daemon("").await;
    let address = format!("http://{}", daemon.ports().grpc);
    let channel = tonic::transport::Endpoint::new(address).unwrap().connect().await.unwrap();
    let announced = bytes::Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xf0]);
    let request = http::Request::post("/dfdaemon.v2.DfdaemonUpload/SyncPieces")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Full::new(announced)))
        .unwrap();
    let response = channel.oneshot(request).await.unwrap();
    let status = Status::from_header_map(response.headers()).expect("refused at once");
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    drop(response.into_body().collect().await);
    daemon.kill().await;
}
