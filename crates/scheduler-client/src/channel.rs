//! Connections to a scheduler.

use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::{ClientError, TlsFiles};

/// A connection must stand within this.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);
/// A scheduler must begin to answer within this, for unary calls and for the headers of streams alike.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);
/// Bytes sent must be acknowledged within this, or the connection is dead. `Hold` sends a beat every 2 s, so this is
/// also how soon a scheduler of ours behind a broken network is noticed.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// Go servers close connections that ping more often than every 5 minutes.
const PING: Duration = Duration::from_secs(300);
const PONG: Duration = Duration::from_secs(20);

/// TLS material, read once.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    ca: Option<Certificate>,
    identity: Option<Identity>,
}

impl Tls {
    /// What the system trusts, and nothing to show.
    pub(crate) fn system() -> Self {
        Self { ca: None, identity: None }
    }

    pub(crate) fn read(files: &TlsFiles) -> Result<Self, ClientError> {
        let read = |file: &std::path::Path| {
            std::fs::read(file)
                .map_err(|error| ClientError::TlsFile { file: file.to_owned(), why: error.to_string() })
        };
        let ca = files.ca.as_deref().map(read).transpose()?.map(Certificate::from_pem);
        let identity = match &files.identity {
            Some((certificate, key)) => Some(Identity::from_pem(read(certificate)?, read(key)?)),
            None => None,
        };
        Ok(Self { ca, identity })
    }

    fn config(&self, name: &str) -> ClientTlsConfig {
        let mut config = ClientTlsConfig::new().domain_name(name);
        config = match &self.ca {
            Some(ca) => config.ca_certificate(ca.clone()),
            None => config.with_native_roots(),
        };
        match &self.identity {
            Some(identity) => config.identity(identity.clone()),
            None => config,
        }
    }
}

/// The longest answer, in bytes: the CRCs of 2^22 pieces take 16 MiB, the hosts of a large cluster less. Room for all that
/// a message announces is made before the rest of it has come.
pub(crate) const MAX_ANSWER: usize = 64 << 20;

/// A channel that connects when first used, and again whenever it broke. `name` is what a TLS certificate must say.
pub(crate) fn channel(address: SocketAddr, name: &str, tls: Option<&Tls>) -> Result<Channel, ClientError> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    lazy(&format!("{scheme}://{address}"), name, tls)
}

/// [`channel`] to a URI of scheme http or https.
pub(crate) fn lazy(uri: &str, name: &str, tls: Option<&Tls>) -> Result<Channel, ClientError> {
    let refused = |error: &dyn std::error::Error| {
        let why = match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        };
        ClientError::Endpoint { target: uri.to_owned(), why }
    };
    let mut endpoint = Endpoint::from_shared(uri.to_owned())
        .map_err(|error| refused(&error))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.config(name)).map_err(|error| refused(&error))?;
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(Duration::from_secs(3600)));
    #[cfg(target_os = "linux")]
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    Ok(endpoint.connect_with_connector_lazy(connector))
}
