//! What TCP alone achieves on a link: iperf3 with eight connections.

use std::time::Duration;

use crate::place::Place;
use crate::process::{Running, until};
use crate::{BenchError, io};

const PORT: u16 = 5201;
const PATIENCE: Duration = Duration::from_secs(10);

/// A server that clients on other hosts receive from.
#[derive(Debug)]
pub struct Sender {
    place: Place,
    _server: Running,
}

impl Sender {
    /// Starts it.
    ///
    /// # Errors
    /// When there is no iperf3.
    pub async fn start(place: &Place) -> Result<Self, BenchError> {
        let server =
            Running::start(place.command("iperf3").arg("-s").arg("-B").arg(place.address.to_string()))?;
        until(PATIENCE, async || place.answers(PORT).await).await?;
        Ok(Self { place: place.clone(), _server: server })
    }

    /// Seconds that `bytes` take to arrive at another host over eight connections, connecting them excluded.
    ///
    /// # Errors
    /// When the client fails.
    pub fn seconds(&self, receiver: &Place, bytes: u64, congestion: &str) -> Result<f64, BenchError> {
        let mut client = receiver.command("iperf3");
        client.arg("-c").arg(self.place.address.to_string()).args(["-R", "-J", "-P", "8", "-C", congestion]);
        let output = client.arg("-n").arg(bytes.to_string()).output().map_err(io("start iperf3"))?;
        let unreadable =
            || BenchError::Failed(format!("iperf3: {}", String::from_utf8_lossy(&output.stdout)));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|_| unreadable())?;
        report["end"]["sum_received"]["seconds"].as_f64().ok_or_else(unreadable)
    }
}
