//! A web site over TLS on loopback, for a client on this machine. Its paths do what a test says. It requires no
//! namespace.

use super::pki;
use rustls::{ServerConnection, StreamOwned};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the origin does at a path.
#[derive(Clone)]
pub enum Page {
    /// Answers 200 with this body.
    Body(Vec<u8>),
    /// Redirects to this URL.
    Redirect(String),
    /// Answers with only this status.
    Status(u16),
    /// Never ends.
    Endless,
    /// A byte each tenth of a second.
    Drip,
    /// Announces more than it sends.
    Short,
    /// Ends before its last chunk.
    Unchunked,
    /// Announces nothing, and ends with the connection.
    Unmeasured,
}

/// An HTTPS server with a certificate for any name.
pub struct Site {
    /// On 127.0.0.1.
    pub port: u16,
    pages: Arc<Mutex<HashMap<String, Page>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Site {
    /// Starts one, on any port.
    pub fn start() -> Site {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let site = Site { port, pages: Arc::default(), asked: Arc::default() };
        let (pages, asked) = (Arc::clone(&site.pages), Arc::clone(&site.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (pages, asked) = (Arc::clone(&pages), Arc::clone(&asked));
                std::thread::spawn(move || serve(stream, &pages, &asked));
            }
        });
        site
    }

    /// A path's URL.
    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    /// Puts a page at a path, and gives its URL.
    pub fn put(&self, path: &str, page: Page) -> String {
        self.pages.lock().unwrap().insert(path.to_owned(), page);
        self.url(path)
    }

    /// Puts a file at a path, and gives its URL.
    pub fn body(&self, path: &str, body: impl AsRef<[u8]>) -> String {
        self.put(path, Page::Body(body.as_ref().to_vec()))
    }

    /// The paths that were asked for, in order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, pages: &Mutex<HashMap<String, Page>>, asked: &Mutex<Vec<String>>) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let Ok(connection) = ServerConnection::new(pki::server()) else { return };
    let mut tls = BufReader::new(StreamOwned::new(connection, stream));
    let mut line = String::new();
    if tls.read_line(&mut line).is_err() || line.is_empty() {
        return;
    }
    let mut field = String::new();
    while tls.read_line(&mut field).is_ok_and(|length| length > 2) {
        field.clear();
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    asked.lock().unwrap().push(path.clone());
    let page = pages.lock().unwrap().get(&path).cloned().unwrap_or(Page::Status(404));
    let mut tls = tls.into_inner();
    let _ = answer(&mut tls, page);
}

fn answer(tls: &mut StreamOwned<ServerConnection, TcpStream>, page: Page) -> std::io::Result<()> {
    match page {
        Page::Body(body) => {
            write!(tls, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
            tls.write_all(&body)?;
        }
        Page::Redirect(to) => {
            write!(tls, "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        }
        Page::Status(code) => {
            write!(tls, "HTTP/1.1 {code} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
        }
        Page::Endless => {
            write!(tls, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            loop {
                write!(tls, "10000\r\n")?;
                tls.write_all(&[b'a'; 0x10000])?;
                write!(tls, "\r\n")?;
            }
        }
        Page::Drip => {
            write!(tls, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")?;
            for _ in 0..1000 {
                tls.write_all(b"a")?;
                tls.flush()?;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Page::Short => write!(tls, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nipfs.io\n")?,
        Page::Unchunked => {
            write!(tls, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nipfs.io\n\r\n")?;
        }
        Page::Unmeasured => write!(tls, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nipfs.io\n")?,
    }
    tls.conn.send_close_notify();
    tls.flush()?;
    tls.sock.shutdown(Shutdown::Write)
}
