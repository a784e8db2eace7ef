//! Telling a scheduler that this host is there, and that it goes.

use std::time::Duration;

use damselfly_api::common::v2::Host;
use damselfly_api::scheduler::v2::{AnnounceHostRequest, DeleteHostRequest};

use crate::ClientError;
use crate::handle::{timed, unary};
use crate::member::Member;

/// Says what this host is now.
pub trait HostProvider: Send + Sync + 'static {
    /// The host with fresh figures, our fields 1000 to 1002 included. Called on the runtime: it must not block longer
    /// than reading a few files of /proc takes.
    fn host(&self) -> Host;
}

/// Announces the host once. `interval` is when the next announcement follows.
pub(crate) async fn announce_host(
    member: &Member,
    host: Host,
    interval: Duration,
) -> Result<(), ClientError> {
    let request =
        AnnounceHostRequest { host: Some(host), interval: prost_types::Duration::try_from(interval).ok() };
    let mut client = member.control_client();
    unary("AnnounceHost", member.address, client.announce_host(timed(request))).await
}

/// Takes the host off the scheduler's list.
pub(crate) async fn delete_host(member: &Member, host_id: String) -> Result<(), ClientError> {
    let mut client = member.control_client();
    let request = DeleteHostRequest { host_id };
    unary("DeleteHost", member.address, client.delete_host(timed(request))).await
}
