//! The control socket: JSON over HTTP on a unix socket, for `outgate status`, `denied`, `flows`, `guest` and
//! `whitelist lint` and `reload`; server and client.
//!
//! The socket's mode (0660 and its group) decides who may read. For changes, the kernel reports the peer
//! (SO_PEERCRED, unix(7)): root and the daemon's own user are accepted.

pub mod host;

use crate::account::Account;
use crate::admin::http_connection::{self, HttpAnswer, answer};
use crate::registered_guests::Application;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const MAX_CONNECTIONS: usize = 64;
/// Additional connections for those who may change something: readers must not block them. Most of the time they
/// wait for the same reload.
const MAX_CHANGING: usize = 256;
/// Simultaneous registrations, with their bodies; the others wait.
const MAX_REGISTERING: usize = 16;
/// Rows in an answer if the query does not contain `limit=`.
const DEFAULT_LIMIT: usize = 1_000;
const MAX_LIMIT: usize = 100_000;
const JSON: &str = "application/json";
/// The largest body of a request, in bytes: a manifest, a certificate and a node descriptor as JSON.
const MAX_BODY: usize = 8 << 20;
/// How long the body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Figures of the daemon's own that are shown beside those of the account: an object.
pub type Status = Box<dyn Fn() -> Value + Send + Sync>;
/// Which rules of the list in force were used.
pub type Used = Box<dyn Fn() -> Value + Send + Sync>;
/// The guests: an object.
pub type Guests = Box<dyn Fn() -> Arc<Value> + Send + Sync>;
/// Makes a change; returns its result, or all obstacles.
pub type Make = Box<dyn Fn(Change) -> Pin<Box<dyn Future<Output = Result<Value, Vec<String>>> + Send>> + Send + Sync>;

/// What can be changed.
#[derive(Debug)]
pub enum Change {
    /// Read configuration and lists again.
    Reload,
    /// Register a guest.
    Register(Box<Application>),
    /// End the registration of the guest of this name.
    Remove(String),
}

/// What the control socket shows and does.
pub struct Control {
    /// The daemon's account.
    pub account: Arc<Account>,
    /// Must not block.
    pub status: Status,
    /// May take a while.
    pub used: Used,
    /// Must not block.
    pub guests: Guests,
    /// May take a while.
    pub make: Make,
}

/// Why the control socket can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon answers there.
    #[error("{}: another outgate listens on this control socket", .0.display())]
    InUse(PathBuf),
    /// Something other than a socket is at the path; it is not removed.
    #[error("{}: is in the way of the control socket and is not a socket; remove it or set [listen].control", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses to open the socket.
    #[error("{}: the control socket can't be opened: {source}", path.display())]
    Open {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there, or this user may not connect.
    #[error("{}: the daemon can't be reached: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection was made, and then failed or took too long.
    #[error("{}: the daemon did not answer: {source}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The answer is not one of a daemon of this version.
    #[error("{}: the answer can't be read; is another program listening there?", .0.display())]
    Unreadable(PathBuf),
}

/// Opens the socket with mode 0660, and replaces the socket of a dead daemon. The caller sets the group.
pub fn bind(path: &Path) -> Result<std::os::unix::net::UnixListener, ControlError> {
    let failed = |source| ControlError::Open { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(ControlError::NotASocket(path.to_owned())),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {}
            _ => return Err(ControlError::InUse(path.to_owned())),
        },
    }
    // Created under another name and renamed, so that it never has another mode under its final name.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&fresh).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o660)).map_err(failed)?;
    fs::rename(&fresh, path).map_err(failed)?;
    Ok(listener)
}

/// Serves the socket. Never returns; dropping the future closes its connections.
pub async fn serve(listener: UnixListener, control: Arc<Control>) {
    let (readers, changing) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Arc::new(Semaphore::new(MAX_CHANGING)));
    let registering = Arc::new(Semaphore::new(MAX_REGISTERING));
    let own = rustix::process::geteuid().as_raw();
    let mut connections = JoinSet::new();
    loop {
        while let Some(ended) = connections.try_join_next() {
            if ended.is_err_and(|error| error.is_panic()) {
                control.account.metrics().panicked();
            }
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let control = Arc::clone(&control);
                // If the credentials can't be read, no change is permitted.
                let may_change = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
                let places = if may_change { &changing } else { &readers };
                // Over the bound, the connection is closed and does not wait: a wait here would also hold up the
                // next one.
                let Ok(permit) = Arc::clone(places).try_acquire_owned() else { continue };
                let registering = Arc::clone(&registering);
                connections.spawn(async move {
                    let answer = move |request| {
                        answer_to(Arc::clone(&control), may_change.then(|| Arc::clone(&registering)), request)
                    };
                    http_connection::connection(stream, answer).await;
                    drop(permit);
                });
            }
            Err(error) => {
                control.account.metrics().accept_failed();
                tracing::warn!(%error, "the control socket can't accept");
                tokio::time::sleep(http_connection::ACCEPT_PAUSE).await;
            }
        }
    }
}

/// `registering` is set if the peer may change something.
async fn answer_to(
    control: Arc<Control>,
    registering: Option<Arc<Semaphore>>,
    request: Request<Incoming>,
) -> HttpAnswer {
    let path = request.uri().path().to_owned();
    let guest = path.strip_prefix("/guests/");
    let allowed = match path.as_str() {
        "/status" | "/denied" | "/failed" | "/flows" | "/used" => "GET",
        "/guests" => "GET, POST",
        "/reload" => "POST",
        _ if guest.is_some() => "DELETE",
        _ => {
            return error(StatusCode::NOT_FOUND, "there is nothing of this name; does the daemon run another version?");
        }
    };
    if !allowed.split(", ").any(|method| method == request.method().as_str()) {
        let mut refusal = error(StatusCode::METHOD_NOT_ALLOWED, "this requires another method");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        return refusal;
    }
    if request.method() == Method::GET && path == "/guests" {
        let guests = (control.guests)();
        return http_connection::blocking(move || reply(StatusCode::OK, &guests)).await;
    }
    if request.method() == Method::GET {
        let limit = limit(request.uri().query());
        return http_connection::blocking(move || reply(StatusCode::OK, &control.read(&path, limit))).await;
    }
    let Some(registering) = registering else {
        return error(StatusCode::FORBIDDEN, "only root and the daemon's own user may change anything");
    };
    // Held until the answer, because the request's content stays in memory that long.
    let mut place = None;
    let change = match guest {
        Some(name) => Change::Remove(name.to_owned()),
        None if path == "/reload" => Change::Reload,
        None => {
            place = Some(registering.acquire().await);
            match application(request.into_body()).await {
                Ok(application) => Change::Register(Box::new(application)),
                Err(refusal) => return refusal,
            }
        }
    };
    let made = (control.make)(change).await;
    drop(place);
    match made {
        Ok(result) => reply(StatusCode::OK, &result),
        Err(problems) => reply(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "problems": problems })),
    }
}

async fn application(body: Incoming) -> Result<Application, HttpAnswer> {
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let Ok(Ok(body)) = read else {
        let message = format!("the body came too slowly, or is larger than {} MiB", MAX_BODY >> 20);
        return Err(error(StatusCode::PAYLOAD_TOO_LARGE, &message));
    };
    serde_json::from_slice(&body.to_bytes())
        .map_err(|why| error(StatusCode::BAD_REQUEST, &format!("this does not register a guest: {why}")))
}

impl Control {
    fn read(&self, path: &str, limit: usize) -> Value {
        match path {
            "/denied" => json!({ "refusals": self.account.refusals(limit) }),
            "/failed" => json!({ "failures": self.account.failures(limit) }),
            "/flows" => {
                let (flows, total) = self.account.flows(limit);
                json!({ "total": total, "flows": flows })
            }
            "/used" => (self.used)(),
            _ => {
                let mut status = json!(self.account.totals());
                if let (Value::Object(all), Value::Object(own)) = (&mut status, (self.status)()) {
                    all.extend(own);
                }
                status
            }
        }
    }
}

fn limit(query: Option<&str>) -> usize {
    let limit = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("limit="));
    limit.and_then(|limit| limit.parse().ok()).unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT)
}

fn reply(status: StatusCode, value: &Value) -> HttpAnswer {
    answer(status, JSON, format!("{value}\n"))
}

fn error(status: StatusCode, message: &str) -> HttpAnswer {
    reply(status, &json!({ "error": message }))
}

/// How long the client waits for an answer; a list of a million rules takes 2 s to load.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER: u64 = 256 * 1024 * 1024;

/// The client side, for the command line. Blocks.
pub struct Client {
    path: PathBuf,
}

/// Returns a client of the daemon that listens at `path`; connects for each request.
pub fn client(path: impl Into<PathBuf>) -> Client {
    Client { path: path.into() }
}

impl Client {
    /// Returns status and body of the answer to GET `target`, e.g. `/flows?limit=50`. At most 10 s.
    pub fn get(&self, target: &str) -> Result<(u16, Value), ClientError> {
        self.ask("GET", target, "")
    }

    /// Returns status and body of the answer to POST `target` with this body. At most 10 s.
    pub fn post(&self, target: &str, body: &str) -> Result<(u16, Value), ClientError> {
        self.ask("POST", target, body)
    }

    /// Returns status and body of the answer to DELETE `target`. At most 10 s.
    pub fn delete(&self, target: &str) -> Result<(u16, Value), ClientError> {
        self.ask("DELETE", target, "")
    }

    fn ask(&self, method: &str, target: &str, body: &str) -> Result<(u16, Value), ClientError> {
        let path = || self.path.clone();
        let mut stream =
            UnixStream::connect(&self.path).map_err(|source| ClientError::Unreachable { path: path(), source })?;
        let answer = exchange(&mut stream, method, target, body)
            .map_err(|source| ClientError::Broken { path: path(), source })?;
        if answer.is_empty() {
            let source = io::Error::new(
                ErrorKind::UnexpectedEof,
                "it closed the connection: it is stopping, or too many ask at once; try again",
            );
            return Err(ClientError::Broken { path: path(), source });
        }
        parse(&answer).ok_or_else(|| ClientError::Unreadable(path()))
    }
}

fn exchange(stream: &mut UnixStream, method: &str, target: &str, body: &str) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
    let request = format!("{method} {target} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    match stream.write_all(request.as_bytes()) {
        // The server refused without reading the whole request; its answer can still be read.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            // The server closed with part of the request unread (unix(7)); its answer arrived before.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(answer),
            Ok(read) => answer.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
        if answer.len() as u64 > MAX_ANSWER {
            return Err(ErrorKind::FileTooLarge.into());
        }
    }
}

/// Parses an answer. The server answers HTTP/1.0 without transfer codings and then closes.
fn parse(answer: &[u8]) -> Option<(u16, Value)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = answer.split_at_checked(end + 4)?;
    let status = head.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    let status = std::str::from_utf8(status).ok()?.parse().ok()?;
    Some((status, serde_json::from_slice(body).ok()?))
}

#[cfg(test)]
mod tests;
