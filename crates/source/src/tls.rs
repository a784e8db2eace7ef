//! How HTTPS origins are trusted.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

use crate::{Options, SourceError};

/// A client configuration with ring's algorithms and the system's roots (`SSL_CERT_FILE` and `SSL_CERT_DIR` count).
///
/// The algorithms belong to this configuration alone: a process-wide default would be a global that several daemons in
/// one process share. The text is why no root could be loaded: plain HTTP must work in an image without certificates,
/// so that is no error before an HTTPS origin is asked.
pub(crate) fn client_config(options: &Options) -> Result<(ClientConfig, Option<String>), SourceError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| SourceError::unusable(format!("cannot set up TLS: {error}")))?;
    let extra = || options.extra_roots.iter().map(|der| CertificateDer::from(der.clone()));
    let mut readable = RootCertStore::empty();
    for (index, root) in extra().enumerate() {
        readable.add(root).map_err(|error| {
            SourceError::unusable(format!("extra root certificate {index} is not usable: {error}"))
        })?;
    }
    let (builder, missing) = match Verifier::new_with_extra_roots(extra(), provider) {
        Ok(verifier) => (builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)), None),
        Err(error) => (builder.with_root_certificates(readable), Some(error.to_string())),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((config, missing))
}

/// Why the other side's certificate was refused, if that is what `error` comes from: repeating would not help.
pub(crate) fn distrust(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(rustls::Error::InvalidCertificate(why)) = cause.downcast_ref() {
            return Some(why.to_string());
        }
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // An I/O error does not list what it carries among its sources.
            Some(carried) => Some(carried),
            None => cause.source(),
        };
    }
    None
}
