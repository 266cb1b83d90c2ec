//! Messages between the halves of `outgate exec`, outside and inside of the namespaces: a socket of whole
//! messages, which also passes descriptors. If either half ends, the other one notices.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::Signal;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The longest message, in bytes.
const LONGEST: usize = 8;
/// Maximum number of descriptors that one message passes: input, output, error output.
pub(super) const MOST: usize = 3;

/// Messages of the outer half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToInner {
    /// Passes those of descriptors 0 to 2 that are not terminals, in their order.
    Descriptors,
    /// Start the command; whether in the foreground of its terminal.
    Start(bool),
    /// A signal for the command, or for its whole process group.
    Signal(Signal, bool),
    /// The command has the terminal now, and continues.
    Foreground,
    /// The command continues.
    Continue,
}

/// Messages of the inner half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToOuter {
    /// Everything is prepared; passes the other side of the command's terminal, if there is one.
    Ready,
    /// The command was stopped; whether by a signal that cannot be caught.
    Stopped(bool),
    /// The command was stopped, because it wants the terminal.
    WantsTerminal,
}

/// Returns the two ends of a new socket.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// The encoding of both kinds of messages.
pub(super) trait Message: Sized {
    fn bytes(self) -> [u8; 3];
    fn of(bytes: [u8; 3]) -> Option<Self>;
}

impl Message for ToInner {
    fn bytes(self) -> [u8; 3] {
        match self {
            ToInner::Descriptors => [b'd', 0, 0],
            ToInner::Start(foreground) => [b's', foreground.into(), 0],
            // Signal numbers end at 64.
            ToInner::Signal(signal, whole) => [b'k', u8::try_from(signal.as_raw()).unwrap_or(0), whole.into()],
            ToInner::Foreground => [b'f', 0, 0],
            ToInner::Continue => [b'c', 0, 0],
        }
    }

    fn of(bytes: [u8; 3]) -> Option<ToInner> {
        match bytes {
            [b'd', ..] => Some(ToInner::Descriptors),
            [b's', foreground, _] => Some(ToInner::Start(foreground != 0)),
            [b'k', signal, whole] => Some(ToInner::Signal(Signal::from_named_raw(signal.into())?, whole != 0)),
            [b'f', ..] => Some(ToInner::Foreground),
            [b'c', ..] => Some(ToInner::Continue),
            _ => None,
        }
    }
}

impl Message for ToOuter {
    fn bytes(self) -> [u8; 3] {
        match self {
            ToOuter::Ready => [b'r', 0, 0],
            ToOuter::Stopped(hard) => [b'z', hard.into(), 0],
            ToOuter::WantsTerminal => [b't', 0, 0],
        }
    }

    fn of(bytes: [u8; 3]) -> Option<ToOuter> {
        match bytes {
            [b'r', ..] => Some(ToOuter::Ready),
            [b'z', hard, _] => Some(ToOuter::Stopped(hard != 0)),
            [b't', ..] => Some(ToOuter::WantsTerminal),
            _ => None,
        }
    }
}

/// Sends one message, without blocking for a half that does not read: if the message does not fit, it is lost, and
/// then the other half misses more than that.
pub(super) fn send(socket: impl AsFd, message: impl Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut more = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !more.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than one message can pass"));
    }
    let bytes = message.bytes();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match sendmsg(socket, &[IoSlice::new(&bytes)], &mut more, flags) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the next message, and the descriptors that it passes; `None` if the other half has ended.
pub(super) fn receive<M: Message>(socket: impl AsFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut bytes = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut more = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = loop {
        match recvmsg(socket.as_fd(), &mut parts, &mut more, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // The other half ended with a message unread.
            Err(Errno::CONNRESET) => return Ok(None),
            got => break got?,
        }
    };
    let descriptors = more.drain().filter_map(|one| match one {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
    if got.bytes == 0 {
        return Ok(None);
    }
    let whole = got.bytes == 3 && !got.flags.contains(ReturnFlags::CTRUNC);
    let message = match bytes {
        [first, second, third, ..] if whole => M::of([first, second, third]),
        _ => None,
    };
    let message = message.ok_or_else(|| io::Error::other("not a valid message"))?;
    Ok(Some((message, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn messages_come_as_they_were_sent_with_what_they_hand_over() {
        let (here, there) = pair().unwrap();
        let all = [
            ToInner::Descriptors,
            ToInner::Start(true),
            ToInner::Signal(Signal::QUIT, true),
            ToInner::Foreground,
            ToInner::Continue,
        ];
        for message in all {
            send(&here, message, &[]).unwrap();
            assert_eq!(receive::<ToInner>(&there).unwrap().unwrap().0, message);
        }
        for message in [ToOuter::Ready, ToOuter::Stopped(true), ToOuter::Stopped(false), ToOuter::WantsTerminal] {
            send(&here, message, &[]).unwrap();
            assert_eq!(receive::<ToOuter>(&there).unwrap().unwrap().0, message);
        }
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&here, ToOuter::Ready, &[writer.as_fd()]).unwrap();
        drop(writer);
        let (_, handed) = receive::<ToOuter>(&there).unwrap().unwrap();
        handed.into_iter().for_each(|writer| std::fs::File::from(writer).write_all(b"hello").unwrap());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        drop(here);
        assert!(receive::<ToInner>(&there).unwrap().is_none());
        assert!(send(&there, ToInner::Continue, &[]).is_err());
    }

    #[test]
    fn who_does_not_listen_holds_nobody_up() {
        let (here, _there) = pair().unwrap();
        for _ in 0..10_000 {
            send(&here, ToOuter::Stopped(true), &[]).unwrap();
        }
    }
}
