//! One HTTP/1 connection with bounds on time and size, for the admin listener and the control socket.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Timeout for one request head, and for the wait between two requests. Shorter in tests, which wait for it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// Timeout for a whole connection; it ends a client that reads nothing.
const LIFETIME: Duration = Duration::from_secs(300);
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Pause after a failed accept: if descriptors have run out, an immediate retry does not help.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) type HttpAnswer = Response<Full<Bytes>>;

/// Serves requests until the peer leaves or a bound is reached. The handler must read request bodies.
pub(crate) async fn connection<I, F, Fut>(io: I, handler: F)
where
    I: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = HttpAnswer>,
{
    let service = service_fn(|request| {
        let answer = handler(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let serving = http1::Builder::new()
        // Without the timer the timeout would silently not apply.
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(io), service);
    // How the connection ended does not matter.
    let _ = tokio::time::timeout(LIFETIME, serving).await;
}

pub(crate) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> HttpAnswer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Builds an answer outside the threads that serve flows, since it takes milliseconds when many flows are live.
pub(crate) async fn blocking(make: impl FnOnce() -> HttpAnswer + Send + 'static) -> HttpAnswer {
    tokio::task::spawn_blocking(make)
        .await
        .unwrap_or_else(|_| answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", "failed\n"))
}
