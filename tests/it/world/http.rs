//! HTTP/1.1 for both ends of a test: a server whose paths say what it does, and a reader of
//! responses. Reads byte by byte from a buffer, and is lenient; how strict outgate is its own parser's
//! tests show.

use super::origin::{Seen, Tap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as an origin saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The target, as it stood in the request line.
    pub target: String,
    /// Names in lower case, values without white space around them.
    pub headers: Vec<(String, String)>,
    /// How long the body was, without its framing.
    pub body_length: u64,
    /// [`digest`] of the body.
    pub body_digest: u64,
    /// What stood after the last chunk.
    pub trailers: Vec<(String, String)>,
}

impl Request {
    /// The values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        values(&self.headers, name)
    }
}

/// A response as a guest got it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status; 0 if there was none.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
    /// What stood after the last chunk.
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        values(&self.headers, name).first().copied()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `reason` of a refusal's JSON body; empty where there is none.
    pub fn reason(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["reason"].as_str().unwrap_or_default().to_owned()
    }
}

fn values<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
}

/// FNV-1a over the bytes; equal bodies have equal digests.
pub fn digest(seed: u64, bytes: &[u8]) -> u64 {
    let seed = if seed == 0 { 0xcbf2_9ce4_8422_2325 } else { seed };
    bytes.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// `length` bytes that do not repeat in any short period.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// Serves requests until the client ends.
pub fn serve(tap: &mut Tap) -> io::Result<()> {
    let seen = Arc::clone(&tap.seen);
    serve_on(tap, &seen)
}

/// As [`serve`], over a stream that is not a [`Tap`] itself.
pub fn serve_on(stream: &mut (impl Read + Write), seen: &Mutex<Seen>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(mut request) = read_request_head(&mut stream)? {
        let index = {
            let mut seen = seen.lock().unwrap();
            seen.requests.push(request.clone());
            seen.requests.len() - 1
        };
        if request.header("expect") == ["100-continue"] && request.target != "/refuse-expectation" {
            stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if request.target == "/refuse-expectation" {
            stream.get_mut().write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(());
        }
        read_request_body(&mut stream, &mut request)?;
        seen.lock().unwrap().requests[index] = request.clone();
        if !respond(&mut stream, &request)? {
            break;
        }
    }
    Ok(())
}

/// Answers by the path; `false` when the connection ends with the answer.
fn respond<S: Read + Write>(stream: &mut BufReader<&mut S>, request: &Request) -> io::Result<bool> {
    let path = request.target.as_str();
    let number = path.rsplit('/').next().and_then(|last| last.parse::<usize>().ok()).unwrap_or(0);
    let out = stream.get_mut();
    let head = request.method == "HEAD";
    match path.split('/').nth(1).unwrap_or_default() {
        // The paths in the book's examples.
        "hello" => write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{{\"hello\": \"world\"}}\n")?,
        "bytes" => {
            write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {number}\r\n\r\n")?;
            if !head {
                out.write_all(&pattern(number))?;
            }
        }
        "chunked" | "trailers" => {
            write!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Digest\r\n\r\n")?;
            let body = pattern(number);
            for chunk in body.chunks(7919) {
                write!(out, "{:x};note=\"a;b\"\r\n", chunk.len())?;
                out.write_all(chunk)?;
                out.write_all(b"\r\n")?;
            }
            write!(out, "0\r\nX-Digest: {:x}\r\n\r\n", digest(0, &body))?;
        }
        "until-close" => {
            write!(out, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            out.write_all(&pattern(number))?;
            return Ok(false);
        }
        "early-hints" => {
            write!(out, "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n")?;
            write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")?;
        }
        "no-content" => write!(out, "HTTP/1.1 204 No Content\r\n\r\n")?,
        "slow" => {
            std::thread::sleep(Duration::from_millis(number as u64));
            write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")?;
        }
        "websocket" => {
            write!(out, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
            echo(stream)?;
            return Ok(false);
        }
        "other-protocol" => {
            write!(out, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: elsewhere\r\n\r\n")?;
            echo(stream)?;
            return Ok(false);
        }
        "upload" => {
            let body = format!("{} {:x}", request.body_length, request.body_digest);
            write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        }
        _ => write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{}", if head { "" } else { "hello\n" })?,
    }
    out.flush()?;
    let close = request.header("connection").iter().any(|value| value.eq_ignore_ascii_case("close"));
    Ok(!close)
}

fn echo<S: Read + Write>(stream: &mut BufReader<&mut S>) -> io::Result<()> {
    loop {
        let bytes = stream.fill_buf()?.to_vec();
        if bytes.is_empty() {
            return Ok(());
        }
        stream.consume(bytes.len());
        stream.get_mut().write_all(&bytes)?;
        stream.get_mut().flush()?;
    }
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line)?;
    while matches!(line.last(), Some(b'\r' | b'\n')) {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn fields(stream: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let line = line(stream)?;
        if line.is_empty() {
            return Ok(fields);
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

fn read_request_head(stream: &mut impl BufRead) -> io::Result<Option<Request>> {
    if stream.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let first = line(stream)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Some(Request { method, target, headers: fields(stream)?, ..Request::default() }))
}

fn read_request_body(stream: &mut impl BufRead, request: &mut Request) -> io::Result<()> {
    let mut take = |bytes: &[u8]| {
        request.body_length += bytes.len() as u64;
        request.body_digest = digest(request.body_digest, bytes);
    };
    if values(&request.headers, "transfer-encoding").iter().any(|value| value.eq_ignore_ascii_case("chunked")) {
        request.trailers = read_chunks(stream, &mut take)?;
    } else if let Some(length) = values(&request.headers, "content-length").first().and_then(|text| text.parse().ok()) {
        read_exactly(stream, length, &mut take)?;
    }
    Ok(())
}

fn read_exactly(stream: &mut impl BufRead, mut length: usize, take: &mut impl FnMut(&[u8])) -> io::Result<()> {
    while length > 0 {
        let bytes = stream.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let now = bytes.len().min(length);
        take(&bytes[..now]);
        stream.consume(now);
        length -= now;
    }
    Ok(())
}

fn read_chunks(stream: &mut impl BufRead, take: &mut impl FnMut(&[u8])) -> io::Result<Vec<(String, String)>> {
    loop {
        let size = line(stream)?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        if size == 0 {
            return fields(stream);
        }
        read_exactly(stream, size, take)?;
        line(stream)?;
    }
}

/// Reads one response head; interim responses (1xx other than 101) are skipped, `interim` counts
/// them. Status 0 means that the connection ended without a response.
pub fn read_head(stream: &mut impl BufRead, interim: &mut Vec<u16>) -> io::Result<Response> {
    loop {
        let first = line(stream)?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        if status == 0 {
            return Ok(Response::default());
        }
        let headers = fields(stream)?;
        if (100..200).contains(&status) && status != 101 {
            interim.push(status);
            continue;
        }
        return Ok(Response { status, headers, ..Response::default() });
    }
}

/// Reads a whole response to a request with this method.
pub fn read_response(stream: &mut impl BufRead, method: &str) -> io::Result<Response> {
    let mut response = read_head(stream, &mut Vec::new())?;
    let status = response.status;
    let bodiless = method == "HEAD" || matches!(status, 0 | 101 | 204 | 304);
    if bodiless || (method == "CONNECT" && (200..300).contains(&status)) {
        return Ok(response);
    }
    let mut body = Vec::new();
    if response.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        response.trailers = read_chunks(stream, &mut |bytes| body.extend(bytes))?;
    } else if let Some(length) = response.header("content-length").and_then(|text| text.parse().ok()) {
        read_exactly(stream, length, &mut |bytes| body.extend(bytes))?;
    } else {
        stream.read_to_end(&mut body)?;
    }
    response.body = body;
    Ok(response)
}
