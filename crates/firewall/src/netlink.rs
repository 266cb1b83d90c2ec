//! Requests to the kernel over netlink(7), and the parts that its messages consist of.

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use std::io;
use std::time::{Duration, Instant};

/// `struct nlmsghdr`.
pub(super) const HEAD: usize = 16;
/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 0x001;
/// `NLM_F_DUMP` beside it: all objects instead of one.
pub(super) const DUMP: u16 = REQUEST | 0x300;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// What one read takes; the kernel cuts no message in two, and one for a card with many virtual functions is long.
pub(super) const READ: usize = 64 << 10;

/// Sends one request and calls `each` with the body of each message of the answer, until its end or until `each`
/// returns false. `protocol`: `None` is rtnetlink. The socket is its own, so that no answer is left for the next one.
///
/// # Errors
/// Those of the system and those that the kernel answers; `TimedOut` or `WouldBlock` after `patience`.
pub(super) fn ask(
    protocol: Option<Protocol>,
    (kind, flags, body): (u16, u16, &[u8]),
    patience: Duration,
    each: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
    sendto(&socket, &request(kind, flags, body), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let until = Instant::now() + patience;
    read_answer(|buffer| recv(&socket, buffer, RecvFlags::empty()).map(|(_, length)| length), until, each)
}

fn request(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEAD + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn read_answer(
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
    until: Instant,
    mut each: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; READ];
    while Instant::now() < until {
        let length = match read(&mut buffer) {
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut bytes = buffer.get(..length).unwrap_or_default();
        while let Some((kind, body, rest)) = message(bytes) {
            match kind {
                DONE => return Ok(()),
                ERROR => {
                    let code = number(body).unwrap_or_default();
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                }
                _ if !each(body) => return Ok(()),
                _ => {}
            }
            bytes = rest;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Appends an attribute (`struct rtattr`, `struct nlattr`).
pub(super) fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(u16::try_from(4 + value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Returns the kind of the first message, its body, and what follows it.
pub(super) fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let body = bytes.get(HEAD..length)?;
    Some((u16_at(bytes, 4)?, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Returns the value of the first attribute of this kind after the first `start` bytes of a body.
pub(super) fn attribute(body: &[u8], start: usize, kind: u16) -> Option<&[u8]> {
    let mut left = body.get(start..)?;
    loop {
        let length = usize::from(u16_at(left, 0)?);
        let value = left.get(4..length)?;
        // The two highest bits are flags about its layout.
        if u16_at(left, 2)? & 0x3fff == kind {
            return Some(value);
        }
        left = left.get(length.next_multiple_of(4)..)?;
    }
}

pub(super) fn number(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.first_chunk()?))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others_and_what_is_cut_short_is_none() {
        let mut message = vec![9; 20];
        push(&mut message, 7, b"abc");
        push(&mut message, 37, &5i32.to_ne_bytes());
        assert_eq!(attribute(&message, 20, 7), Some(&b"abc"[..]));
        assert_eq!(attribute(&message, 20, 37).and_then(number), Some(5));
        assert_eq!(attribute(&message, 20, 8), None);
        for length in 0..message.len() {
            assert_eq!(attribute(&message[..length], 20, 37), None, "{length}");
        }
        // A length of zero does not lead to an endless loop.
        assert_eq!(attribute(&[0; 12], 0, 1), None);
    }

    #[test]
    fn an_answer_is_read_to_its_end_or_its_error() {
        let one = request(16, 0, &[1, 2, 3, 4]);
        let done = request(DONE, 0, &[0; 4]);
        let error = request(ERROR, 0, &(-95i32).to_ne_bytes());
        let read = |parts: Vec<Vec<u8>>, dump| {
            let mut parts = parts.into_iter();
            let next = |buffer: &mut [u8]| {
                let part = parts.next().ok_or(Errno::AGAIN)?;
                buffer[..part.len()].copy_from_slice(&part);
                Ok(part.len())
            };
            let mut bodies = Vec::new();
            let until = Instant::now() + Duration::from_secs(10);
            read_answer(next, until, |body| {
                bodies.push(body.to_vec());
                dump
            })
            .map(|()| bodies)
        };
        let body = vec![1, 2, 3, 4];
        assert_eq!(read(vec![[one.clone(), one.clone()].concat(), done], true).unwrap(), [body.clone(), body.clone()]);
        assert_eq!(read(vec![one.clone()], false).unwrap(), vec![body]);
        assert_eq!(read(vec![one, error], true).unwrap_err().raw_os_error(), Some(95));
    }
}
