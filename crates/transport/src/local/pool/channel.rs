//! A pool as a gRPC channel.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{Service, ServiceExt as _};

use super::{Lease, Pool, Purpose};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What generated clients and [`crate::framed::call`] take: every call has a connection of the pool until it has its
/// whole answer, or is dropped.
#[derive(Clone, Debug)]
pub struct PoolChannel {
    over: Over,
    purpose: Purpose,
}

#[derive(Clone, Debug)]
enum Over {
    Pool(Pool),
    One(Channel),
}

impl PoolChannel {
    pub(super) fn pooled(pool: Pool, purpose: Purpose) -> Self {
        Self { over: Over::Pool(pool), purpose }
    }

    /// The same for streams of content.
    #[must_use]
    pub fn for_content(&self) -> Self {
        Self { over: self.over.clone(), purpose: Purpose::Content }
    }
}

/// A connection that all calls share, where there can be no second one.
impl From<Channel> for PoolChannel {
    fn from(channel: Channel) -> Self {
        Self { over: Over::One(channel), purpose: Purpose::Call }
    }
}

impl Service<http::Request<Body>> for PoolChannel {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let pool = match &self.over {
            Over::Pool(pool) => pool.clone(),
            Over::One(channel) => {
                let answer = channel.clone().oneshot(request);
                return Box::pin(async move { answer.await.map_err(Error::from) });
            }
        };
        let purpose = self.purpose;
        Box::pin(async move {
            let mut lease = pool.lease(purpose).await.map_err(Status::from)?;
            match lease.channel().clone().oneshot(request).await {
                Ok(response) => Ok(response.map(|body| Body::new(LeasedBody { body, lease: Some(lease) }))),
                Err(why) => {
                    lease.suspect();
                    Err(why.into())
                }
            }
        })
    }
}

/// An answer and the connection that it comes on.
struct LeasedBody {
    body: Body,
    /// `None` once everything came.
    lease: Option<Lease>,
}

impl http_body::Body for LeasedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(None) => self.lease = None,
            // A reader of gRPC need not look further.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => self.lease = None,
            Poll::Ready(Some(Err(_))) => {
                if let Some(mut lease) = self.lease.take() {
                    lease.suspect();
                }
            }
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
