//! The admin listener: read-only HTTP for Prometheus, for supervisors and for the operator's browser. It cannot
//! change anything.
//!
//! It is for this machine and for Prometheus, never for guests; the firewall and the loopback address ensure
//! that. The Host check prevents DNS rebinding: a page in the operator's browser that calls itself `evil.test`
//! must not read this data.

pub(crate) mod http_connection;
mod page;

use crate::account::{Account, Sums};
use crate::relay::{GuestStream, close};
use crate::target::{Host, Target};
use crate::tls::{self, Complaints, FailedHandshake, Socket};
use http_connection::{HttpAnswer, answer};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Version};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections served at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns whether this is the name of a declared guest.
pub type IsGuest = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// Returns why the daemon is not ready, one sentence each; empty if it is ready.
pub type NotReady = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// What the admin listener shows.
pub struct Admin {
    account: Arc<Account>,
    not_ready: NotReady,
    is_guest: IsGuest,
    complaints: Complaints,
}

/// Header fields of `/readyz`: the SHA-256 of the list and of the configuration in force.
const LIST_SUM: HeaderName = HeaderName::from_static("outgate-list-sha256");
const CONFIGURATION_SUM: HeaderName = HeaderName::from_static("outgate-config-sha256");

#[derive(Clone)]
enum AdminListener {
    /// Everything, for this machine.
    Local,
    /// Over TLS, without the status page, with this name in the client's certificate. A rebound name has no
    /// certificate, so any Host is accepted.
    Remote(Option<Arc<str>>),
}

impl Admin {
    /// Creates it. `not_ready` is called for each `/readyz` and for the status page, `is_guest` for a client
    /// with a certificate; they must not block.
    pub fn new(account: Arc<Account>, not_ready: NotReady, is_guest: IsGuest) -> Arc<Admin> {
        Arc::new(Admin { account, not_ready, is_guest, complaints: Complaints::new("admin_tls") })
    }
}

/// Serves `/metrics`, `/healthz`, `/readyz` and the status page. Never returns; dropping the future
/// closes its connections.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    accept_loop(&listener, &Arc::clone(&admin), move |stream| {
        let admin = Arc::clone(&admin);
        async move {
            http_connection::connection(stream, move |request| {
                answer_to(Arc::clone(&admin), AdminListener::Local, request)
            })
            .await
        }
    })
    .await;
}

/// Serves `/metrics`, `/healthz` and `/readyz` over TLS. `tls` is read for each connection, so that a new
/// certificate is used at once. Never returns.
pub async fn serve_tls(listener: TcpListener, tls: tls::CurrentTls, admin: Arc<Admin>) {
    accept_loop(&listener, &Arc::clone(&admin), move |stream| {
        let (admin, config) = (Arc::clone(&admin), Arc::clone(&tls.load().admin));
        async move {
            let peer = stream.peer_addr().ok();
            let socket = Socket::new(stream, Vec::new());
            match tls::handshake(socket, config, tokio::time::sleep(HANDSHAKE_TIMEOUT)).await {
                Ok(stream) => {
                    let listener = AdminListener::Remote(tls::certified_name(&stream));
                    let answer = move |request| answer_to(Arc::clone(&admin), listener.clone(), request);
                    http_connection::connection(GuestStream::from(stream), answer).await;
                }
                Err(mut refused) => {
                    admin.refused(peer, &refused);
                    if let Some(stream) = &mut refused.stream {
                        close::after(stream, b"").await;
                    }
                }
            }
        }
    })
    .await;
}

impl Admin {
    /// Counts a failed handshake and logs it.
    fn refused(&self, peer: Option<SocketAddr>, refused: &FailedHandshake) {
        self.account.metrics().handshake_refused(self.complaints.listener(), refused.fault.as_str());
        self.complaints.tell(peer, refused);
    }
}

async fn accept_loop<F, Fut>(listener: &TcpListener, admin: &Admin, serve: F)
where
    F: Fn(TcpStream) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while let Some(ended) = connections.try_join_next() {
            if ended.is_err_and(|error| error.is_panic()) {
                admin.account.metrics().panicked();
            }
        }
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let serving = serve(stream);
                connections.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) => {
                admin.account.metrics().accept_failed();
                tracing::warn!(%error, "the admin listener can't accept");
                tokio::time::sleep(http_connection::ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer_to(admin: Arc<Admin>, listener: AdminListener, request: Request<Incoming>) -> HttpAnswer {
    if let AdminListener::Remote(Some(name)) = &listener
        && (admin.is_guest)(name)
    {
        // Guests and Prometheus may have the same authority, and guests must not use up the connections here either.
        let mut refusal =
            answer(StatusCode::FORBIDDEN, TEXT, "Nothing here is for guests, and this certificate is a guest's.\n");
        refusal.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return refusal;
    }
    let is_local = matches!(listener, AdminListener::Local);
    if is_local && let Err(message) = check_host(&request) {
        return answer(StatusCode::FORBIDDEN, TEXT, message);
    }
    let path = request.uri().path();
    let known = matches!(path, "/metrics" | "/healthz" | "/readyz") || (path == "/" && is_local);
    if !known {
        return answer(StatusCode::NOT_FOUND, TEXT, "Here are /metrics, /healthz and /readyz.\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal =
            answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Nothing can be changed here; GET and HEAD only.\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match path {
        "/healthz" => answer(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => ready(&(admin.not_ready)(), &admin.account.metrics().sums()),
        "/metrics" => {
            let account = Arc::clone(&admin.account);
            http_connection::blocking(move || answer(StatusCode::OK, METRICS, account.scrape())).await
        }
        _ => http_connection::blocking(move || status_page(&admin)).await,
    }
}

/// Answers with the reasons in the body. By the sums in the header hosts can be compared.
fn ready(reasons: &[String], sums: &Sums) -> HttpAnswer {
    let mut ready = if reasons.is_empty() {
        answer(StatusCode::OK, TEXT, "ok\n")
    } else {
        let body: String = reasons.iter().flat_map(|reason| [reason.as_str(), "\n"]).collect();
        answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, body)
    };
    for (name, sum) in [(LIST_SUM, Some(&sums.list)), (CONFIGURATION_SUM, sums.configuration.as_ref())] {
        if let Some(sum) = sum.and_then(|sum| HeaderValue::from_str(sum).ok()) {
            ready.headers_mut().insert(name, sum);
        }
    }
    ready
}

fn status_page(admin: &Admin) -> HttpAnswer {
    let html = page::render(&admin.account.totals(), &admin.account.refusals(50), &(admin.not_ready)());
    let mut page = answer(StatusCode::OK, "text/html; charset=utf-8", html);
    let policy = HeaderValue::from_static(
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    );
    page.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    page
}

/// Checks the Host: nobody can redirect an address literal or `localhost`. HTTP/1.0 may omit Host: some health
/// checkers do, browsers don't.
fn check_host<B>(request: &Request<B>) -> Result<(), &'static str> {
    const ADVICE: &str = "The Host of the request must be an IP address or localhost.\n";
    let ours = |text: &[u8]| match Target::parse(text, Some(80)) {
        Ok(Target { host: Host::Addr(_), .. }) => true,
        Ok(Target { host: Host::Name(name), .. }) => name.as_str() == "localhost",
        Err(_) => false,
    };
    if let Some(authority) = request.uri().authority()
        && !ours(authority.as_str().as_bytes())
    {
        return Err(ADVICE);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if ours(host.as_bytes()) => Ok(()),
        (None, None) if request.version() == Version::HTTP_10 => Ok(()),
        _ => Err(ADVICE),
    }
}

#[cfg(test)]
mod tests;
