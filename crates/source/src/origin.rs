//! Sending a GET and following where it leads.

use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{env, fmt};

use damselfly_core::redact;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, redirect};
use tokio::time;
use tracing::debug;
use url::Url;

use crate::answer::{self, Asked, Verdict};
use crate::error::causes;
use crate::{Options, Proxies, Request, Response, SCHEMES, SourceError, headers, tls};

/// Reads HTTP(S) origins. Clones share one pool of kept connections.
#[derive(Clone)]
pub struct Origin {
    client: Client,
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    extra: HeaderMap,
    /// Why no root certificate could be loaded.
    rootless: Option<String>,
}

impl Origin {
    /// Builds the client: reads the proxies' environment variables and the system's root certificates.
    ///
    /// # Errors
    /// [`ErrorKind::Unusable`](crate::ErrorKind) when an extra header or an extra root certificate cannot be used.
    pub fn new(options: Options) -> Result<Self, SourceError> {
        let mut extra = header_map(&options.extra_headers)?;
        let (config, rootless) = tls::client_config(&options)?;
        if let Some(why) = &rootless {
            debug!(why, "no root certificates, https origins will be refused");
        }
        if !extra.contains_key(header::USER_AGENT) {
            extra.insert(header::USER_AGENT, header_value("User-Agent", &options.user_agent)?);
        }
        let mut builder = Client::builder()
            .tls_backend_preconfigured(config)
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(options.connect_timeout)
            .pool_idle_timeout(options.idle_timeout)
            .pool_max_idle_per_host(options.max_idle)
            .http2_initial_stream_window_size(options.stream_window)
            .http2_initial_connection_window_size(options.connection_window);
        if options.proxies == Proxies::Direct || is_proxied_nowhere() {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| {
            SourceError::unusable(format!("cannot set up the HTTP client: {}", causes(&error)))
        })?;
        Ok(Self { client, shared: Arc::new(Shared { options, extra, rootless }) })
    }

    /// Sends the request, follows redirects, and returns once the head of the answer is here and makes sense.
    ///
    /// A ranged request to an origin without ranges gives the whole content from byte 0 and says `ranges: false`. A
    /// ranged answer begins at the first byte asked for; it may end before the last one, as HTTP allows:
    /// [`Response::content_range`] tells. Dropping the future or the response ends the request.
    ///
    /// # Errors
    /// Those of [`ErrorKind`](crate::ErrorKind); none is tried again in here.
    pub async fn get(&self, request: &Request<'_>) -> Result<Response, SourceError> {
        let mut asked = Asked::from(request);
        loop {
            let (url, response) = self.follow(request, asked.range).await?;
            let status = response.status();
            match answer::judge(asked, status, response.headers(), SystemTime::now()) {
                Ok(Verdict::AskWhole) => {
                    drain(response).await;
                    asked.range = None;
                }
                Ok(Verdict::Empty) => {
                    let headers = headers::public(response.headers());
                    let validator = headers::validator(response.headers());
                    drain(response).await;
                    return Ok(Response::empty(status.as_u16(), validator, headers));
                }
                Ok(Verdict::Body(mut body)) => {
                    // What a range of this origin gets was seen already, if it was not asked for this time.
                    body.ranges &= asked.range.is_some() || request.range.is_none();
                    return Ok(Response::new(url, response, body, self.shared.options.stall_timeout));
                }
                Err(objection) => {
                    let headers = headers::public(response.headers());
                    drain(response).await;
                    let message = format!("cannot read {}: {}", redact::url(url.as_str()), objection.why);
                    return Err(SourceError::new(objection.kind, message).answered(status.as_u16(), headers));
                }
            }
        }
    }

    /// Sends one GET and follows redirects to the first answer that is none.
    async fn follow(
        &self,
        request: &Request<'_>,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<(Url, reqwest::Response), SourceError> {
        let mut headers = self.headers_for(request, range)?;
        let mut url = request.url.clone();
        for _ in 0..=self.shared.options.max_redirects {
            let response = self.send(&url, &mut headers).await?;
            if !is_redirect(response.status().as_u16()) {
                return Ok((url, response));
            }
            let Some(location) = headers::text(response.headers(), header::LOCATION) else {
                return Ok((url, response));
            };
            let next = url.join(location).map_err(|error| {
                SourceError::unusable(format!(
                    "cannot read {}: its redirect leads nowhere: {error}",
                    redact::url(url.as_str())
                ))
            })?;
            debug!(from = redact::url(url.as_str()), to = redact::url(next.as_str()), "origin redirects");
            if origin_of(&next) != origin_of(&url) {
                let bound: Vec<HeaderName> =
                    headers.keys().filter(|name| headers::is_bound_to_origin(name)).cloned().collect();
                for name in bound {
                    headers.remove(name);
                }
            }
            drain(response).await;
            url = next;
        }
        Err(SourceError::unusable(format!(
            "cannot read {}: more than {} redirects; the last one led to {}",
            redact::url(request.url.as_str()),
            self.shared.options.max_redirects,
            redact::url(url.as_str())
        )))
    }

    /// The headers of the first request: the user's, then what is missing of the configured ones, then ours.
    fn headers_for(
        &self,
        request: &Request<'_>,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<HeaderMap, SourceError> {
        let mut headers = header_map(&request.headers)?;
        for (name, value) in &self.shared.extra {
            if !headers.contains_key(name) {
                headers.insert(name, value.clone());
            }
        }
        if !headers.contains_key(header::ACCEPT) {
            headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        }
        // Ranges of a compressed form could not be put together with those of the plain one.
        if !headers.contains_key(header::ACCEPT_ENCODING) {
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Some((first, last)) = range {
            let last = last.map(|last| last.to_string()).unwrap_or_default();
            headers.insert(header::RANGE, header_value("Range", &format!("bytes={first}-{last}"))?);
        }
        Ok(headers)
    }

    /// One hop. Keeps in `headers` the `Authorization` that the URL's user and password make.
    async fn send(&self, url: &Url, headers: &mut HeaderMap) -> Result<reqwest::Response, SourceError> {
        let shown = || redact::url(url.as_str());
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SourceError::unusable(format!(
                "cannot read {}: the scheme {:?} is not supported; use one of: {SCHEMES}",
                shown(),
                url.scheme()
            )));
        }
        if let Some(why) = self.shared.rootless.as_ref().filter(|_| url.scheme() == "https")
            && self.shared.options.extra_roots.is_empty()
        {
            return Err(SourceError::unusable(format!(
                "cannot read {}: {why}; install the system's root certificates (ca-certificates) or name a file \
                 with SSL_CERT_FILE",
                shown()
            )));
        }
        let unusable = |error: reqwest::Error| {
            SourceError::unusable(format!("cannot ask {}: {}", shown(), causes(&error)))
        };
        let request = self.client.get(url.clone()).headers(headers.clone()).build().map_err(unusable)?;
        if let Some(value) = request.headers().get(header::AUTHORIZATION) {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        let deadline = self.shared.options.head_timeout;
        match time::timeout(deadline, self.client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_builder() => Err(unusable(error)),
            Ok(Err(error)) => Err(self.unreachable(&shown(), &error)),
            Err(_) => {
                Err(SourceError::retry(format!("cannot read {}: no answer within {deadline:?}", shown())))
            }
        }
    }

    /// What an error before the answer's head means.
    fn unreachable(&self, shown: &str, error: &reqwest::Error) -> SourceError {
        if let Some(why) = tls::distrust(error) {
            return SourceError::unusable(format!(
                "cannot read {shown}: its certificate is not trusted: {why}; add the issuer to the system's roots or \
                 name it with SSL_CERT_FILE"
            ));
        }
        if error.is_connect() && error.is_timeout() {
            let limit = self.shared.options.connect_timeout;
            return SourceError::retry(format!("cannot read {shown}: no connection within {limit:?}"));
        }
        SourceError::retry(format!("cannot read {shown}: {}", causes(error)))
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// Whether `NO_PROXY` names every host. The HTTP client understands the star for names, but not for addresses.
fn is_proxied_nowhere() -> bool {
    let list = env::var("NO_PROXY").or_else(|_| env::var("no_proxy")).unwrap_or_default();
    list.split(',').any(|host| host.trim() == "*")
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// What must be equal for two URLs to share credentials.
fn origin_of(url: &Url) -> (&str, Option<&str>, Option<u16>) {
    (url.scheme(), url.host_str(), url.port_or_known_default())
}

/// Longest body that is read only to keep its connection, in bytes.
const WORTH_READING: u64 = 64 << 10;
/// Longest wait for such a body.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads a short body to its end, so that its connection can serve the next request. A long one is dropped.
async fn drain(mut response: reqwest::Response) {
    let short = headers::content_length(response.headers()).is_some_and(|length| length <= WORTH_READING);
    if short {
        let to_end = async { while let Ok(Some(_)) = response.chunk().await {} };
        // Too slow is no worse than too long: the connection is closed instead of kept.
        _ = time::timeout(DRAIN_TIMEOUT, to_end).await;
    }
}

/// The usable ones of `pairs`. Errors name the header and never show its value.
fn header_map(pairs: &[(String, String)]) -> Result<HeaderMap, SourceError> {
    let mut map = HeaderMap::with_capacity(pairs.len() + 4);
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| {
            SourceError::unusable("a request header's name is not valid; expected Name: value")
        })?;
        if !headers::is_reserved(&name) {
            let value = header_value(name.as_str(), value)?;
            map.append(name, value);
        }
    }
    Ok(map)
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, SourceError> {
    let mut value = HeaderValue::from_str(value.trim()).map_err(|_| {
        SourceError::unusable(format!(
            "the value of request header {name} has characters that HTTP does not allow"
        ))
    })?;
    // Keeps it out of debug output and out of HTTP/2's compression tables.
    value.set_sensitive(headers::is_secret_name(name));
    Ok(value)
}
